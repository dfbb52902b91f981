// SPDX-License-Identifier: BSD-2-Clause
//! Disturbances beside the consumers: errors, shortages, truncation, unloading.

use std::{
    sync::{Mutex, atomic::Ordering},
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use asyncpager::kpi::sys;

use crate::{
    commands::{
        options::Common,
        torture::files::{CUT, DISK, Slot, Tally, options},
    },
    consumers::sendfile,
    disk::behaviour::{Behaviour, Latency},
    ffs::writeback,
    host::{memory::PAGE, schedule},
    kernel::{resident, shortage, sysctl, vm_object, vm_pager},
    kld::module::Module,
    scenarios::fixture::Fixture,
};

/// Change something about the world.
pub fn disturb(
    common: &Common,
    fixture: &Fixture,
    module: &Mutex<Option<Module>>,
    files: &[Slot],
    rng: &mut fastrand::Rng,
    tally: &Tally,
) -> Result<()> {
    let one_in = |rng: &mut fastrand::Rng, n: u8| rng.u8(..n) == 0;
    if !schedule::is_one_thread() {
        while resident::unbusy_shared() {}
    }
    if one_in(rng, 2) {
        // Shortages pass.
        shortage::end();
    }
    match rng.u8(..19) {
        0..=3 => {
            let at = rng.u64(..DISK as u64);
            fixture.disk.behave(Behaviour {
                latency: if one_in(rng, 4) {
                    Latency::random(Duration::from_micros(rng.u64(..400)), rng)
                } else {
                    Latency::default()
                },
                slow: None,
                bad: if one_in(rng, 2) { vec![(at..at + 4096, libc::EIO)] } else { vec![] },
                fail_percent: if one_in(rng, 3) { rng.u8(1..40) } else { 0 },
                short: one_in(rng, 16),
                gone: one_in(rng, 24),
            });
        }
        4..=5 => shortage::NO_MEMORY.store(true, Ordering::Relaxed),
        6 => shortage::NO_ITEMS.store(true, Ordering::Relaxed),
        7..=8 => {
            // A little from one file, or everything from all of them.
            let (all, one) = (one_in(rng, 6), rng.usize(..files.len()));
            for slot in files.iter().enumerate().filter(|(i, _)| all || *i == one) {
                let part = if all { 1 } else { 1 + rng.usize(..3) };
                let freed = vm_object::reclaim(slot.1.open().object, part, rng);
                tally.reclaimed.fetch_add(freed as u64, Ordering::Relaxed);
            }
        }
        9 => {
            let name = [
                "vfs.asyncpager.enabled",
                "vfs.asyncpager.sync",
                "vfs.asyncpager.map",
                "vfs.asyncpager.readahead.enabled",
            ][rng.usize(..4)];
            let errno = sysctl::write(name, !one_in(rng, 8));
            ensure!(errno == 0, "sysctl {name}, errno {errno}");
            tally.switched.fetch_add(1, Ordering::Relaxed);
        }
        10 if one_in(rng, 6) => {
            let mut module = module.lock().map_err(|_| anyhow!("the module's lock is poisoned"))?;
            if let Some(module) = module.take() {
                module.unload().map_err(|errno| anyhow!("kldunload, errno {errno}"))?;
            }
            *module = Some(Module::load(&common.ko, &options())?);
            tally.reloads.fetch_add(1, Ordering::Relaxed);
        }
        11 => {
            let file = files.iter().map(Slot::open).find(|file| file.inode.path == CUT);
            if let Some(file) = file {
                let whole = file.inode.size;
                file.set_size(if one_in(rng, 3) { whole } else { rng.u64(1..=whole) });
                tally.resized.fetch_add(1, Ordering::Relaxed);
            }
        }
        12 => {
            // A thread may still be in iodone when the memory is freed.
            let linger = if one_in(rng, 2) { rng.u64(..300) } else { 0 };
            sendfile::LINGER.store(linger, Ordering::Relaxed);
            files[rng.usize(..files.len())].remount(fixture, rng.bool());
            tally.unmounted.fetch_add(1, Ordering::Relaxed);
        }
        13 => {
            resident::busy_shared(files[rng.usize(..files.len())].open().object, rng);
            tally.shared.fetch_add(1, Ordering::Relaxed);
        }
        // The buffer cache needs room for other blocks.
        16..=17 => files[rng.usize(..files.len())].open().maps.forget(),
        15 => drop(writeback::flush(&files[files.len() - 1].open(), 1 + rng.usize(..3), rng)),
        14 => {
            swap_request(rng)?;
            tally.swapped.fetch_add(1, Ordering::Relaxed);
        }
        _ => {}
    }
    Ok(())
}

/// A request to the swap pager, which has some of the pages and cannot read others.
fn swap_request(rng: &mut fastrand::Rng) -> Result<()> {
    let count = rng.u64(1..9);
    let object = vm_object::new_swap_object(count);
    let blocks: Vec<_> = (0..count)
        .map(|i| match rng.u8(..6) {
            0 => None,
            1 => Some(vm_pager::Block::Bad),
            _ => Some(vm_pager::Block::Data(vec![i as u8 + 1; PAGE])),
        })
        .collect();
    for (i, block) in (0..).zip(blocks.iter().cloned()) {
        if let Some(block) = block {
            vm_pager::swap_out(object, i, block);
        }
    }
    let pages: Vec<_> = (0..count).map(|i| resident::grab(object, i)).collect();
    let outcome = sendfile::swap_getpages(object, &pages);
    let all = blocks.iter().all(|block| matches!(block, Some(vm_pager::Block::Data(_))));
    let want = match blocks[0] {
        None => (sys::VM_PAGER_FAIL, libc::EINVAL),
        _ if all => (sys::VM_PAGER_OK, 0),
        _ => (sys::VM_PAGER_ERROR, libc::EIO),
    };
    ensure!((outcome.code, outcome.error) == want, "the swap pager: {outcome:?}, not {want:?}");
    pages.iter().for_each(|page| resident::unwire(*page, false));
    vm_pager::swap_free(object);
    vm_object::destroy(object);
    Ok(())
}
