// SPDX-License-Identifier: BSD-2-Clause
//! Scenarios of read-ahead and of block maps that nobody waits for.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    bed::{Bed, Run},
    buf, callout,
    clock::{self, Patience},
    cpu,
    disk::{self, Manners},
    kernel,
    sendfile::Sending,
    sysctl::{self, ahead, counter},
    taskqueue,
    vfs::File,
    vm::{self, PAGE},
};

/// Bytes of a page.
pub const P: u64 = PAGE as u64;
/// Blocks of the files here.
const BLOCKS: u64 = 120;
/// Bytes of a block.
pub const BLOCK: u64 = 32768;
const SIZE: u64 = BLOCKS * BLOCK - 700;

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
    ("stream-error", stream_error),
    ("stream-memory", stream_memory),
    ("stream-cut", stream_cut),
    ("stream-grows", stream_grows),
    ("stream-unmount", stream_unmount),
    ("stream-switches", stream_switches),
    ("stream-devices", stream_devices),
    ("stream-many", stream_many),
    ("stream-hung", stream_hung),
    ("stream-users", stream_users),
    ("map", map),
    ("map-levels", map_levels),
    ("map-holes", map_holes),
    ("map-error", map_error),
    ("map-fast", map_fast),
    ("map-others", map_others),
];

/// A disk that is slow enough for its latency to be worth hiding, and that
/// the module has learned this about.
pub fn slow(bed: &Bed, milliseconds: u64) -> Result<()> {
    let latency = Duration::from_millis(milliseconds).into();
    bed.disk.behave(Manners { latency, ..Manners::default() });
    let other = bed.synthetic(BLOCK, &[Some(400)], BLOCK, true);
    send(bed, &other, 0, P, 0)
}

/// A file of one run, whose block map is in memory.
pub fn contiguous(bed: &Bed) -> Arc<File> {
    contiguous_of(bed, BLOCKS)
}

fn contiguous_of(bed: &Bed, blocks: u64) -> Arc<File> {
    let map: Vec<_> = (10..10 + blocks).map(Some).collect();
    let file = bed.synthetic(BLOCK, &map, blocks * BLOCK - 700, true);
    warm(&file);
    file
}

/// Bring the block map into memory, as somebody's read(2) would.
fn warm(file: &File) {
    let lbn = file.inode.map.len() as u64 - 1;
    let brought = file.maps.bring(file.disk(), &file.inode.indirect, lbn, file.mount.block);
    assert!(brought.is_ok(), "the disk does not read");
}

fn check(bed: &Bed, file: &File, offset: u64, got: &[u8], len: u64) -> Result<()> {
    let len = len.min(file.inode.size.saturating_sub(offset));
    ensure!(got.len() as u64 == len, "{} bytes at {offset}, not {len}", got.len());
    let wrong = (0..len).find(|i| got[*i as usize] != bed.byte(file, offset + i));
    ensure!(wrong.is_none(), "byte {} is wrong", offset + wrong.unwrap_or(0));
    Ok(())
}

pub fn send(bed: &Bed, file: &File, offset: u64, len: u64, wish: i32) -> Result<()> {
    let sending = Sending::begin(file, offset, len, wish).context("the file is gone")?;
    finish(bed, file, sending, offset, len)
}

/// Wait for a request, and check its bytes.
pub fn finish(bed: &Bed, file: &File, sending: Sending, offset: u64, len: u64) -> Result<()> {
    let mut got = Vec::new();
    let sent = sending.finish(false, |bytes| got.extend_from_slice(bytes));
    ensure!(sent == Ok(()), "{len} bytes at {offset}: {sent:?}");
    check(bed, file, offset, &got, len)
}

/// Wait until something has come about.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let mut patience = Patience::seconds(20);
    let mut step = Instant::now();
    while !done() {
        std::thread::sleep(Duration::from_micros(300));
        if step.elapsed() >= Patience::STEP {
            step = Instant::now();
            ensure!(patience.spend(), "it has not come about that {what}");
        }
    }
    Ok(())
}

/// Wait until the module's threads have done all that they were told to.
pub fn settle() -> Result<()> {
    wait_until("the module's threads are idle", taskqueue::idle)
}

/// Whether a page is there and valid.
pub fn ready(file: &File, pindex: u64) -> bool {
    vm::resident(file.object, pindex).is_some_and(|p| !p.is_busy() && p.fields().valid != 0)
}

