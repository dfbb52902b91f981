// SPDX-License-Identifier: BSD-2-Clause
//! Read-ahead that follows a stream.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    consumers::sendfile::Sending,
    disk::behaviour::Behaviour,
    ffs::file::File,
    host::memory::PAGE,
    kernel::{
        callout, resident,
        sysctl::{self, ahead, counter},
        taskqueue, vm_object,
    },
    scenarios::{
        fixture::{Fixture, Run},
        steps::{
            BLOCK, BLOCKS, P, SIZE, contiguous, contiguous_of, finish, ready, send, settle, slow,
            undisturbed, wait_until,
        },
    },
};

/// All of them, by name.
pub const ALL: &[(&str, Run)] = &[
    ("stream", stream),
    ("stream-seen", stream_seen),
    ("stream-far", stream_far),
    ("stream-burst", stream_burst),
    ("stream-gap", stream_gap),
    ("stream-random", stream_random),
    ("stream-lost", stream_lost),
    ("stream-over", stream_over),
    ("stream-grows", stream_grows),
];

/// Pages in the middle of a stream's first window here: behind what its first
/// call reads ahead, and behind the gap that is left for the second one.
const WINDOW: std::ops::Range<u64> = 150..350;

/// The gap that is left there for the second call.
const GAP: std::ops::Range<u64> = 116..148;

/// Send the beginning of a file, and wait for the window that comes of it.
fn begin_stream(fixture: &Fixture, file: &File) -> Result<()> {
    send(fixture, file, 0, 16 * P, 100)?;
    settle()?;
    ensure!(ahead("pages") > 0, "nothing is read ahead: {:?}", sysctl::counters());
    wait_until("a window is there", || WINDOW.clone().all(|pindex| ready(file, pindex)))
}

/// A request at the beginning of a file begins a stream: the pages behind it are valid
/// before the consumer asks for them, except for one gap.
fn stream(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    let file = contiguous(fixture);
    let before = counter("calls_async");
    begin_stream(fixture, &file)?;
    for offset in (16 * P..WINDOW.end * P - 50_000).step_by(50_000) {
        send(fixture, &file, offset, 50_000, 100)?;
    }
    let calls = counter("calls_async") - before;
    ensure!(calls <= 3, "{calls} calls of the pager for what was read ahead");
    ensure!(ahead("pages") >= 200 && ahead("windows") > 0, "{:?}", sysctl::counters());
    wait_until("no window keeps the file's object", || !vm_object::is_paging(file.object))
}

/// Pages on their way to a socket show where the consumer is: the windows go
/// on, up to the end of the file, with hardly a miss.
fn stream_seen(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    let file = contiguous_of(fixture, 3 * BLOCKS);
    let size = file.inode.size;
    // On a slow host windows become large. They must stay smaller than the file: the timer does
    // not look behind the last window.
    ensure!(sysctl::number("vfs.asyncpager.readahead.max", 2 << 20) == 0, "sysctl");
    send(fixture, &file, 0, 16 * P, 100)?;
    let (mut offset, step) = (16 * P, 40 * P);
    let before = counter("calls_async");
    while offset < size {
        let last = ((offset + step).min(size) - 1) / P;
        let busy = |p| resident::resident(file.object, p).is_some_and(|page| page.is_busy());
        wait_until("no page is in flight", || !(offset / P..=last).any(busy))?;
        let sending = Sending::begin(&file, offset, step, 100).context("the file is gone")?;
        // The socket takes its time: the timer sees where it is, once and again.
        let ran = callout::ran();
        wait_until("the timer has run", || callout::ran() > ran + 1 || callout::active() == 0)?;
        settle()?;
        finish(fixture, &file, sending, offset, step)?;
        offset += step;
    }
    let misses = counter("calls_async") - before;
    // Unseen it would run out of each window.
    ensure!(misses <= 4, "{misses} misses: {:?}", sysctl::counters());
    ensure!(ahead("used") >= size / P / 4, "the consumer was not seen: {:?}", sysctl::counters());
    Ok(())
}

