// SPDX-License-Identifier: BSD-2-Clause
//! Bufs: none left, all of them reading ahead, and requests with a deferred map that
//! do not get the bufs or pages they need.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{
    consumers::sendfile::{self, Sending},
    disk::behaviour::{Behaviour, Latency},
    ffs::file::File,
    kernel::{
        buf, proc,
        resident::{self, Page},
        shortage,
        sysctl::{self, ahead, counter},
        taskqueue, vm_object,
        vnode::VnodeLocked,
    },
    kld::{module::Module, options::Options},
    scenarios::{
        fixture::{Fixture, Run},
        steps::{BLOCK, P, begin_forgotten, finish, send, slow, wait_until},
    },
};

/// All of them, by name.
pub const ALL: &[(&str, Run)] = &[
    ("bufs-none", bufs_none),
    ("bufs-none-no-memory", bufs_none_no_memory),
    ("bufs-readahead", bufs_readahead),
    ("bufs-map-starved", bufs_map_starved),
    ("promise-not-kept", promise_not_kept),
    ("map-truncated", map_truncated),
    ("use-buf-pager-off", use_buf_pager_off),
    ("bufs-hung", bufs_hung),
    ("retry-truncated", retry_truncated),
];

/// Bufs of the module here, and how many of them requests to one device may have: half
/// of those that are not reserved.
const BUFS: usize = 16;
const REQUESTS: usize = (BUFS - BUFS / 8) / 2;

/// Load the module anew with so few bufs.
fn few_bufs(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    if let Some(module) = fixture.module.take() {
        module.unload().map_err(|errno| anyhow!("kldunload, errno {errno}"))?;
    }
    let tunables = vec![("vfs.asyncpager.bufs".to_string(), BUFS.to_string())];
    fixture.module = Some(Module::load(ko, &Options { tunables, ..Options::default() })?);
    ensure!(buf::bufs() == BUFS, "{} bufs", buf::bufs());
    Ok(())
}

/// A disk that answers when it is told to.
fn hang(fixture: &Fixture) {
    fixture
        .disk
        .behave(Behaviour { latency: Duration::from_secs(600).into(), ..Behaviour::default() });
}

/// Requests that have all bufs which requests may have.
fn take_all(fixture: &Fixture) -> Result<(Arc<File>, Vec<Sending>)> {
    let map: Vec<_> = (0..12).map(|i| Some(20 + i)).collect();
    let file = fixture.synthetic(BLOCK, &map, 12 * BLOCK, true);
    hang(fixture);
    let all: Option<Vec<_>> =
        (0..REQUESTS as u64).map(|i| Sending::begin(&file, 2 * i * P, P, 0)).collect();
    Ok((file, all.context("the file is gone")?))
}

/// The kinds of request that there are, each as a file and what to ask of it.
fn workloads(fixture: &Fixture) -> Vec<(&'static str, Arc<File>, u64, u64)> {
    let run = |from: u64, n: u64| (from..from + n).map(Some).collect::<Vec<_>>();
    // More runs than there are bufs.
    let apart: Vec<_> = (0..60).map(|i| Some(300 - i * 2)).collect();
    let holes: Vec<_> = (0..60).map(|i| (i % 3 != 1).then_some(400 + i)).collect();
    let small: Vec<_> = (0..100).map(|i| Some(i * 7 % 400)).collect();
    vec![
        ("whole", fixture.synthetic(BLOCK, &run(40, 8), 8 * BLOCK, true), P, 20 * P),
        ("mapped", fixture.synthetic(BLOCK, &run(50, 8), 8 * BLOCK - 700, false), P, 63 * P),
        ("fragmented", fixture.synthetic(4096, &apart, 60 * P, true), 3 * P, 50 * P),
        ("holes", fixture.synthetic(4096, &holes, 60 * P, true), 0, 60 * P),
        ("small", fixture.synthetic(1024, &small, 99 * 1024 + 77, true), 0, 90 * 1024),
        ("cold", fixture.synthetic(BLOCK, &run(100, 60), 60 * BLOCK, true), 20 * BLOCK, 3 * BLOCK),
        ("cold-fragmented", fixture.synthetic(4096, &apart, 60 * P, true), 20 * P, 30 * P),
    ]
}

