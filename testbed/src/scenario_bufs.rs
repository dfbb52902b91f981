// SPDX-License-Identifier: BSD-2-Clause
//! Scenarios of bufs: none left, all of them reading ahead, and what becomes of
//! a request that was promised a run and does not get what it needs.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{
    bed::{Bed, Run},
    buf, cpu,
    disk::Manners,
    kernel::{Module, Options},
    locks::VnodeLocked,
    scenario_ahead::{BLOCK, P, begin_forgotten, finish, send, slow, wait_until},
    sendfile::{self, Sending},
    sysctl::{self, ahead, counter},
    taskqueue, uma,
    vfs::File,
    vm::{self, Page},
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

/// Bufs that the module has here, and how many of them requests to one device may
/// have: as many as they leave, but for those that are kept.
const BUFS: usize = 16;
const REQUESTS: usize = (BUFS - BUFS / 8) / 2;

/// Load the module anew with so few bufs.
fn few_bufs(bed: &mut Bed, ko: &Path) -> Result<()> {
    if let Some(module) = bed.module.take() {
        module.unload().map_err(|errno| anyhow!("kldunload, errno {errno}"))?;
    }
    let tunables = vec![("vfs.asyncpager.bufs".to_string(), BUFS.to_string())];
    bed.module = Some(Module::load(ko, &Options { tunables, ..Options::default() })?);
    ensure!(buf::bufs() == BUFS, "{} bufs", buf::bufs());
    Ok(())
}

/// A disk that answers when it is told to.
fn hang(bed: &Bed) {
    bed.disk.behave(Manners { latency: Duration::from_secs(600).into(), ..Manners::default() });
}

/// Requests that have all bufs which requests may have.
fn take_all(bed: &Bed) -> Result<(Arc<File>, Vec<Sending>)> {
    let map: Vec<_> = (0..12).map(|i| Some(20 + i)).collect();
    let file = bed.synthetic(BLOCK, &map, 12 * BLOCK, true);
    hang(bed);
    let all: Option<Vec<_>> =
        (0..REQUESTS as u64).map(|i| Sending::begin(&file, 2 * i * P, P, 0)).collect();
    Ok((file, all.context("the file is gone")?))
}

/// The kinds of request that there are, each as a file and what to ask of it.
fn workloads(bed: &Bed) -> Vec<(&'static str, Arc<File>, u64, u64)> {
    let run = |from: u64, n: u64| (from..from + n).map(Some).collect::<Vec<_>>();
    // More runs than there are bufs.
    let apart: Vec<_> = (0..60).map(|i| Some(300 - i * 2)).collect();
    let holes: Vec<_> = (0..60).map(|i| (i % 3 != 1).then_some(400 + i)).collect();
    let small: Vec<_> = (0..100).map(|i| Some(i * 7 % 400)).collect();
    vec![
        ("whole", bed.synthetic(BLOCK, &run(40, 8), 8 * BLOCK, true), P, 20 * P),
        ("mapped", bed.synthetic(BLOCK, &run(50, 8), 8 * BLOCK - 700, false), P, 63 * P),
        ("fragmented", bed.synthetic(4096, &apart, 60 * P, true), 3 * P, 50 * P),
        ("holes", bed.synthetic(4096, &holes, 60 * P, true), 0, 60 * P),
        ("small", bed.synthetic(1024, &small, 99 * 1024 + 77, true), 0, 90 * 1024),
        ("cold", bed.synthetic(BLOCK, &run(100, 60), 60 * BLOCK, true), 20 * BLOCK, 3 * BLOCK),
        ("cold-fragmented", bed.synthetic(4096, &apart, 60 * P, true), 20 * P, 30 * P),
    ]
}

/// With no buf at all every request waits, and none is lost.
fn bufs_none(bed: &mut Bed, ko: &Path) -> Result<()> {
    few_bufs(bed, ko)?;
    slow(bed, 2)?;
    for (name, file, offset, len) in workloads(bed) {
        // As if somebody had sent it before.
        if !name.starts_with("cold") {
            let lbn = file.inode.map.len() as u64 - 1;
            let brought = file.maps.bring(file.disk(), &file.inode.indirect, lbn, file.mount.block);
            ensure!(brought.is_ok(), "{name}: the disk does not read");
        }
        without_bufs(bed, &file, offset, len).context(name)?;
    }
    // The synchronous form too.
    ensure!(sysctl::write("vfs.asyncpager.sync", true) == 0, "sysctl");
    let map: Vec<_> = (0..4).map(|i| Some(70 + i * 2)).collect();
    let file = bed.synthetic(BLOCK, &map, 4 * BLOCK, true);
    let (other, all) = take_all(bed)?;
    let waits = counter("waited_buf");
    std::thread::scope(|scope| -> Result<()> {
        let fault = scope.spawn(|| {
            cpu::attach();
            let pages: Vec<Page> = (6..12).map(|i| vm::grab(file.object, i)).collect();
            let locked = VnodeLocked::new(file.vnode, false, "vm_fault");
            let outcome = sendfile::getpages(&file, &pages, 2, 2, false);
            drop(locked);
            let valid = pages.iter().all(|page| page.is_valid(0, P as usize));
            pages.iter().for_each(|page| page.unbusy("vm_fault"));
            pages.iter().for_each(|page| vm::unwire(*page, true));
            (outcome.code, valid)
        });
        release(bed, &other, all, waits, || fault.is_finished())?;
        let outcome = fault.join().map_err(|_| anyhow!("the fault panicked"))?;
        ensure!(outcome == (0, true), "{outcome:?}");
        Ok(())
    })
}