/// Pages in the middle of a stream's first window here: behind what its first
/// call reads ahead, and behind the gap that is left for the second one.
const WINDOW: std::ops::Range<u64> = 150..350;

/// The gap that is left there for the second call.
const GAP: std::ops::Range<u64> = 116..148;

/// Send the beginning of a file, and wait for the window that comes of it.
fn begin_stream(bed: &Bed, file: &File) -> Result<()> {
    send(bed, file, 0, 16 * P, 100)?;
    settle()?;
    ensure!(ahead("pages") > 0, "nothing is read ahead: {:?}", sysctl::counters());
    wait_until("a window is there", || WINDOW.clone().all(|pindex| ready(file, pindex)))
}

/// The beginning of a file is the beginning of a stream: what comes next is
/// valid before anybody asks for it, but for a gap at the most.
fn stream(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    let file = contiguous(bed);
    let before = counter("calls_async");
    begin_stream(bed, &file)?;
    for offset in (16 * P..WINDOW.end * P - 50_000).step_by(50_000) {
        send(bed, &file, offset, 50_000, 100)?;
    }
    let calls = counter("calls_async") - before;
    ensure!(calls <= 3, "{calls} calls of the pager for what was read ahead");
    ensure!(ahead("pages") >= 200 && ahead("windows") > 0, "{:?}", sysctl::counters());
    wait_until("no window keeps the file's object", || !vm::is_paging(file.object))
}