/// With no buf at all every request waits, and none is lost.
fn bufs_none(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    few_bufs(fixture, ko)?;
    slow(fixture, 2)?;
    for (name, file, offset, len) in workloads(fixture) {
        // The block map is in memory, as after an earlier request.
        if !name.starts_with("cold") {
            let lbn = file.inode.map.len() as u64 - 1;
            let brought = file.maps.bring(file.disk(), &file.inode.indirect, lbn, file.mount.block);
            ensure!(brought.is_ok(), "{name}: the disk does not read");
        }
        without_bufs(fixture, &file, offset, len).context(name)?;
    }
    // The synchronous form too.
    ensure!(sysctl::write("vfs.asyncpager.sync", true) == 0, "sysctl");
    let map: Vec<_> = (0..4).map(|i| Some(70 + i * 2)).collect();
    let file = fixture.synthetic(BLOCK, &map, 4 * BLOCK, true);
    let (other, all) = take_all(fixture)?;
    let waits = counter("waited_buf");
    std::thread::scope(|scope| -> Result<()> {
        let fault = scope.spawn(|| {
            proc::attach();
            let pages: Vec<Page> = (6..12).map(|i| resident::grab(file.object, i)).collect();
            let locked = VnodeLocked::new(file.vnode, false, "vm_fault");
            let outcome = sendfile::getpages(&file, &pages, 2, 2, false);
            drop(locked);
            let valid = pages.iter().all(|page| page.is_valid(0, P as usize));
            pages.iter().for_each(|page| page.unbusy("vm_fault"));
            pages.iter().for_each(|page| resident::unwire(*page, true));
            (outcome.code, valid)
        });
        release(fixture, &other, all, waits, || fault.is_finished())?;
        let outcome = fault.join().map_err(|_| anyhow!("the fault panicked"))?;
        ensure!(outcome == (0, true), "{outcome:?}");
        Ok(())
    })
}

/// The same while memory is short as well.
fn bufs_none_no_memory(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    few_bufs(fixture, ko)?;
    slow(fixture, 2)?;
    shortage::NO_MEMORY.store(true, Ordering::Relaxed);
    shortage::NO_ITEMS.store(true, Ordering::Relaxed);
    for (name, file, offset, len) in workloads(fixture) {
        without_bufs(fixture, &file, offset, len).context(name)?;
    }
    Ok(())
}

/// Send a part of a file while other requests have all bufs.
fn without_bufs(fixture: &Fixture, file: &Arc<File>, offset: u64, len: u64) -> Result<()> {
    let (other, all) = take_all(fixture)?;
    let waits = counter("waited_buf");
    std::thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(|| -> Result<()> {
            proc::attach();
            send(fixture, file, offset, len, 8)
        });
        release(fixture, &other, all, waits, || sender.is_finished())?;
        sender.join().map_err(|_| anyhow!("the sender panicked"))?
    })?;
    fixture.disk.behave(Behaviour::default());
    vm_object::drop_pages(other.object);
    vm_object::drop_pages(file.object);
    Ok(())
}

/// Let the disk answer once a request waits for a buf, as `waits` did before, and
/// until all is over.
fn release(
    fixture: &Fixture,
    other: &Arc<File>,
    all: Vec<Sending>,
    waits: u64,
    is_finished: impl Fn() -> bool,
) -> Result<()> {
    // A request with a deferred map waits for the map first.
    wait_until("a request waits", || {
        counter("waited_buf") > waits || is_finished() || fixture.disk.waiting() > REQUESTS
    })?;
    fixture.disk.behave(Behaviour::default());
    wait_until("the requests are over", || {
        fixture.disk.complete_now();
        is_finished()
    })?;
    for (i, sending) in (0..).zip(all) {
        finish(fixture, other, sending, 2 * i * P, P)?;
    }
    Ok(())
}

/// However much is read ahead, requests find bufs.
fn bufs_readahead(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    few_bufs(fixture, ko)?;
    slow(fixture, 20)?;
    let streams: Vec<_> = (0..2)
        .map(|i| {
            // Each block takes a buf.
            let map: Vec<_> = (0..60).map(|b| Some(10 + i * 120 + b * 2)).collect();
            let file = fixture.synthetic(BLOCK, &map, 60 * BLOCK, true);
            let lbn = file.inode.map.len() as u64 - 1;
            let brought = file.maps.bring(file.disk(), &file.inode.indirect, lbn, BLOCK);
            brought.ok().map(|_| file)
        })
        .collect::<Option<_>>()
        .context("the disk does not read")?;
    hang(fixture);
    let all: Vec<_> = streams.iter().filter_map(|f| Sending::begin(f, 0, 16 * P, 100)).collect();
    let saturated = || ahead("not_buf") > 0;
    wait_until("read-ahead has all bufs that it may have", saturated)?;
    let out = buf::out();
    ensure!(out <= BUFS / 2 + 2 * all.len(), "{out} bufs are in flight");
    fixture.disk.behave(Behaviour::default());
    for (name, file, offset, len) in workloads(fixture) {
        send(fixture, &file, offset, len, 0).context(name)?;
    }
    let map: Vec<_> = (0..12).map(|i| Some(420 + i)).collect();
    let file = fixture.synthetic(BLOCK, &map, 12 * BLOCK, true);
    let waits = counter("waited_buf");
    for i in 0..12 {
        send(fixture, &file, i * BLOCK, BLOCK, 0)?;
    }
    let waits = counter("waited_buf") - waits;
    ensure!(waits == 0, "{waits} requests waited for a buf that read-ahead has");
    fixture.disk.complete_now();
    streams.iter().zip(all).try_for_each(|(file, sent)| finish(fixture, file, sent, 0, 16 * P))
}