/// The same while memory is short as well.
fn bufs_none_no_memory(bed: &mut Bed, ko: &Path) -> Result<()> {
    few_bufs(bed, ko)?;
    slow(bed, 2)?;
    vm::NO_MEMORY.store(true, Ordering::Relaxed);
    uma::NO_MEMORY.store(true, Ordering::Relaxed);
    for (name, file, offset, len) in workloads(bed) {
        without_bufs(bed, &file, offset, len).context(name)?;
    }
    Ok(())
}

/// Send a part of a file while other requests have all bufs.
fn without_bufs(bed: &Bed, file: &Arc<File>, offset: u64, len: u64) -> Result<()> {
    let (other, all) = take_all(bed)?;
    let waits = counter("waited_buf");
    std::thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(|| -> Result<()> {
            cpu::attach();
            send(bed, file, offset, len, 8)
        });
        release(bed, &other, all, waits, || sender.is_finished())?;
        sender.join().map_err(|_| anyhow!("the sender panicked"))?
    })?;
    bed.disk.behave(Manners::default());
    vm::drop_pages(other.object);
    vm::drop_pages(file.object);
    Ok(())
}

/// Let the disk answer once a request waits for a buf, as `waits` did before, and
/// until all is over.
fn release(
    bed: &Bed,
    other: &Arc<File>,
    all: Vec<Sending>,
    waits: u64,
    is_finished: impl Fn() -> bool,
) -> Result<()> {
    // One whose map is to be read waits for that first.
    wait_until("a request waits", || {
        counter("waited_buf") > waits || is_finished() || bed.disk.waiting() > REQUESTS
    })?;
    bed.disk.behave(Manners::default());
    wait_until("the requests are over", || {
        bed.disk.hurry();
        is_finished()
    })?;
    for (i, sending) in (0..).zip(all) {
        finish(bed, other, sending, 2 * i * P, P)?;
    }
    Ok(())
}

/// However much is read ahead, requests find bufs.
fn bufs_readahead(bed: &mut Bed, ko: &Path) -> Result<()> {
    few_bufs(bed, ko)?;
    slow(bed, 20)?;
    let streams: Vec<_> = (0..2)
        .map(|i| {
            // Each block takes a buf.
            let map: Vec<_> = (0..60).map(|b| Some(10 + i * 120 + b * 2)).collect();
            let file = bed.synthetic(BLOCK, &map, 60 * BLOCK, true);
            let lbn = file.inode.map.len() as u64 - 1;
            let brought = file.maps.bring(file.disk(), &file.inode.indirect, lbn, BLOCK);
            brought.ok().map(|_| file)
        })
        .collect::<Option<_>>()
        .context("the disk does not read")?;
    hang(bed);
    let all: Vec<_> = streams.iter().filter_map(|f| Sending::begin(f, 0, 16 * P, 100)).collect();
    let saturated = || ahead("not_buf") > 0;
    wait_until("read-ahead has all bufs that it may have", saturated)?;
    let out = buf::out();
    ensure!(out <= BUFS / 2 + 2 * all.len(), "{out} bufs are in flight");
    bed.disk.behave(Manners::default());
    for (name, file, offset, len) in workloads(bed) {
        send(bed, &file, offset, len, 0).context(name)?;
    }
    let map: Vec<_> = (0..12).map(|i| Some(420 + i)).collect();
    let file = bed.synthetic(BLOCK, &map, 12 * BLOCK, true);
    let waits = counter("waited_buf");
    for i in 0..12 {
        send(bed, &file, i * BLOCK, BLOCK, 0)?;
    }
    let waits = counter("waited_buf") - waits;
    ensure!(waits == 0, "{waits} requests waited for a buf that read-ahead has");
    bed.disk.hurry();
    streams.iter().zip(all).try_for_each(|(file, sent)| finish(bed, file, sent, 0, 16 * P))
}