/// Pages on their way to a socket show where the consumer is: the windows go
/// on, up to the end of the file, with hardly a miss.
fn stream_seen(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    let file = contiguous_of(bed, 3 * BLOCKS);
    let size = file.inode.size;
    // On a slow host the disk is slow, and windows become large: never as
    // large as the file, since behind its last one nobody looks.
    ensure!(sysctl::number("vfs.asyncpager.readahead.max", 2 << 20) == 0, "sysctl");
    send(bed, &file, 0, 16 * P, 100)?;
    let (mut offset, step) = (16 * P, 40 * P);
    let before = counter("calls_async");
    while offset < size {
        let last = ((offset + step).min(size) - 1) / P;
        let busy = |p| vm::resident(file.object, p).is_some_and(|page| page.is_busy());
        wait_until("no page is in flight", || !(offset / P..=last).any(busy))?;
        let sending = Sending::begin(&file, offset, step, 100).context("the file is gone")?;
        // The socket takes its time: the timer sees where it is, once and again.
        let ran = callout::ran();
        wait_until("the timer has run", || callout::ran() > ran + 1 || callout::active() == 0)?;
        settle()?;
        finish(bed, &file, sending, offset, step)?;
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
fn stream_far(bed: &mut Bed, _: &Path) -> Result<()> {
    // On a slow host windows become large: never as large as the file.
    ensure!(sysctl::number("vfs.asyncpager.readahead.max", 8 << 20) == 0, "sysctl");
    undisturbed(|| {
        slow(bed, 20)?;
        let file = contiguous_of(bed, 4 * BLOCKS);
        begin_stream(bed, &file)?;
        let large = || (GAP.end..FAR.end).all(|pindex| ready(&file, pindex));
        wait_until("the window is large", || large() || callout::active() == 0)?;
        if !large() {
            return Ok(false);
        }
        callout::hold(true);
        let found = go_far(bed, &file);
        callout::hold(false);
        found
    })
}

/// Where the consumer of [`stream_far`] is seen again: far behind what the
/// timer looks at first.
const FAR: std::ops::Range<u64> = 1250..1314;

/// Go on to there while the timer does not look. False when it stood still for
/// so long that nobody looks at it any more.
fn go_far(bed: &Bed, file: &File) -> Result<bool> {
    // What it misses here tells where it is.
    send(bed, file, 16 * P, (GAP.end - 16) * P, 0)?;
    settle()?;
    wait_until("no page is in flight", || !vm::is_paging(file.object))?;
    let there = |pindex: &u64| vm::resident(file.object, *pindex).is_some();
    let end = (0..4 * BLOCKS * BLOCK / P).rfind(there).context("no page is there")? + 1;
    let (missed, used) = (counter("calls_async"), ahead("used"));
    let (offset, len) = (FAR.start * P, (FAR.end - FAR.start) * P);
    send(bed, file, GAP.end * P, offset - GAP.end * P, 0)?;
    let sending = Sending::begin(file, offset, len, 0).context("the file is gone")?;
    let ran = callout::ran();
    callout::hold(false);
    let found = || ahead("used") > used + 1000;
    let over = || callout::ran() >= ran + LOOKS || callout::active() == 0;
    wait_until("the timer has looked", || found() || over())?;
    ensure!(found() || callout::ran() < ran + LOOKS, "nobody sees the consumer");
    let found = found();
    if found {
        // Behind the gap that is left for the consumer, if one is.
        wait_until("the next window is there", || ready(file, end + 150))?;
    }
    let missed = counter("calls_async") - missed;
    ensure!(missed == 0, "{missed} misses where everything was read ahead");
    finish(bed, file, sending, offset, len)?;
    Ok(found)
}

/// Looks of the timer in which it must have looked everywhere.
const LOOKS: u64 = 32;

/// Do what is spoilt when the host stands still in the middle of it, until it
/// does not.
fn undisturbed(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..20 {
        if done()? {
            return Ok(());
        }
    }
    bail!("the host stands still all the time")
}

/// What was not read for a long time is not made up for at once.
fn stream_burst(bed: &mut Bed, _: &Path) -> Result<()> {
    ensure!(sysctl::number("vfs.asyncpager.readahead.max", 3000 * P as u32) == 0, "sysctl");
    ensure!(sysctl::number("vfs.asyncpager.readahead.poll", 500) == 0, "sysctl");
    undisturbed(|| {
        let milliseconds = 40;
        let is_fast = |begin: Instant| begin.elapsed() < Duration::from_millis(2 * milliseconds);
        // What the disk has taken before is forgotten after so many.
        for _ in 0..8 {
            let begin = Instant::now();
            slow(bed, milliseconds)?;
            if !is_fast(begin) {
                return Ok(false);
            }
        }
        let file = contiguous_of(bed, 4 * BLOCKS);
        callout::hold(true);
        taskqueue::hold(true);
        let begin = Instant::now();
        send(bed, &file, 0, 16 * P, 100)?;
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

/// Begin a stream whose window is in flight until somebody waits for it, or
/// nobody does. The timer is held.
fn window_in_flight(bed: &Bed, file: &File) -> Result<()> {
    callout::hold(true);
    taskqueue::hold(true);
    send(bed, file, 0, 16 * P, 100)?;
    bed.disk.behave(Manners { latency: Duration::from_secs(600).into(), ..Manners::default() });
    taskqueue::hold(false);
    settle()?;
    ensure!(ahead("pages") > 0, "there is no window");
    bed.disk.behave(Manners { latency: Duration::from_millis(20).into(), ..Manners::default() });
    Ok(())
}

/// Do something while the disk has a window, which it brings as soon as
/// somebody waits for a busied page, or when it is done. How often was waited.
fn waits_while<T>(bed: &Bed, act: impl FnOnce() -> T) -> (T, u64) {
    let waits = || vm::BUSY_WAITS.load(Ordering::Relaxed);
    let (before, over) = (waits(), AtomicBool::new(false));
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            while waits() == before && !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_micros(300));
            }
            bed.disk.hurry();
        });
        let done = act();
        over.store(true, Ordering::Relaxed);
        done
    });
    (done, waits() - before)
}

/// A consumer that comes before a window does finds a gap to ask for, and
/// does not wait for pages in flight.
fn stream_gap(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 20)?;
    let file = contiguous(bed);
    window_in_flight(bed, &file)?;
    callout::hold(false);
    let (sent, waits) =
        waits_while(bed, || [16 * P, 116 * P].map(|offset| send(bed, &file, offset, 16 * P, 0)));
    sent.into_iter().collect::<Result<()>>()?;
    ensure!(waits == 0, "the consumer has waited {waits} times for a window");
    Ok(())
}

/// Random access is never followed.
fn stream_random(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 2)?;
    let file = contiguous(bed);
    let mut rng = fastrand::Rng::with_seed(7);
    for _ in 0..40 {
        // Never two that touch.
        send(bed, &file, (1 + rng.u64(..SIZE / BLOCK / 4) * 4) * BLOCK, 65536, 0)?;
        vm::reclaim(file.object, 1, &mut rng);
    }
    settle()?;
    ensure!(ahead("pages") == 0, "{} pages were read ahead", ahead("pages"));
    Ok(())
}

