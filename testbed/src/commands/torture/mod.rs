// SPDX-License-Identifier: BSD-2-Clause
//! Random mixes of all that can happen to the module, drawn from a seed.
//!
//! The draws repeat with the seed; how threads interleave does not, unless
//! there is only one.

mod disturb;
mod files;
mod ops;

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::{
    checks::rules,
    commands::{
        options::Common,
        torture::{
            disturb::disturb,
            files::{CUT, DISK, MAPS, Slot, Tally, WRITTEN_SIZE, file, options, written},
            ops::Op,
        },
    },
    consumers::{sendfile, write::Versions},
    host::schedule,
    kernel::{proc, resident, shortage},
    kld::module::Module,
    scenarios::fixture::Fixture,
};

const SENDERS: u64 = 3;

/// How to torture.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Stop after so many minutes.
    pub minutes: f64,
    /// Stop after so many calls of the VOPs for each seed.
    pub calls: u64,
    /// Seeds, from the first one on.
    pub seeds: u64,
    /// One thread only, so that a seed gives the same run each time.
    pub deterministic: bool,
}

/// Torture the module with seeds `common.seed..` until time or calls are over.
pub fn run(common: &Common, plan: Plan, save: &Path) -> Result<()> {
    let end = Instant::now() + Duration::from_secs_f64((plan.minutes * 60.0).clamp(0.0, 1e6));
    let total = plan.calls.saturating_mul(plan.seeds);
    let bar = if common.json { ProgressBar::hidden() } else { ProgressBar::new(total) };
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} calls, {msg}")?);
    let tally = Tally::default();
    let (mut errors, mut done) = (0, 0);
    for seed in common.seed..common.seed.saturating_add(plan.seeds) {
        bar.set_message(format!("seed {seed}"));
        let how = json!({
            "seed": seed, "calls": plan.calls, "deterministic": plan.deterministic,
            "ko": common.ko.display().to_string(),
        });
        rules::keep_history(save.to_path_buf(), how);
        errors += one(common, seed, plan, end, &tally, &bar)
            .unwrap_or_else(|error| rules::violation("torture", format!("seed {seed}: {error:#}")));
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
            "page_allocations_failed": get(&shortage::ALLOCS_FAILED),
        },
        "pages_reclaimed": get(&tally.reclaimed),
        "reloads": get(&tally.reloads),
        "switches": get(&tally.switched),
        "truncations_and_extensions": get(&tally.resized),
        "forced_unmounts": get(&tally.unmounted),
        "requests_refused": get(&tally.refused),
        "pages_busied_shared": get(&tally.shared),
        "writes": get(&tally.written),
        "swap_requests": get(&tally.swapped),
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
    plan: Plan,
    end: Instant,
    tally: &Tally,
    bar: &ProgressBar,
) -> Result<u64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let all = DISK + WRITTEN_SIZE as usize + MAPS;
    let image: Vec<u8> = std::iter::repeat_with(|| rng.u8(1..)).take(all).collect();
    let sector = if rng.u8(..4) == 0 { 4096 } else { 512 };
    let options = options();
    let mut fixture =
        Fixture::new(Some(&common.ko), &options, image, sector, seed, !plan.deterministic)?;
    let mut files: Vec<_> = ["", "", "", "", "", CUT]
        .map(|path| Slot::new(file(&fixture, path, sector as u64, &mut rng)))
        .into_iter()
        .collect();
    let written = written(&fixture, &mut rng);
    fixture.versions = Versions::new(written.inode.size);
    files.push(Slot::new(written));
    let before = sendfile::CALLS.load(Ordering::Relaxed);
    let over = || {
        bar.set_position(sendfile::CALLS.load(Ordering::Relaxed));
        sendfile::CALLS.load(Ordering::Relaxed) - before >= plan.calls || Instant::now() >= end
    };
    let module = Mutex::new(fixture.module.take());
    let result = if plan.deterministic {
        single(common, &fixture, &module, &files, &mut rng, tally, over)
    } else {
        threads(common, &fixture, &module, &files, &mut rng, tally, over)
    };
    fixture.module = module.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    result?;
    shortage::end();
    sendfile::LINGER.store(0, Ordering::Relaxed);
    while resident::unbusy_shared() {}
    let errors = fixture.disk.errors.load(Ordering::Relaxed);
    fixture.finish()?;
    Ok(errors)
}

/// Senders in threads of their own, and disturbances beside them.
fn threads(
    common: &Common,
    fixture: &Fixture,
    module: &Mutex<Option<Module>>,
    files: &[Slot],
    rng: &mut fastrand::Rng,
    tally: &Tally,
    over: impl Fn() -> bool,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let (stop, mut rng) = (&stop, rng.fork());
                scope.spawn(move || -> Result<()> {
                    proc::attach();
                    while !stop.load(Ordering::Relaxed) {
                        Op::draw(files, &mut rng).begin(fixture).end(fixture, tally)?;
                    }
                    Ok(())
                })
            })
            .collect();
        let mut chaos = Ok(());
        while chaos.is_ok() && !over() && !senders.iter().any(|s| s.is_finished()) {
            std::thread::sleep(Duration::from_millis(rng.u64(1..6)));
            chaos = disturb(common, fixture, module, files, rng, tally);
        }
        stop.store(true, Ordering::Relaxed);
        while resident::unbusy_shared() {}
        for sender in senders {
            sender.join().map_err(|_| anyhow!("a sender panicked"))??;
        }
        chaos
    })
}

/// All in one thread: a few requests are in flight at once, and the disk completes
/// their bufs whenever the thread waits.
fn single(
    common: &Common,
    fixture: &Fixture,
    module: &Mutex<Option<Module>>,
    files: &[Slot],
    rng: &mut fastrand::Rng,
    tally: &Tally,
    over: impl Fn() -> bool,
) -> Result<()> {
    proc::attach();
    let mut under_way = Vec::new();
    while !over() {
        match rng.u8(..16) {
            0 => disturb(common, fixture, module, files, rng, tally)?,
            1..=4 => drop(schedule::pump()),
            _ if under_way.len() < 4 && rng.bool() => {
                under_way.push(Op::draw(files, rng).begin(fixture));
            }
            _ if under_way.is_empty() => {}
            _ => under_way.swap_remove(rng.usize(..under_way.len())).end(fixture, tally)?,
        }
    }
    under_way.into_iter().try_for_each(|op| op.end(fixture, tally))
}