/// A request whose block map has been read, and for which there is no buf then,
/// goes on as soon as there is one.
fn bufs_map_starved(bed: &mut Bed, ko: &Path) -> Result<()> {
    few_bufs(bed, ko)?;
    slow(bed, 2)?;
    let apart: Vec<_> = (0..60).map(|i| Some(300 - i * 2)).collect();
    let file = bed.synthetic(4096, &apart, 60 * P, true);
    for _ in 0..3 {
        // What the disk has taken before is forgotten after so many.
        (0..8).try_for_each(|_| slow(bed, 5))?;
        taskqueue::hold(true);
        wait_until("no buf is in flight", || buf::out() == 0)?;
        hang(bed);
        let sending = begin_forgotten(&file, 20 * P, 30 * P)?;
        let map = bed.synthetic(BLOCK, &[Some(20), Some(21), Some(22), Some(23)], 4 * BLOCK, true);
        let all: Option<Vec<_>> =
            (0..REQUESTS as u64 - 1).map(|i| Sending::begin(&map, 2 * i * P, P, 0)).collect();
        let all = all.context("the file is gone")?;
        // The map comes, and the bufs that are kept for such requests do not do.
        let place = file.inode.indirect.place(-12).context("no indirect block")? as u64 * 512;
        let waits = counter("waited_buf");
        bed.disk.hurry_range(place..place + P);
        wait_until("the request has the last bufs, and waits", || {
            buf::out() == BUFS && counter("waited_buf") > waits
        })?;
        ensure!(!sending.is_over(), "30 runs were read with a few bufs");
        bed.disk.behave(Manners::default());
        wait_until("all is over", || {
            bed.disk.hurry();
            sending.is_over()
        })?;
        finish(bed, &file, sending, 20 * P, 30 * P)?;
        for (i, sending) in (0..).zip(all) {
            finish(bed, &map, sending, 2 * i * P, P)?;
        }
    }
    ensure!(counter("maps_read") >= 3, "{:?}", sysctl::counters());
    Ok(())
}

/// A promised run that cannot be served as promised is served here all the same:
/// the buffer pager would wait for pages of the same block that this thread has
/// busied behind the run.
fn promise_not_kept(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    let map: Vec<_> = (0..120).map(|b| Some(10 + b)).collect();
    let file = bed.synthetic(BLOCK, &map, 120 * BLOCK - 700, true);
    for (offset, len) in [(97 * P, 600 * P), (103 * P, 400 * P), (90 * P, 600 * P)] {
        let before = counter("maps_read");
        // No page for the block map's pointers.
        vm::NO_MEMORY.store(true, Ordering::Relaxed);
        let sending = begin_forgotten(&file, offset, len);
        vm::NO_MEMORY.store(false, Ordering::Relaxed);
        finish(bed, &file, sending?, offset, len)?;
        ensure!(counter("maps_read") == before, "the map was read without memory");
    }
    let calls = counter("calls_original") + counter("calls_emulated");
    ensure!(calls == 0, "{calls} calls were passed on");
    Ok(())
}

/// A file is truncated while its block map, or what it leads to, is read, and
/// its blocks are another file's at once. What is sent is the file's old bytes,
/// or zeros, and no error.
fn map_truncated(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    for late in [false, true] {
        let map: Vec<_> = (0..40).map(|b| Some(10 + b + if late { 60 } else { 0 })).collect();
        let file = bed.synthetic(BLOCK, &map, 40 * BLOCK, true);
        hang(bed);
        let (offset, len) = (20 * BLOCK, 4 * BLOCK);
        let sending = begin_forgotten(&file, offset, len)?;
        let place = file.inode.indirect.place(-12).context("no indirect block")? as u64 * 512;
        let first = file.inode.map[20].context("a hole")? as u64 * 512;
        if late {
            bed.disk.hurry_range(place..place + BLOCK);
            wait_until("the data are asked for", || bed.disk.is_asked_for(first..first + len))?;
        }
        file.free_blocks();
        // Even its indirect block may hold anything now, and where it led to.
        if !late {
            (0..BLOCK / 512).for_each(|i| bed.disk.write(place + i * 512, &[0x99; 512]));
        }
        (0..len / 512).for_each(|i| bed.disk.write(first + i * 512, &[0x77; 512]));
        wait_until("it is over", || {
            bed.disk.hurry();
            sending.is_over()
        })?;
        let mut got = Vec::new();
        let sent = sending.finish(true, |bytes| got.extend_from_slice(bytes));
        ensure!(sent == Ok(()), "the connection is aborted: {sent:?}");
        let foreign = (0..len).find(|i| {
            let byte = got[*i as usize];
            byte != 0 && byte != bed.byte(&file, offset + i)
        });
        ensure!(foreign.is_none(), "byte {foreign:?} is another file's, late: {late}");
        ensure!(got.len() as u64 == len, "{} bytes", got.len());
        bed.disk.behave(Manners::default());
    }
    Ok(())
}

