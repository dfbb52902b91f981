// SPDX-License-Identifier: BSD-2-Clause
//! Random mixes of all that can happen to the module, drawn from a seed.
//!
//! The draws repeat with the seed; how the threads interleave does not.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::{
    Common,
    bed::Bed,
    buf, cpu,
    disk::Manners,
    kernel::{Module, Options},
    sendfile, sysctl,
    vfs::File,
    vm::{self, PAGE},
};

const DISK: usize = 8 << 20;
const SENDERS: u64 = 3;

/// What a run has done.
#[derive(Default)]
struct Tally {
    sent: AtomicU64,
    failed: AtomicU64,
    faulted: AtomicU64,
    reclaimed: AtomicU64,
    reloads: AtomicU64,
    switched: AtomicU64,
}

/// Torture the module with seeds `common.seed..` until time or calls are over.
pub fn run(common: &Common, minutes: f64, calls: u64, seeds: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs_f64((minutes * 60.0).max(0.0));
    let bar = if common.json { ProgressBar::hidden() } else { ProgressBar::new(calls * seeds) };
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} calls, {msg}")?);
    let tally = Tally::default();
    let (mut errors, mut done) = (0, 0);
    for seed in common.seed..common.seed.saturating_add(seeds) {
        bar.set_message(format!("seed {seed}"));
        errors += one(common, seed, calls, end, &tally, &bar)
            .with_context(|| format!("seed {seed}: repeat with --seed {seed}"))?;
        done += 1;
        if Instant::now() >= end {
            break;
        }
    }
    bar.finish_and_clear();
    let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let result = json!({
        "seeds": done,
        "vop_calls": get(&sendfile::CALLS),
        "requests_sent": get(&tally.sent),
        "requests_failed": get(&tally.failed),
        "page_faults": get(&tally.faulted),
        "faults_injected": {
            "transfers_failed": errors,
            "page_allocations_failed": get(&vm::ALLOCS_FAILED),
            "pbuf_allocations_failed": get(&buf::ALLOCS_FAILED),
        },
        "pages_reclaimed": get(&tally.reclaimed),
        "reloads": get(&tally.reloads),
        "switches": get(&tally.switched),
        "violations": 0,
    });
    if common.json {
        println!("{result}")
    } else {
        println!("{result:#}")
    }
    Ok(())
}

/// One seed; how many transfers the disk has failed.
fn one(
    common: &Common,
    seed: u64,
    calls: u64,
    end: Instant,
    tally: &Tally,
    bar: &ProgressBar,
) -> Result<u64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let image: Vec<u8> = std::iter::repeat_with(|| rng.u8(1..)).take(DISK).collect();
    let sector = if rng.u8(..4) == 0 { 4096 } else { 512 };
    let mut bed = Bed::new(&common.ko, &Options::default(), image, sector, seed)?;
    let files: Vec<_> = (0..6).map(|_| file(&bed, sector as u64, &mut rng)).collect();
    let before = sendfile::CALLS.load(Ordering::Relaxed);
    let made = || sendfile::CALLS.load(Ordering::Relaxed) - before;
    let stop = AtomicBool::new(false);
    let module = std::sync::Mutex::new(bed.module.take());
    std::thread::scope(|scope| -> Result<()> {
        let senders: Vec<_> = (0..SENDERS)
            .map(|n| {
                let (stop, bed, files) = (&stop, &bed, &files);
                let rng = fastrand::Rng::with_seed(seed.wrapping_mul(64).wrapping_add(n));
                scope.spawn(move || send(bed, files, rng, stop, tally))
            })
            .collect();
        let mut chaos = Ok(());
        while made() < calls && Instant::now() < end && !senders.iter().any(|s| s.is_finished()) {
            std::thread::sleep(Duration::from_millis(rng.u64(1..6)));
            chaos = disturb(common, &bed, &module, &files, &mut rng, tally);
            if chaos.is_err() {
                break;
            }
            bar.set_position(sendfile::CALLS.load(Ordering::Relaxed));
        }
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.join().map_err(|_| anyhow!("a sender panicked"))??;
        }
        chaos
    })?;
    bed.module = module.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    buf::STOCK.store(usize::MAX, Ordering::Relaxed);
    vm::NO_MEMORY.store(false, Ordering::Relaxed);
    let errors = bed.disk.errors.load(Ordering::Relaxed);
    bed.finish()?;
    Ok(errors)
}

/// A file of random shape.
fn file(bed: &Bed, sector: u64, rng: &mut fastrand::Rng) -> Arc<File> {
    let block = [512, 1024, 4096, 8192, 32768, 65536][rng.usize(..6)].max(sector);
    let order = [12, 16, 20][rng.usize(..3)];
    let size = rng.u64(1..1 << order);
    let blocks = size.div_ceil(block);
    let per_page = (PAGE as u64 / block).max(1);
    let most = DISK as u64 / block;
    let mut at = rng.u64(..most);
    let map: Vec<_> = (0..blocks)
        .map(|i| {
            at = if rng.u8(..5) == 0 { rng.u64(..most) } else { (at + 1) % most };
            // vnode_pager_haspage() cannot tell a page that begins with a
            // hole from one that is nothing else.
            (i % per_page == 0 && per_page > 1 || rng.u8(..10) > 0).then_some(at)
        })
        .collect();
    bed.synthetic(block, &map, size, rng.bool())
}