/// A consumer that the timer sees again only far from where it was is found,
/// wherever it is in its window, and the windows go on without a miss.
fn stream_far(fixture: &mut Fixture, _: &Path) -> Result<()> {
    // On a slow host windows become large: never as large as the file.
    ensure!(sysctl::number("vfs.asyncpager.readahead.max", 8 << 20) == 0, "sysctl");
    undisturbed(|| {
        slow(fixture, 20)?;
        let file = contiguous_of(fixture, 4 * BLOCKS);
        begin_stream(fixture, &file)?;
        let large = || (GAP.end..FAR.end).all(|pindex| ready(&file, pindex));
        wait_until("the window is large", || large() || callout::active() == 0)?;
        if !large() {
            return Ok(false);
        }
        callout::hold(true);
        let found = go_far(fixture, &file);
        callout::hold(false);
        found
    })
}

/// Where the consumer of [`stream_far`] is seen again: far behind what the
/// timer looks at first.
pub const FAR: std::ops::Range<u64> = 1250..1314;

/// Sends up to there while the timer does not look. False when the host stood still
/// for so long that the stream was given up.
fn go_far(fixture: &Fixture, file: &File) -> Result<bool> {
    // Its misses here tell where it is.
    send(fixture, file, 16 * P, (GAP.end - 16) * P, 0)?;
    settle()?;
    wait_until("no page is in flight", || !vm_object::is_paging(file.object))?;
    let there = |pindex: &u64| resident::resident(file.object, *pindex).is_some();
    let end = (0..4 * BLOCKS * BLOCK / P).rfind(there).context("no page is there")? + 1;
    let (missed, used) = (counter("calls_async"), ahead("used"));
    let (offset, len) = (FAR.start * P, (FAR.end - FAR.start) * P);
    send(fixture, file, GAP.end * P, offset - GAP.end * P, 0)?;
    let sending = Sending::begin(file, offset, len, 0).context("the file is gone")?;
    let ran = callout::ran();
    callout::hold(false);
    let found = || ahead("used") > used + 1000;
    let over = || callout::ran() >= ran + LOOKS || callout::active() == 0;
    wait_until("the timer has looked", || found() || over())?;
    ensure!(found() || callout::ran() < ran + LOOKS, "the timer does not find the consumer");
    let found = found();
    if found {
        // Behind the gap that is left for the consumer, if one is.
        wait_until("the next window is there", || ready(file, end + 150))?;
    }
    let missed = counter("calls_async") - missed;
    ensure!(missed == 0, "{missed} misses where everything was read ahead");
    finish(fixture, file, sending, offset, len)?;
    Ok(found)
}

/// Looks of the timer in which it must have looked everywhere.
const LOOKS: u64 = 32;

/// After a long pause, read-ahead does not catch up in one burst.
fn stream_burst(fixture: &mut Fixture, _: &Path) -> Result<()> {
    ensure!(sysctl::number("vfs.asyncpager.readahead.max", 3000 * P as u32) == 0, "sysctl");
    ensure!(sysctl::number("vfs.asyncpager.readahead.poll", 500) == 0, "sysctl");
    undisturbed(|| {
        let milliseconds = 40;
        let is_fast = |begin: Instant| begin.elapsed() < Duration::from_millis(2 * milliseconds);
        // What the disk has taken before is forgotten after so many.
        for _ in 0..8 {
            let begin = Instant::now();
            slow(fixture, milliseconds)?;
            if !is_fast(begin) {
                return Ok(false);
            }
        }
        let file = contiguous_of(fixture, 4 * BLOCKS);
        callout::hold(true);
        taskqueue::hold(true);
        let begin = Instant::now();
        send(fixture, &file, 0, 16 * P, 100)?;
        let fast = is_fast(begin);
        let long = Duration::from_millis(400);
        wait_until("nothing was read for long", || begin.elapsed() >= long)?;
        let before = ahead("pages");
        taskqueue::hold(false);
        settle()?;
        let burst = ahead("pages") - before;
        callout::hold(false);
        // Of a rate of 32768 pages a second, as it is taken to be at first,
        // twice a quarter of the latency and four looks are 786 pages. The
        // latency may be taken for twice as long. The window has room for 3000.
        ensure!(!fast || (256..1600).contains(&burst), "{burst} pages are read at once");
        Ok(fast)
    })
}

/// Begins a stream and keeps its window in flight for 20 ms, or until the disk is told
/// to complete it. The timer is held.
fn window_in_flight(fixture: &Fixture, file: &File) -> Result<()> {
    callout::hold(true);
    taskqueue::hold(true);
    send(fixture, file, 0, 16 * P, 100)?;
    fixture
        .disk
        .behave(Behaviour { latency: Duration::from_secs(600).into(), ..Behaviour::default() });
    taskqueue::hold(false);
    settle()?;
    ensure!(ahead("pages") > 0, "there is no window");
    fixture
        .disk
        .behave(Behaviour { latency: Duration::from_millis(20).into(), ..Behaviour::default() });
    Ok(())
}