/// Nothing that is not one run reaches the kernel's generic getpages, which
/// vfs.ffs.use_buf_pager=0 chooses: it would take the blocks behind the first
/// run for the file's.
fn use_buf_pager_off(bed: &mut Bed, ko: &Path) -> Result<()> {
    few_bufs(bed, ko)?;
    for (name, file, offset, len) in workloads(bed) {
        send(bed, &file, offset, len, 8).context(name)?;
        vm::drop_pages(file.object);
    }
    let calls = counter("calls_original") + counter("calls_emulated");
    ensure!(calls == 0, "{calls} calls were passed on");
    // A call that no buf can hold is refused, and not passed on.
    let map: Vec<_> = (0..100).map(|b| Some(10 + b)).collect();
    let file = bed.synthetic(BLOCK, &map, 100 * BLOCK, true);
    let pages: Vec<Page> = (0..257).map(|i| vm::grab(file.object, i)).collect();
    let outcome = sendfile::getpages_async(&file, &pages, 0, 0);
    ensure!(outcome.error == libc::EINVAL, "{outcome:?}");
    pages.iter().for_each(|page| vm::unwire(*page, true));
    Ok(())
}

/// However many requests wait for a disk that does not answer, another disk's find
/// bufs.
fn bufs_hung(bed: &mut Bed, ko: &Path) -> Result<()> {
    few_bufs(bed, ko)?;
    let mut other = bed.other_disk(bed.disk.image().len(), 7);
    let map: Vec<_> = (0..12).map(|i| Some(20 + i)).collect();
    let (mine, quick) =
        (bed.synthetic(BLOCK, &map, 12 * BLOCK, true), other.file(BLOCK, &map, 12 * BLOCK));
    hang(bed);
    std::thread::scope(|scope| -> Result<()> {
        let hung: Vec<_> = (0..BUFS as u64 + 4)
            .map(|i| {
                let mine = &mine;
                scope.spawn(move || {
                    cpu::attach();
                    Sending::begin(mine, 2 * i * P, P, 0)
                })
            })
            .collect();
        wait_until("some of them wait", || counter("waited_buf") > 0)?;
        let waits = counter("waited_buf");
        for i in 0..12 {
            send(bed, &quick, i * BLOCK, BLOCK, 0)?;
        }
        let begun = hung.iter().filter(|hung| hung.is_finished()).count();
        bed.disk.behave(Manners::default());
        wait_until("all have begun", || {
            bed.disk.hurry();
            hung.iter().all(|hung| hung.is_finished())
        })?;
        for (i, hung) in (0..).zip(hung) {
            let sending = hung.join().map_err(|_| anyhow!("a sender panicked"))?;
            finish(bed, &mine, sending.context("the file is gone")?, 2 * i * P, P)?;
        }
        ensure!(begun < BUFS, "{begun} requests have bufs for a disk that hangs, {waits} wait");
        Ok(())
    })
}

/// A file is truncated between a failed read and its repetition, and its blocks are
/// another file's at once.
fn retry_truncated(bed: &mut Bed, _: &Path) -> Result<()> {
    let map: Vec<_> = (0..8).map(|b| Some(10 + b)).collect();
    let file = bed.synthetic(BLOCK, &map, 8 * BLOCK, true);
    let (first, ahead) = (10 * BLOCK + 8 * P, 10 * BLOCK + 20 * P);
    let bad = vec![(ahead..ahead + 512, libc::EIO)];
    let latency: crate::disk::Latency = Duration::from_secs(600).into();
    bed.disk.behave(Manners { latency, bad, ..Manners::default() });
    let sending = Sending::begin(&file, 8 * P, 4 * P, 16).context("the file is gone")?;
    bed.disk.hurry();
    wait_until("it is read again", || counter("retries") == 1 && bed.disk.waiting() == 1)?;
    file.free_blocks();
    (0..4 * P / 512).for_each(|i| bed.disk.write(first + i * 512, &[0x77; 512]));
    bed.disk.behave(Manners::default());
    wait_until("it is over", || {
        bed.disk.hurry();
        sending.is_over()
    })?;
    let mut got = Vec::new();
    let sent = sending.finish(true, |bytes| got.extend_from_slice(bytes));
    ensure!(sent == Ok(()), "{sent:?}");
    ensure!(got.iter().all(|byte| *byte == 0), "another file's bytes are sent");
    Ok(())
}
