// SPDX-License-Identifier: BSD-2-Clause
//! Block maps that sendfile(2) does not wait for.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use asyncpager::kpi::sys;

use crate::{
    disk::behaviour::Behaviour,
    ffs::file::{File, Mount},
    kernel::{
        proc, resident,
        sysctl::{self, ahead, counter},
        vnode::VnodeLocked,
        vnode_if,
    },
    scenarios::{
        fixture::{Fixture, Run},
        speculative::{BEHIND, FIRST, MAP, begin, behaviour, straight},
        steps::{
            BLOCK, P, SIZE, begin_cold, begin_forgotten, cold, contiguous, finish, ready, send,
            settle, slow, undisturbed, wait_until,
        },
    },
};

/// All of them, by name.
pub const ALL: &[(&str, Run)] = &[
    ("map", map),
    ("map-levels", map_levels),
    ("map-holes", map_holes),
    ("map-error", map_error),
    ("map-fast", map_fast),
    ("map-others", map_others),
    ("map-untrusted", map_untrusted),
    ("map-async-mount", map_async_mount),
    ("map-gone-on", map_gone_on),
];

/// sendfile does not wait for an indirect block.
fn map(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 2)?;
    let file = contiguous(fixture);
    for (offset, len) in [(12, 1), (13, 40), (50, 70), (119, 1), (20, 3)] {
        cold(fixture, &file, offset * BLOCK + 1000, len * BLOCK - 1000)?;
    }
    // From the blocks in the inode on, over to those that are not.
    cold(fixture, &file, 10 * BLOCK, 20 * BLOCK)?;
    cold(fixture, &file, SIZE - 9000, 9000)?;
    let read = counter("maps_read");
    ensure!(read >= 6, "{read} requests read their block map");
    Ok(())
}

/// Two levels of them, in bufs of any shape.
fn map_levels(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 2)?;
    let blocks: Vec<_> = (0..900).map(|i| Some(if i % 5 == 0 { 2000 - i } else { i })).collect();
    for unmapped in [true, false] {
        let file = fixture.synthetic(4096, &blocks, 900 * P - 5, unmapped);
        for (first, count) in [(12, 5), (520, 10), (524, 1), (523, 100), (600, 256), (890, 10)] {
            cold(fixture, &file, first * P, count * P)?;
        }
    }
    Ok(())
}

/// Holes at every level.
fn map_holes(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 2)?;
    let one: Vec<_> = (0..400).map(|i| (i % 3 != 1).then_some(i)).collect();
    let file = fixture.synthetic(4096, &one, 400 * P - 5, true);
    for first in [12, 13, 14, 200, 399] {
        cold(fixture, &file, first * P, 60 * P)?;
    }
    // Nothing but its very end, two levels down.
    let mut sparse = vec![None; 2000];
    sparse[1999] = Some(77);
    let file = fixture.synthetic(4096, &sparse, 2000 * P, true);
    for first in [12, 530, 1500, 1998] {
        cold(fixture, &file, first * P, 30 * P)?;
    }
    Ok(())
}

/// An indirect block that cannot be read fails the request, once.
fn map_error(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    let file = contiguous(fixture);
    let place = file.inode.indirect.place(-12).context("no indirect block")? as u64 * 512;
    let bad = vec![(place..place + BLOCK, libc::EIO)];
    fixture.disk.behave(Behaviour { bad, ..Behaviour::default() });
    let sending = begin_cold(&file, 20 * BLOCK, BLOCK)?;
    let sent = sending.finish(false, |_| ());
    ensure!(sent == Err(libc::EIO), "{sent:?}");
    fixture.disk.behave(Behaviour { gone: true, ..Behaviour::default() });
    let sent = begin_cold(&file, 20 * BLOCK, BLOCK)?.finish(false, |_| ());
    ensure!(sent == Err(libc::ENXIO), "{sent:?}");
    fixture.disk.behave(Behaviour::default());
    cold(fixture, &file, 20 * BLOCK, BLOCK)
}

/// A wait that is not worth hiding is none, on a device that is as fast as
/// it was lately.
fn map_fast(fixture: &mut Fixture, _: &Path) -> Result<()> {
    ensure!(sysctl::number("vfs.asyncpager.readahead.latency_min", 9_000) == 0, "sysctl");
    let file = contiguous(fixture);
    undisturbed(|| {
        let before = counter("maps_read");
        let again = || -> Result<u64> {
            let sending = begin_forgotten(&file, 30 * BLOCK, BLOCK)?;
            finish(fixture, &file, sending, 30 * BLOCK, BLOCK)?;
            Ok(counter("maps_read") - before)
        };
        // Nothing is known of what has been mounted just now.
        let mount = || {
            // SAFETY: a live mount that nobody else looks at now.
            unsafe { (*(*file.vnode).v_mount).mnt_gen += 1 }
        };
        mount();
        fixture.disk.behave(Behaviour::default());
        let (new, fast) = (again()?, again()?);
        // A slow transfer is remembered for a while.
        fixture.disk.behave(Behaviour {
            latency: Duration::from_millis(60).into(),
            ..Behaviour::default()
        });
        send(fixture, &file, 0, P, 0)?;
        fixture.disk.behave(Behaviour::default());
        (1..5).try_for_each(|i| send(fixture, &file, i * BLOCK, P, 0))?;
        let slow = again()?;
        (1..60).try_for_each(|i| send(fixture, &file, i / 7 * BLOCK + (1 + i % 7) * P, P, 0))?;
        let long_ago = again()?;
        mount();
        Ok([new, fast, slow, long_ago, again()?] == [1, 1, 2, 2, 3])
    })
}

