// SPDX-License-Identifier: BSD-2-Clause
//! Read-ahead at its limits: errors, shortages, switches, many streams and devices.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    consumers::sendfile::Sending,
    disk::behaviour::Behaviour,
    ffs::file::File,
    host::{clock, memory::PAGE},
    kernel::{
        callout, proc, resident, shortage,
        sysctl::{self, ahead},
        systm,
    },
    scenarios::{
        fixture::{Fixture, Run},
        steps::{
            BLOCK, BLOCKS, P, SIZE, contiguous, contiguous_of, finish, ready, send, settle, slow,
            undisturbed, wait_until, warm,
        },
    },
};

/// All of them, by name.
pub const ALL: &[(&str, Run)] = &[
    ("stream-error", stream_error),
    ("stream-memory", stream_memory),
    ("stream-cut", stream_cut),
    ("stream-unmount", stream_unmount),
    ("stream-switches", stream_switches),
    ("stream-devices", stream_devices),
    ("stream-many", stream_many),
    ("stream-hung", stream_hung),
    ("stream-users", stream_users),
];

/// A bad sector under a window fails only the request for it.
fn stream_error(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 3)?;
    let file = contiguous(fixture);
    let bad = 10 * BLOCK + 300 * P;
    let said = systm::messages().len();
    let behaviour = Behaviour {
        latency: Duration::from_millis(3).into(),
        bad: vec![(bad..bad + 512, libc::EIO)],
        ..Behaviour::default()
    };
    fixture.disk.behave(behaviour);
    send(fixture, &file, 0, 16 * P, 100)?;
    wait_until("a buf of a window has failed", || ahead("errors") > 0)?;
    wait_until("its pages are gone", || resident::resident(file.object, 300).is_none())?;
    ensure!(systm::messages().len() == said, "a message about a read-ahead error");
    let mut got = Vec::new();
    let sending = Sending::begin(&file, 300 * P, P, 0).context("the file is gone")?;
    let sent = sending.finish(false, |bytes| got.extend_from_slice(bytes));
    ensure!(sent == Err(libc::EIO), "the bad sector itself: {sent:?}");
    for pindex in [16, 299, 301, 500] {
        send(fixture, &file, pindex * P, P, 0)?;
    }
    fixture.disk.behave(Behaviour::default());
    send(fixture, &file, 0, SIZE, 0)
}

/// Without memory nothing is read ahead, and everything is right.
fn stream_memory(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 2)?;
    let file = contiguous(fixture);
    shortage::NO_MEMORY.store(true, Ordering::Relaxed);
    let failed = shortage::ALLOCS_FAILED.load(Ordering::Relaxed);
    for offset in (0..300 * P).step_by(70 * PAGE) {
        send(fixture, &file, offset, 70 * P, 0)?;
    }
    settle()?;
    let failed = shortage::ALLOCS_FAILED.load(Ordering::Relaxed) - failed;
    shortage::NO_MEMORY.store(false, Ordering::Relaxed);
    ensure!(failed == 0, "{failed} pages asked for that memory has no room for");
    ensure!(ahead("not_memory") > 0, "not counted: {:?}", sysctl::counters());
    ensure!(ahead("pages") == 0, "{} pages read without memory", ahead("pages"));
    Ok(())
}

/// Truncation waits for windows and for nothing else.
fn stream_cut(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 4)?;
    for round in 0..6 {
        let file = contiguous(fixture);
        send(fixture, &file, 0, 16 * P, 100)?;
        std::thread::sleep(Duration::from_micros(round * 400));
        file.set_size(100 * P + 77);
        file.set_size(SIZE);
        send(fixture, &file, 0, 100 * P, 0)?;
    }
    Ok(())
}