/// What was read ahead and freed again counts, and is read once more.
fn stream_lost(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 2)?;
    let file = contiguous(bed);
    begin_stream(bed, &file)?;
    vm::reclaim(file.object, 1, &mut fastrand::Rng::with_seed(1));
    send(bed, &file, 200 * P, 16 * P, 0)?;
    ensure!(ahead("wasted") > 0, "not counted: {:?}", sysctl::counters());
    Ok(())
}

/// A window goes on where pages are there already.
fn stream_over(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 3)?;
    let file = contiguous(bed);
    for first in [140, 170, 300] {
        send(bed, &file, first * P, 20 * P, 0)?;
    }
    begin_stream(bed, &file)?;
    send(bed, &file, 0, WINDOW.end * P, 0)
}

/// A bad sector under a window fails only who needs it.
fn stream_error(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 3)?;
    let file = contiguous(bed);
    let bad = 10 * BLOCK + 300 * P;
    let said = kernel::messages().len();
    let manners = Manners {
        latency: Duration::from_millis(3).into(),
        bad: vec![(bad..bad + 512, libc::EIO)],
        ..Manners::default()
    };
    bed.disk.behave(manners);
    send(bed, &file, 0, 16 * P, 100)?;
    wait_until("a buf of a window has failed", || ahead("errors") > 0)?;
    wait_until("its pages are gone", || vm::resident(file.object, 300).is_none())?;
    ensure!(kernel::messages().len() == said, "printed for a read that nobody asked for");
    let mut got = Vec::new();
    let sending = Sending::begin(&file, 300 * P, P, 0).context("the file is gone")?;
    let sent = sending.finish(false, |bytes| got.extend_from_slice(bytes));
    ensure!(sent == Err(libc::EIO), "the bad sector itself: {sent:?}");
    for pindex in [16, 299, 301, 500] {
        send(bed, &file, pindex * P, P, 0)?;
    }
    bed.disk.behave(Manners::default());
    send(bed, &file, 0, SIZE, 0)
}

/// Without memory nothing is read ahead, and everything is right.
fn stream_memory(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 2)?;
    let file = contiguous(bed);
    vm::NO_MEMORY.store(true, Ordering::Relaxed);
    let failed = vm::ALLOCS_FAILED.load(Ordering::Relaxed);
    for offset in (0..300 * P).step_by(70 * PAGE) {
        send(bed, &file, offset, 70 * P, 0)?;
    }
    settle()?;
    let failed = vm::ALLOCS_FAILED.load(Ordering::Relaxed) - failed;
    vm::NO_MEMORY.store(false, Ordering::Relaxed);
    ensure!(failed == 0, "{failed} pages asked for that memory has no room for");
    ensure!(ahead("not_memory") > 0, "not counted: {:?}", sysctl::counters());
    ensure!(ahead("pages") == 0, "{} pages read without memory", ahead("pages"));
    Ok(())
}

/// Truncation waits for windows and for nothing else.
fn stream_cut(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 4)?;
    for round in 0..6 {
        let file = contiguous(bed);
        send(bed, &file, 0, 16 * P, 100)?;
        std::thread::sleep(Duration::from_micros(round * 400));
        file.set_size(100 * P + 77);
        file.set_size(SIZE);
        send(bed, &file, 0, 100 * P, 0)?;
    }
    Ok(())
}