/// Every other caller of VOP_BMAP gets the true answer, and waits for it.
fn map_others(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    let file = contiguous(fixture);
    let _locked = VnodeLocked::new(file.vnode, false, "VOP_READ");
    for code in [0, sys::SYS_sendfile as u32] {
        file.maps.forget();
        let (mut place, mut after) = (-1, 0);
        let error = proc::in_syscall(code, || {
            // SAFETY: a VOP's argument block, live for the call. No page of
            // the block is busied: this is cluster_read(), not sendfile.
            unsafe {
                let mut ap: sys::vop_bmap_args = std::mem::zeroed();
                (ap.a_vp, ap.a_bn) = (file.vnode, 20);
                (ap.a_bnp, ap.a_runp) = (&mut place, &mut after);
                vnode_if::vop_bmap_apv(std::ptr::null_mut(), &mut ap)
            }
        });
        ensure!(error == 0 && place == (30 * BLOCK / 512) as i64, "errno {error}, {place}");
    }
    Ok(())
}

unsafe extern "C" fn checked(_: *mut sys::mount, _: u64, _: i64, _: i32) -> i32 {
    0
}

/// On an untrusted mount the filesystem looks at each pointer itself.
fn map_untrusted(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    let (plain, untrusted) = (straight(fixture), straight(fixture));
    // SAFETY: a live mount that nobody else looks at now.
    unsafe {
        let ump = (*(*untrusted.vnode).v_mount).mnt_data.cast::<sys::ufsmount>();
        (*ump).um_check_blkno = Some(checked);
    }
    map_left_to_the_filesystem(fixture, &plain, &untrusted)
}

/// On a mount that writes asynchronously, a pointer reaches the disk before
/// the block that it leads to.
fn map_async_mount(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    for flag in [sys::MNT_ASYNC, sys::MNT_GJOURNAL] {
        let plain = straight(fixture);
        let mount = Mount { flags: flag as u64, ..plain.mount };
        let file = fixture.open(plain.inode.clone(), mount, true);
        map_left_to_the_filesystem(fixture, &plain, &file)?;
    }
    Ok(())
}

/// The module reads the block map of `plain` by itself, and that of `other`
/// through the filesystem only.
fn map_left_to_the_filesystem(fixture: &Fixture, plain: &File, other: &File) -> Result<()> {
    let before = counter("maps_read");
    cold(fixture, plain, 20 * BLOCK, BLOCK)?;
    let read = counter("maps_read");
    ensure!(read > before, "no map is read: {:?}", sysctl::counters());
    settle()?;
    let guessed = ahead("guessed");
    begin(fixture, other)?;
    send(fixture, other, 20 * BLOCK, BLOCK, 0)?;
    ensure!(
        (counter("maps_read"), ahead("guessed")) == (read, guessed),
        "its pointers are read past the filesystem: {:?}",
        sysctl::counters()
    );
    Ok(())
}

/// A consumer that goes on while a window waits for the block map gets another window,
/// behind a gap that it can ask for itself.
fn map_gone_on(fixture: &mut Fixture, _: &Path) -> Result<()> {
    ensure!(sysctl::number("vfs.asyncpager.readahead.guess", 0) == 0, "sysctl");
    // Only a delayed thread leaves a gap at first: not in each round.
    for _ in 0..10 {
        slow(fixture, 60)?;
        let file = straight(fixture);
        let slow = Some((MAP, Duration::from_secs(600)));
        fixture.disk.behave(Behaviour { slow, ..behaviour() });
        send(fixture, &file, 0, 16 * P, 100)?;
        wait_until("only the map is missing", || fixture.disk.waiting() == 1)?;
        fixture.disk.behave(behaviour());
        fixture.disk.complete_now();
        settle()?;
        wait_until("it is there", || ready(&file, BEHIND))?;
        let left =
            (FIRST..FIRST + 8).all(|pindex| resident::resident(file.object, pindex).is_none());
        ensure!(left, "the consumer finds its next pages busied");
    }
    Ok(())
}