/// A forced unmount, and unloading, with windows in flight.
fn stream_unmount(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 4)?;
    let mut file = contiguous(fixture);
    for round in 0..8 {
        send(fixture, &file, 0, 16 * P, 100)?;
        std::thread::sleep(Duration::from_micros(round * 300));
        file = fixture.remount(&file, true);
        warm(&file);
    }
    // Its timer is pending then as well, however long all this takes.
    callout::hold(true);
    let before = ahead("pages");
    send(fixture, &file, 0, 16 * P, 100)?;
    ensure!(callout::active() == 1, "{} timers are pending", callout::active());
    settle()?;
    ensure!(ahead("pages") > before, "there is no window");
    let unloaded = fixture.module.take().map(|module| module.unload());
    callout::hold(false);
    ensure!(unloaded == Some(Ok(())), "kldunload with windows in flight: {unloaded:?}");
    Ok(())
}

/// Numbers out of bounds are refused, and what is switched off does nothing.
fn stream_switches(fixture: &mut Fixture, _: &Path) -> Result<()> {
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
        slow(fixture, 20)?;
        let file = contiguous(fixture);
        send(fixture, &file, 0, 16 * P, 100)?;
        settle()?;
        ensure!(ahead("pages") == 0, "{} pages read with {switch}={off}", ahead("pages"));
        ensure!(sysctl::number(&name(switch), on) == 0, "{switch}={on} is refused");
    }
    Ok(())
}

/// More devices than the module tells apart, all in use at once: afterwards
/// each is known to be idle, and streams from it are read ahead.
fn stream_devices(fixture: &mut Fixture, _: &Path) -> Result<()> {
    ensure!(sysctl::number("vfs.asyncpager.readahead.in_flight", 1) == 0, "sysctl");
    let blocks: Vec<_> = (10..50).map(Some).collect();
    let bytes = 60 * BLOCK as usize;
    let mut disks: Vec<_> = (0..70).map(|seed| fixture.other_disk(bytes, seed)).collect();
    let files: Vec<_> = disks.iter_mut().map(|d| d.file(BLOCK, &blocks, 40 * BLOCK)).collect();
    let behave = |latency: Duration| {
        let behaviour = Behaviour { latency: latency.into(), ..Behaviour::default() };
        disks.iter().for_each(|other| other.disk.behave(behaviour.clone()));
    };
    files.iter().for_each(|file| warm(file));
    behave(Duration::from_secs(600));
    let sending = |file| Sending::begin(file, 300 * P, P, 0).context("the file is gone");
    let all = files.iter().map(|file| sending(file)).collect::<Result<Vec<_>>>()?;
    // Their latency is worth hiding.
    std::thread::sleep(Duration::from_millis(3));
    behave(Duration::from_millis(10));
    disks.iter().for_each(|other| other.disk.complete_now());
    all.into_iter()
        .zip(&files)
        .try_for_each(|(one, file)| finish(fixture, file, one, 300 * P, P))?;
    for (i, file) in files.iter().enumerate().filter(|(i, _)| i % 9 == 0 || *i > 60) {
        send(fixture, file, 0, 16 * P, 100)?;
        wait_until(&format!("device {i} is read ahead"), || ready(file, 250))?;
    }
    settle()
}

/// Pages that one run of the timer may look up.
const BUDGET: usize = 256;