/// A file grows while its last page is in flight: behind its old end there is
/// nothing but what the file has there, and the stream goes on past it.
fn stream_grows(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 20)?;
    let file = contiguous(bed);
    let (last, end) = (250, 250 * P + 1024);
    file.set_size(end);
    window_in_flight(bed, &file)?;
    let in_flight = vm::resident(file.object, last).is_some_and(|page| page.is_busy());
    ensure!(in_flight, "the last page is not in flight: {:?}", sysctl::counters());
    let ((), waits) = waits_while(bed, || file.set_size(SIZE));
    ensure!(waits > 0, "nobody has waited for the last page");
    // What lies between the old end and the end of its page was never written.
    let mut got = Vec::new();
    let sending = Sending::begin(&file, last * P, P, 0).context("the file is gone")?;
    let sent = sending.finish(false, |bytes| got.extend_from_slice(bytes));
    let mut right = bed.bytes(&file, last * P, PAGE);
    right[1024..].fill(0);
    ensure!(sent == Ok(()) && got == right, "stale bytes behind the old end: {sent:?}");
    // The consumer misses the gap, and what is read ahead passes the old end.
    let before = ahead("pages");
    send(bed, &file, 16 * P, (last - 16) * P, 0)?;
    settle()?;
    // The timer could have seen it behind the gap before it missed that.
    callout::hold(false);
    ensure!(ahead("pages") > before, "the stream ends where the file did");
    wait_until("there is a window behind the old end", || ready(&file, last + 150))?;
    send(bed, &file, (last + 1) * P, SIZE - (last + 1) * P, 0)
}

/// A forced unmount, and unloading, with windows in flight.
fn stream_unmount(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 4)?;
    let mut file = contiguous(bed);
    for round in 0..8 {
        send(bed, &file, 0, 16 * P, 100)?;
        std::thread::sleep(Duration::from_micros(round * 300));
        file = bed.remount(&file, true);
        warm(&file);
    }
    // Its timer is pending then as well, however long all this takes.
    callout::hold(true);
    let before = ahead("pages");
    send(bed, &file, 0, 16 * P, 100)?;
    ensure!(callout::active() == 1, "{} timers are pending", callout::active());
    settle()?;
    ensure!(ahead("pages") > before, "there is no window");
    let unloaded = bed.module.take().map(|module| module.unload());
    callout::hold(false);
    ensure!(unloaded == Some(Ok(())), "kldunload with windows in flight: {unloaded:?}");
    Ok(())
}

/// Numbers out of bounds are refused, and what is switched off does nothing.
fn stream_switches(bed: &mut Bed, _: &Path) -> Result<()> {
    let name = |name: &str| format!("vfs.asyncpager.readahead.{name}");
    for (limit, good, bad) in [
        ("max", 1 << 20, 100),
        ("initial", 65536, 1),
        ("in_flight", 7, 0),
        ("latency_min", 0, u32::MAX),
        ("poll", 1000, 0),
    ] {
        ensure!(sysctl::number(&name(limit), good) == 0, "{limit}={good} is refused");
        let errno = sysctl::number(&name(limit), bad);
        ensure!(errno == libc::EINVAL, "{limit}={bad}: errno {errno}");
    }
    for (switch, off, on) in [("enabled", 0, 1), ("latency_min", 10_000_000, 0)] {
        ensure!(sysctl::number(&name(switch), off) == 0, "{switch}={off} is refused");
        slow(bed, 20)?;
        let file = contiguous(bed);
        send(bed, &file, 0, 16 * P, 100)?;
        settle()?;
        ensure!(ahead("pages") == 0, "{} pages read with {switch}={off}", ahead("pages"));
        ensure!(sysctl::number(&name(switch), on) == 0, "{switch}={on} is refused");
    }
    Ok(())
}

/// More devices than the module tells apart, all in use at once: afterwards
/// each is known to be idle, and streams from it are read ahead.
fn stream_devices(bed: &mut Bed, _: &Path) -> Result<()> {
    ensure!(sysctl::number("vfs.asyncpager.readahead.in_flight", 1) == 0, "sysctl");
    let blocks: Vec<_> = (10..50).map(Some).collect();
    let bytes = 60 * BLOCK as usize;
    let mut disks: Vec<_> = (0..70).map(|seed| bed.other_disk(bytes, seed)).collect();
    let files: Vec<_> = disks.iter_mut().map(|d| d.file(BLOCK, &blocks, 40 * BLOCK)).collect();
    let behave = |latency: Duration| {
        let manners = Manners { latency: latency.into(), ..Manners::default() };
        disks.iter().for_each(|other| other.disk.behave(manners.clone()));
    };
    files.iter().for_each(|file| warm(file));
    behave(Duration::from_secs(600));
    let sending = |file| Sending::begin(file, 300 * P, P, 0).context("the file is gone");
    let all = files.iter().map(|file| sending(file)).collect::<Result<Vec<_>>>()?;
    // Their latency is worth hiding.
    std::thread::sleep(Duration::from_millis(3));
    behave(Duration::from_millis(10));
    disks.iter().for_each(|other| other.disk.hurry());
    all.into_iter().zip(&files).try_for_each(|(one, file)| finish(bed, file, one, 300 * P, P))?;
    for (i, file) in files.iter().enumerate().filter(|(i, _)| i % 9 == 0 || *i > 60) {
        send(bed, file, 0, 16 * P, 100)?;
        wait_until(&format!("device {i} is read ahead"), || ready(file, 250))?;
    }
    settle()
}