fn send(
    bed: &Bed,
    files: &[Arc<File>],
    mut rng: fastrand::Rng,
    stop: &AtomicBool,
    tally: &Tally,
) -> Result<()> {
    cpu::attach();
    while !stop.load(Ordering::Relaxed) {
        let file = &files[rng.usize(..files.len())];
        let offset = rng.u64(..file.inode.size);
        if rng.u8(..10) == 0 {
            fault(bed, file, offset, &mut rng)?;
            tally.faulted.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let order = [8, 14, 17][rng.usize(..3)];
        let len = rng.u64(1..1 << order);
        let (readahead, nocache) = (rng.i32(0..40), rng.u8(..4) > 0);
        let mut at = offset;
        let mut wrong = None;
        let result = sendfile::sendfile(file, offset, len, readahead, nocache, |bytes| {
            for byte in bytes {
                if *byte != bed.byte(file, at) {
                    wrong.get_or_insert(at);
                }
                at += 1;
            }
        });
        ensure!(wrong.is_none(), "byte {wrong:?} of a file of {} is wrong", file.inode.size);
        let count = if result.is_ok() { &tally.sent } else { &tally.failed };
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// A page fault: one page through the sync VOP, with pages around it.
fn fault(bed: &Bed, file: &File, offset: u64, rng: &mut fastrand::Rng) -> Result<()> {
    let pindex = offset / PAGE as u64;
    let page = vm::grab(file.object, pindex);
    if page.fields().valid == 0 {
        let outcome = sendfile::getpages(file, &[page], rng.i32(0..9), rng.i32(0..9), rng.bool());
        let valid = page.fields().valid != 0;
        ensure!(valid == (outcome.code == 0), "{outcome:?}, and the page is valid: {valid}");
        // SAFETY: the page is busied by this thread.
        let byte = unsafe { *page.data().add((offset % PAGE as u64) as usize) };
        ensure!(!valid || byte == bed.byte(file, offset), "byte {offset} is wrong after a fault");
    }
    page.unbusy("vm_fault");
    vm::unwire(page, rng.bool());
    Ok(())
}

/// Change something about the world.
fn disturb(
    common: &Common,
    bed: &Bed,
    module: &std::sync::Mutex<Option<Module>>,
    files: &[Arc<File>],
    rng: &mut fastrand::Rng,
    tally: &Tally,
) -> Result<()> {
    let one_in = |rng: &mut fastrand::Rng, n: u8| rng.u8(..n) == 0;
    if one_in(rng, 2) {
        // Shortages pass.
        vm::NO_MEMORY.store(false, Ordering::Relaxed);
        buf::STOCK.store(usize::MAX, Ordering::Relaxed);
    }
    match rng.u8(..12) {
        0..=3 => {
            let at = rng.u64(..DISK as u64);
            bed.disk.behave(Manners {
                latency: Duration::from_micros(if one_in(rng, 3) { rng.u64(..800) } else { 0 }),
                bad: if one_in(rng, 2) { vec![(at..at + 4096, libc::EIO)] } else { vec![] },
                fail_percent: if one_in(rng, 3) { rng.u8(1..40) } else { 0 },
                short: one_in(rng, 16),
                gone: one_in(rng, 24),
            });
        }
        4..=5 => vm::NO_MEMORY.store(true, Ordering::Relaxed),
        6 => buf::STOCK.store(rng.usize(..40), Ordering::Relaxed),
        7..=8 => {
            let file = &files[rng.usize(..files.len())];
            let freed = vm::reclaim(file.object, 1 + rng.usize(..3), rng);
            tally.reclaimed.fetch_add(freed as u64, Ordering::Relaxed);
        }
        9 => {
            let name = ["vfs.asyncpager.enabled", "vfs.asyncpager.sync"][rng.usize(..2)];
            let errno = sysctl::write(name, !one_in(rng, 8));
            ensure!(errno == 0, "sysctl {name}, errno {errno}");
            tally.switched.fetch_add(1, Ordering::Relaxed);
        }
        10 if one_in(rng, 6) => {
            let mut module = module.lock().map_err(|_| anyhow!("the module's lock is poisoned"))?;
            if let Some(module) = module.take() {
                module.unload().map_err(|errno| anyhow!("kldunload, errno {errno}"))?;
            }
            *module = Some(Module::load(&common.ko, &Options::default())?);
            tally.reloads.fetch_add(1, Ordering::Relaxed);
        }
        _ => {}
    }
    Ok(())
}