/// Runs `act` while a window is in flight, and completes the window as soon as a
/// thread waits for a busied page, or after `act`. How often threads have waited.
fn waits_while<T>(fixture: &Fixture, act: impl FnOnce() -> T) -> (T, u64) {
    let waits = || resident::BUSY_WAITS.load(Ordering::Relaxed);
    let (before, over) = (waits(), AtomicBool::new(false));
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            while waits() == before && !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(300));
            }
            fixture.disk.complete_now();
        });
        let done = act();
        over.store(true, Ordering::Relaxed);
        done
    });
    (done, waits() - before)
}

/// A consumer that comes before a window does finds a gap to ask for, and
/// does not wait for pages in flight.
fn stream_gap(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 20)?;
    let file = contiguous(fixture);
    window_in_flight(fixture, &file)?;
    callout::hold(false);
    let (sent, waits) = waits_while(fixture, || {
        [16 * P, 116 * P].map(|offset| send(fixture, &file, offset, 16 * P, 0))
    });
    sent.into_iter().collect::<Result<()>>()?;
    ensure!(waits == 0, "the consumer has waited {waits} times for a window");
    Ok(())
}

/// Random access is never followed.
fn stream_random(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 2)?;
    let file = contiguous(fixture);
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..40 {
        // Never two that touch.
        send(fixture, &file, (1 + rng.u64(..SIZE / BLOCK / 4) * 4) * BLOCK, 65536, 0)?;
        vm_object::reclaim(file.object, 1, &mut rng);
    }
    settle()?;
    ensure!(ahead("pages") == 0, "{} pages were read ahead", ahead("pages"));
    Ok(())
}

/// Pages that are read ahead and freed unused are counted, and read again when asked
/// for.
fn stream_lost(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 2)?;
    let file = contiguous(fixture);
    begin_stream(fixture, &file)?;
    vm_object::reclaim(file.object, 1, &mut fastrand::Rng::with_seed(1));
    send(fixture, &file, 200 * P, 16 * P, 0)?;
    ensure!(ahead("wasted") > 0, "not counted: {:?}", sysctl::counters());
    Ok(())
}

/// A window goes on where pages are there already.
fn stream_over(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 3)?;
    let file = contiguous(fixture);
    for first in [140, 170, 300] {
        send(fixture, &file, first * P, 20 * P, 0)?;
    }
    begin_stream(fixture, &file)?;
    send(fixture, &file, 0, WINDOW.end * P, 0)
}

/// A file grows while its last page is in flight: behind its old end there is
/// nothing but what the file has there, and the stream goes on past it.
fn stream_grows(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 20)?;
    let file = contiguous(fixture);
    let (last, end) = (250, 250 * P + 1024);
    file.set_size(end);
    window_in_flight(fixture, &file)?;
    let in_flight = resident::resident(file.object, last).is_some_and(|page| page.is_busy());
    ensure!(in_flight, "the last page is not in flight: {:?}", sysctl::counters());
    let ((), waits) = waits_while(fixture, || file.set_size(SIZE));
    ensure!(waits > 0, "set_size() has not waited for the last page");
    // The bytes between the old end and the end of its page were never written.
    let mut got = Vec::new();
    let sending = Sending::begin(&file, last * P, P, 0).context("the file is gone")?;
    let sent = sending.finish(false, |bytes| got.extend_from_slice(bytes));
    let mut right = fixture.bytes(&file, last * P, PAGE);
    right[1024..].fill(0);
    ensure!(sent == Ok(()) && got == right, "stale bytes behind the old end: {sent:?}");
    // The consumer misses the gap, and what is read ahead passes the old end.
    let before = ahead("pages");
    send(fixture, &file, 16 * P, (last - 16) * P, 0)?;
    settle()?;
    // The timer could have seen it behind the gap before it missed that.
    callout::hold(false);
    ensure!(ahead("pages") > before, "the stream ends where the file did");
    wait_until("there is a window behind the old end", || ready(&file, last + 150))?;
    send(fixture, &file, (last + 1) * P, SIZE - (last + 1) * P, 0)
}