/// However many streams there are, one run of the timer looks at few pages,
/// and each stream is looked at.
fn stream_many(fixture: &mut Fixture, _: &Path) -> Result<()> {
    // No stream comes to its end, and nothing is left to be looked at.
    ensure!(sysctl::number("vfs.asyncpager.readahead.max", 1 << 20) == 0, "sysctl");
    slow(fixture, 20)?;
    let mut files: Vec<_> = (0..60).map(|_| contiguous(fixture)).collect();
    undisturbed(|| {
        for file in &mut files {
            *file = fixture.remount(file, true);
            warm(file);
        }
        let begin = Instant::now();
        let sending = |file| Sending::begin(file, 0, 16 * P, 100).context("the file is gone");
        let all = files.iter().map(|file| sending(file)).collect::<Result<Vec<_>>>()?;
        all.into_iter().zip(&files).try_for_each(|(one, f)| finish(fixture, f, one, 0, 16 * P))?;
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
fn maps(fixture: &Fixture) -> std::ops::Range<u64> {
    let end = fixture.disk.image().len() as u64;
    end / 2..end
}

/// Begins streams while reads of their block maps hang.
fn hang(fixture: &Fixture) -> Result<Vec<Arc<File>>> {
    let map: Vec<_> = (10..10 + BLOCKS).map(Some).collect();
    let files: Vec<_> = (0..10).map(|_| fixture.synthetic(BLOCK, &map, SIZE, true)).collect();
    let latency = Duration::from_millis(5).into();
    let slow = Some((maps(fixture), Duration::from_secs(600)));
    fixture.disk.behave(Behaviour { latency, slow, ..Behaviour::default() });
    let put_off = ahead("not_thread");
    files.iter().try_for_each(|file| send(fixture, file, 0, 16 * P, 100))?;
    wait_until("the disk has its share of threads", || ahead("not_thread") > put_off)?;
    Ok(files)
}

/// Let everything come.
fn unhang(fixture: &Fixture) {
    let latency = Duration::from_millis(5).into();
    fixture.disk.behave(Behaviour { latency, ..Behaviour::default() });
    fixture.disk.complete_now();
}

/// A disk that does not answer leaves threads to the others, and unloading
/// gives up after a while. When it is back, everything goes on.
fn stream_hung(fixture: &mut Fixture, _: &Path) -> Result<()> {
    ensure!(sysctl::number("vfs.asyncpager.readahead.guess", 0) == 0, "sysctl");
    slow(fixture, 5)?;
    let map: Vec<_> = (10..10 + BLOCKS).map(Some).collect();
    let mut other = fixture.other_disk(fixture.disk.image().len(), 7);
    let latency = Duration::from_millis(10).into();
    other.disk.behave(Behaviour { latency, ..Behaviour::default() });
    undisturbed(|| {
        let begin = Instant::now();
        let files = hang(fixture)?;
        let quick = other.file(BLOCK, &map, SIZE);
        warm(&quick);
        send(fixture, &quick, 0, 16 * P, 100)?;
        wait_until("the other disk is read ahead", || ready(&quick, 200))?;
        unhang(fixture);
        // The timer gives up those that stand still for so long.
        let over = || begin.elapsed() > Duration::from_millis(1900);
        let there = || files.iter().all(|file| ready(file, 200));
        wait_until("those that were put off are read", || there() || over())?;
        Ok(there())
    })?;
    settle()?;
    let files = hang(fixture)?;
    clock::shorten_sleeps(true);
    let refused = fixture.module.as_ref().map(|module| module.unload());
    clock::shorten_sleeps(false);
    ensure!(refused == Some(Err(libc::EBUSY)), "kldunload with a disk that hangs: {refused:?}");
    let quick = other.file(BLOCK, &map, SIZE);
    warm(&quick);
    send(fixture, &quick, 0, 16 * P, 100)?;
    wait_until("the other disk is read ahead again", || ready(&quick, 200))?;
    unhang(fixture);
    settle()?;
    files.iter().try_for_each(|file| send(fixture, file, 0, SIZE, 0))?;
    settle()
}

/// A profile learnt from one user's streams does not change how another's begin.
fn stream_users(fixture: &mut Fixture, _: &Path) -> Result<()> {
    const FAR: u64 = 1000;
    slow(fixture, 20)?;
    let begin = |uid: u32| -> Result<Arc<File>> {
        let file = contiguous_of(fixture, 4 * BLOCKS);
        proc::as_user(uid, || send(fixture, &file, 0, 16 * P, 100))?;
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
            finish(fixture, &file, sending, at * 4 * P, 4 * P)?;
        }
        let slow = begin(1001)?;
        let new = begin(1002)?;
        wait_until("a new user's window is there", || ready(&new, FAR))?;
        settle()?;
        // With the other's rate, it would have been as short as this one.
        Ok(resident::resident(slow.object, FAR).is_none())
    })
}