/// A request that finds no buf after its block map was read continues as soon as a buf
/// is free.
fn bufs_map_starved(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    few_bufs(fixture, ko)?;
    slow(fixture, 2)?;
    let apart: Vec<_> = (0..60).map(|i| Some(300 - i * 2)).collect();
    let file = fixture.synthetic(4096, &apart, 60 * P, true);
    for _ in 0..3 {
        // What the disk has taken before is forgotten after so many.
        (0..8).try_for_each(|_| slow(fixture, 5))?;
        taskqueue::hold(true);
        wait_until("no buf is in flight", || buf::out() == 0)?;
        hang(fixture);
        let sending = begin_forgotten(&file, 20 * P, 30 * P)?;
        let map =
            fixture.synthetic(BLOCK, &[Some(20), Some(21), Some(22), Some(23)], 4 * BLOCK, true);
        let all: Option<Vec<_>> =
            (0..REQUESTS as u64 - 1).map(|i| Sending::begin(&map, 2 * i * P, P, 0)).collect();
        let all = all.context("the file is gone")?;
        // The map comes, and the bufs that are kept for such requests do not do.
        let place = file.inode.indirect.place(-12).context("no indirect block")? as u64 * 512;
        let waits = counter("waited_buf");
        fixture.disk.complete_range_now(place..place + P);
        wait_until("the request has the last bufs, and waits", || {
            buf::out() == BUFS && counter("waited_buf") > waits
        })?;
        ensure!(!sending.is_over(), "30 runs were read with a few bufs");
        fixture.disk.behave(Behaviour::default());
        wait_until("all is over", || {
            fixture.disk.complete_now();
            sending.is_over()
        })?;
        finish(fixture, &file, sending, 20 * P, 30 * P)?;
        for (i, sending) in (0..).zip(all) {
            finish(fixture, &map, sending, 2 * i * P, P)?;
        }
    }
    ensure!(counter("maps_read") >= 3, "{:?}", sysctl::counters());
    Ok(())
}

/// A deferred map that cannot be read as announced is served by the module itself: the
/// buffer pager would wait for pages of the same block that this thread has busied
/// behind the run.
fn promise_not_kept(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    let map: Vec<_> = (0..120).map(|b| Some(10 + b)).collect();
    let file = fixture.synthetic(BLOCK, &map, 120 * BLOCK - 700, true);
    for (offset, len) in [(97 * P, 600 * P), (103 * P, 400 * P), (90 * P, 600 * P)] {
        let before = counter("maps_read");
        // No page for the block map's pointers.
        shortage::NO_MEMORY.store(true, Ordering::Relaxed);
        let sending = begin_forgotten(&file, offset, len);
        shortage::NO_MEMORY.store(false, Ordering::Relaxed);
        finish(fixture, &file, sending?, offset, len)?;
        ensure!(counter("maps_read") == before, "the map was read without memory");
    }
    let calls = counter("calls_original") + counter("calls_emulated");
    ensure!(calls == 0, "{calls} calls were passed on");
    Ok(())
}

/// A file is truncated while its block map, or what it leads to, is read, and
/// its blocks are another file's at once. What is sent is the file's old bytes,
/// or zeros, and no error.
fn map_truncated(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    for late in [false, true] {
        let map: Vec<_> = (0..40).map(|b| Some(10 + b + if late { 60 } else { 0 })).collect();
        let file = fixture.synthetic(BLOCK, &map, 40 * BLOCK, true);
        hang(fixture);
        let (offset, len) = (20 * BLOCK, 4 * BLOCK);
        let sending = begin_forgotten(&file, offset, len)?;
        let place = file.inode.indirect.place(-12).context("no indirect block")? as u64 * 512;
        let first = file.inode.map[20].context("a hole")? as u64 * 512;
        if late {
            fixture.disk.complete_range_now(place..place + BLOCK);
            wait_until("the data are asked for", || fixture.disk.is_asked_for(first..first + len))?;
        }
        file.free_blocks();
        // Even its indirect block may hold anything now, and where it led to.
        if !late {
            (0..BLOCK / 512).for_each(|i| fixture.disk.write(place + i * 512, &[0x99; 512]));
        }
        (0..len / 512).for_each(|i| fixture.disk.write(first + i * 512, &[0x77; 512]));
        wait_until("it is over", || {
            fixture.disk.complete_now();
            sending.is_over()
        })?;
        let mut got = Vec::new();
        let sent = sending.finish(true, |bytes| got.extend_from_slice(bytes));
        ensure!(sent == Ok(()), "the connection is aborted: {sent:?}");
        let foreign = (0..len).find(|i| {
            let byte = got[*i as usize];
            byte != 0 && byte != fixture.byte(&file, offset + i)
        });
        ensure!(foreign.is_none(), "byte {foreign:?} is another file's, late: {late}");
        ensure!(got.len() as u64 == len, "{} bytes", got.len());
        fixture.disk.behave(Behaviour::default());
    }
    Ok(())
}