/// Pages that one run of the timer may look up.
const BUDGET: usize = 256;

/// However many streams there are, one run of the timer looks at few pages,
/// and each stream is looked at.
fn stream_many(bed: &mut Bed, _: &Path) -> Result<()> {
    // No stream comes to its end, and nothing is left to be looked at.
    ensure!(sysctl::number("vfs.asyncpager.readahead.max", 1 << 20) == 0, "sysctl");
    slow(bed, 20)?;
    let mut files: Vec<_> = (0..60).map(|_| contiguous(bed)).collect();
    undisturbed(|| {
        for file in &mut files {
            *file = bed.remount(file, true);
            warm(file);
        }
        let begin = Instant::now();
        let sending = |file| Sending::begin(file, 0, 16 * P, 100).context("the file is gone");
        let all = files.iter().map(|file| sending(file)).collect::<Result<Vec<_>>>()?;
        all.into_iter().zip(&files).try_for_each(|(one, f)| finish(bed, f, one, 0, 16 * P))?;
        let (mut seen, mut most) = (BTreeSet::new(), 0);
        callout::looked();
        while seen.len() < files.len() && begin.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_micros(300));
            let (pages, objects) = callout::looked();
            most = most.max(pages);
            seen.extend(objects);
        }
        ensure!(most <= BUDGET + BUDGET / 8, "{most} pages are looked up at a time");
        Ok(seen.len() == files.len())
    })
}

/// Where the indirect blocks of the files here are.
fn maps(bed: &Bed) -> std::ops::Range<u64> {
    let end = bed.disk.image().len() as u64;
    end / 2..end
}

/// Begin streams whose block maps do not come.
fn hang(bed: &Bed) -> Result<Vec<Arc<File>>> {
    let map: Vec<_> = (10..10 + BLOCKS).map(Some).collect();
    let files: Vec<_> = (0..10).map(|_| bed.synthetic(BLOCK, &map, SIZE, true)).collect();
    let latency = Duration::from_millis(5).into();
    let late = Some((maps(bed), Duration::from_secs(600)));
    bed.disk.behave(Manners { latency, late, ..Manners::default() });
    let put_off = ahead("not_thread");
    files.iter().try_for_each(|file| send(bed, file, 0, 16 * P, 100))?;
    wait_until("the disk has its share of threads", || ahead("not_thread") > put_off)?;
    Ok(files)
}

/// Let everything come.
fn unhang(bed: &Bed) {
    let latency = Duration::from_millis(5).into();
    bed.disk.behave(Manners { latency, ..Manners::default() });
    bed.disk.hurry();
}

/// A disk that does not answer leaves threads to the others, and unloading
/// gives up after a while. When it is back, everything goes on.
fn stream_hung(bed: &mut Bed, _: &Path) -> Result<()> {
    ensure!(sysctl::number("vfs.asyncpager.readahead.guess", 0) == 0, "sysctl");
    slow(bed, 5)?;
    let map: Vec<_> = (10..10 + BLOCKS).map(Some).collect();
    let mut other = bed.other_disk(bed.disk.image().len(), 7);
    let latency = Duration::from_millis(10).into();
    other.disk.behave(Manners { latency, ..Manners::default() });
    undisturbed(|| {
        let begin = Instant::now();
        let files = hang(bed)?;
        let quick = other.file(BLOCK, &map, SIZE);
        warm(&quick);
        send(bed, &quick, 0, 16 * P, 100)?;
        wait_until("the other disk is read ahead", || ready(&quick, 200))?;
        unhang(bed);
        // The timer gives up those that stand still for so long.
        let over = || begin.elapsed() > Duration::from_millis(1900);
        let there = || files.iter().all(|file| ready(file, 200));
        wait_until("those that were put off are read", || there() || over())?;
        Ok(there())
    })?;
    settle()?;
    let files = hang(bed)?;
    clock::hurry(true);
    let refused = bed.module.as_ref().map(|module| module.unload());
    clock::hurry(false);
    ensure!(refused == Some(Err(libc::EBUSY)), "kldunload with a disk that hangs: {refused:?}");
    let quick = other.file(BLOCK, &map, SIZE);
    warm(&quick);
    send(bed, &quick, 0, 16 * P, 100)?;
    wait_until("the other disk is read ahead again", || ready(&quick, 200))?;
    unhang(bed);
    settle()?;
    files.iter().try_for_each(|file| send(bed, file, 0, SIZE, 0))?;
    settle()
}

/// What is learnt from one user's streams does not change how another's begin.
fn stream_users(bed: &mut Bed, _: &Path) -> Result<()> {
    const FAR: u64 = 1000;
    slow(bed, 20)?;
    let begin = |uid: u32| -> Result<Arc<File>> {
        let file = contiguous_of(bed, 4 * BLOCKS);
        cpu::as_user(uid, || send(bed, &file, 0, 16 * P, 100))?;
        Ok(file)
    };
    undisturbed(|| {
        let file = begin(1001)?;
        settle()?;
        // A slow consumer: each look of the timer finds it a little further.
        for at in 4..100 {
            let sending =
                Sending::begin(&file, at * 4 * P, 4 * P, 0).context("the file is gone")?;
            let ran = callout::ran();
            wait_until("the timer has run", || callout::ran() > ran + 1 || callout::active() == 0)?;
            finish(bed, &file, sending, at * 4 * P, 4 * P)?;
        }
        let slow = begin(1001)?;
        let new = begin(1002)?;
        wait_until("a new user's window is there", || ready(&new, FAR))?;
        settle()?;
        // With the other's rate, it would have been as short as this one.
        Ok(vm::resident(slow.object, FAR).is_none())
    })
}

/// Begin to send with neither the block map nor a page in memory.
pub fn begin_forgotten(file: &File, offset: u64, len: u64) -> Result<Sending> {
    // Nor does what came before bring it there meanwhile.
    taskqueue::hold(true);
    wait_until("no buf is in flight", || buf::out() == 0)?;
    file.maps.forget();
    vm::reclaim(file.object, 1, &mut fastrand::Rng::with_seed(1));
    let sending = Sending::begin(file, offset, len, 0).context("the file is gone")?;
    taskqueue::hold(false);
    Ok(sending)
}

/// The same from a place that sendfile need not wait for.
fn begin_cold(file: &File, offset: u64, len: u64) -> Result<Sending> {
    let waited = disk::waited();
    let sending = begin_forgotten(file, offset, len)?;
    ensure!(disk::waited() == waited, "sendfile has waited for the block map of {offset}");
    Ok(sending)
}

pub fn cold(bed: &Bed, file: &File, offset: u64, len: u64) -> Result<()> {
    let sending = begin_cold(file, offset, len)?;
    finish(bed, file, sending, offset, len)
}

/// sendfile does not wait for an indirect block.
fn map(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 2)?;
    let file = contiguous(bed);
    for (offset, len) in [(12, 1), (13, 40), (50, 70), (119, 1), (20, 3)] {
        cold(bed, &file, offset * BLOCK + 1000, len * BLOCK - 1000)?;
    }
    // From the blocks in the inode on, over to those that are not.
    cold(bed, &file, 10 * BLOCK, 20 * BLOCK)?;
    cold(bed, &file, SIZE - 9000, 9000)?;
    let read = counter("maps_read");
    ensure!(read >= 6, "{read} requests read their block map");
    Ok(())
}

/// Two levels of them, in bufs of any shape.
fn map_levels(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 2)?;
    let blocks: Vec<_> = (0..900).map(|i| Some(if i % 5 == 0 { 2000 - i } else { i })).collect();
    for unmapped in [true, false] {
        let file = bed.synthetic(4096, &blocks, 900 * P - 5, unmapped);
        for (first, count) in [(12, 5), (520, 10), (524, 1), (523, 100), (600, 256), (890, 10)] {
            cold(bed, &file, first * P, count * P)?;
        }
    }
    Ok(())
}