/// Nothing that is not one run reaches the kernel's generic getpages, which
/// vfs.ffs.use_buf_pager=0 chooses: it would take the blocks behind the first
/// run for the file's.
fn use_buf_pager_off(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    few_bufs(fixture, ko)?;
    for (name, file, offset, len) in workloads(fixture) {
        send(fixture, &file, offset, len, 8).context(name)?;
        vm_object::drop_pages(file.object);
    }
    let calls = counter("calls_original") + counter("calls_emulated");
    ensure!(calls == 0, "{calls} calls were passed on");
    // A call that no buf can hold is refused, and not passed on.
    let map: Vec<_> = (0..100).map(|b| Some(10 + b)).collect();
    let file = fixture.synthetic(BLOCK, &map, 100 * BLOCK, true);
    let pages: Vec<Page> = (0..257).map(|i| resident::grab(file.object, i)).collect();
    let outcome = sendfile::getpages_async(&file, &pages, 0, 0);
    ensure!(outcome.error == libc::EINVAL, "{outcome:?}");
    pages.iter().for_each(|page| resident::unwire(*page, true));
    Ok(())
}

/// Requests to one disk find bufs, however many requests wait for another disk that
/// does not answer.
fn bufs_hung(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    few_bufs(fixture, ko)?;
    let mut other = fixture.other_disk(fixture.disk.image().len(), 7);
    let map: Vec<_> = (0..12).map(|i| Some(20 + i)).collect();
    let (mine, quick) =
        (fixture.synthetic(BLOCK, &map, 12 * BLOCK, true), other.file(BLOCK, &map, 12 * BLOCK));
    hang(fixture);
    std::thread::scope(|scope| -> Result<()> {
        let hung: Vec<_> = (0..BUFS as u64 + 4)
            .map(|i| {
                let mine = &mine;
                scope.spawn(move || {
                    proc::attach();
                    Sending::begin(mine, 2 * i * P, P, 0)
                })
            })
            .collect();
        wait_until("some of them wait", || counter("waited_buf") > 0)?;
        let waits = counter("waited_buf");
        for i in 0..12 {
            send(fixture, &quick, i * BLOCK, BLOCK, 0)?;
        }
        let begun = hung.iter().filter(|hung| hung.is_finished()).count();
        fixture.disk.behave(Behaviour::default());
        wait_until("all have begun", || {
            fixture.disk.complete_now();
            hung.iter().all(|hung| hung.is_finished())
        })?;
        for (i, hung) in (0..).zip(hung) {
            let sending = hung.join().map_err(|_| anyhow!("a sender panicked"))?;
            finish(fixture, &mine, sending.context("the file is gone")?, 2 * i * P, P)?;
        }
        ensure!(begun < BUFS, "{begun} requests have bufs for a disk that hangs, {waits} wait");
        Ok(())
    })
}

/// A file is truncated between a failed read and its retry, and its blocks belong to
/// another file at once.
fn retry_truncated(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let map: Vec<_> = (0..8).map(|b| Some(10 + b)).collect();
    let file = fixture.synthetic(BLOCK, &map, 8 * BLOCK, true);
    let (first, ahead) = (10 * BLOCK + 8 * P, 10 * BLOCK + 20 * P);
    let bad = vec![(ahead..ahead + 512, libc::EIO)];
    let latency: Latency = Duration::from_secs(600).into();
    fixture.disk.behave(Behaviour { latency, bad, ..Behaviour::default() });
    let sending = Sending::begin(&file, 8 * P, 4 * P, 16).context("the file is gone")?;
    fixture.disk.complete_now();
    wait_until("it is read again", || counter("retries") == 1 && fixture.disk.waiting() == 1)?;
    file.free_blocks();
    (0..4 * P / 512).for_each(|i| fixture.disk.write(first + i * 512, &[0x77; 512]));
    fixture.disk.behave(Behaviour::default());
    wait_until("it is over", || {
        fixture.disk.complete_now();
        sending.is_over()
    })?;
    let mut got = Vec::new();
    let sent = sending.finish(true, |bytes| got.extend_from_slice(bytes));
    ensure!(sent == Ok(()), "{sent:?}");
    ensure!(got.iter().all(|byte| *byte == 0), "another file's bytes are sent");
    Ok(())
}