/// Holes at every level.
fn map_holes(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 2)?;
    let one: Vec<_> = (0..400).map(|i| (i % 3 != 1).then_some(i)).collect();
    let file = bed.synthetic(4096, &one, 400 * P - 5, true);
    for first in [12, 13, 14, 200, 399] {
        cold(bed, &file, first * P, 60 * P)?;
    }
    // Nothing but its very end, two levels down.
    let mut sparse = vec![None; 2000];
    sparse[1999] = Some(77);
    let file = bed.synthetic(4096, &sparse, 2000 * P, true);
    for first in [12, 530, 1500, 1998] {
        cold(bed, &file, first * P, 30 * P)?;
    }
    Ok(())
}

/// An indirect block that cannot be read fails the request, once.
fn map_error(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    let file = contiguous(bed);
    let place = file.inode.indirect.place(-12).context("no indirect block")? as u64 * 512;
    let bad = vec![(place..place + BLOCK, libc::EIO)];
    bed.disk.behave(Manners { bad, ..Manners::default() });
    let sending = begin_cold(&file, 20 * BLOCK, BLOCK)?;
    let sent = sending.finish(false, |_| ());
    ensure!(sent == Err(libc::EIO), "{sent:?}");
    bed.disk.behave(Manners { gone: true, ..Manners::default() });
    let sent = begin_cold(&file, 20 * BLOCK, BLOCK)?.finish(false, |_| ());
    ensure!(sent == Err(libc::ENXIO), "{sent:?}");
    bed.disk.behave(Manners::default());
    cold(bed, &file, 20 * BLOCK, BLOCK)
}

/// A wait that is not worth hiding is none, on a device that is as fast as
/// it was lately.
fn map_fast(bed: &mut Bed, _: &Path) -> Result<()> {
    ensure!(sysctl::number("vfs.asyncpager.readahead.latency_min", 9_000) == 0, "sysctl");
    let file = contiguous(bed);
    undisturbed(|| {
        let before = counter("maps_read");
        let again = || -> Result<u64> {
            let sending = begin_forgotten(&file, 30 * BLOCK, BLOCK)?;
            finish(bed, &file, sending, 30 * BLOCK, BLOCK)?;
            Ok(counter("maps_read") - before)
        };
        // Nothing is known of what has been mounted just now.
        let mount = || {
            // SAFETY: a live mount that nobody else looks at now.
            unsafe { (*(*file.vnode).v_mount).mnt_gen += 1 }
        };
        mount();
        bed.disk.behave(Manners::default());
        let (new, fast) = (again()?, again()?);
        // A slow transfer is remembered for a while.
        bed.disk
            .behave(Manners { latency: Duration::from_millis(60).into(), ..Manners::default() });
        send(bed, &file, 0, P, 0)?;
        bed.disk.behave(Manners::default());
        (1..5).try_for_each(|i| send(bed, &file, i * BLOCK, P, 0))?;
        let slow = again()?;
        (1..60).try_for_each(|i| send(bed, &file, i / 7 * BLOCK + (1 + i % 7) * P, P, 0))?;
        let long_ago = again()?;
        mount();
        Ok([new, fast, slow, long_ago, again()?] == [1, 1, 2, 2, 3])
    })
}

/// Whoever else asks for a block gets the true answer, and waits for it.
fn map_others(bed: &mut Bed, _: &Path) -> Result<()> {
    use asyncpager::kpi::sys;

    use crate::{locks::VnodeLocked, vfs};
    slow(bed, 5)?;
    let file = contiguous(bed);
    let _locked = VnodeLocked::new(file.vnode, false, "VOP_READ");
    for code in [0, sys::SYS_sendfile as u32] {
        file.maps.forget();
        let (mut place, mut after) = (-1, 0);
        let error = cpu::in_syscall(code, || {
            // SAFETY: a VOP's argument block, live for the call. No page of
            // the block is busied: this is cluster_read(), not sendfile.
            unsafe {
                let mut ap: sys::vop_bmap_args = std::mem::zeroed();
                (ap.a_vp, ap.a_bn) = (file.vnode, 20);
                (ap.a_bnp, ap.a_runp) = (&mut place, &mut after);
                vfs::vop_bmap_apv(std::ptr::null_mut(), &mut ap)
            }
        });
        ensure!(error == 0 && place == (30 * BLOCK / 512) as i64, "errno {error}, {place}");
    }
    Ok(())
}
