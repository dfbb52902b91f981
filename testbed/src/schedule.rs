// SPDX-License-Identifier: BSD-2-Clause
//! One host thread that plays all the kernel's threads: whenever it would
//! sleep, the seed picks who runs instead.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use crate::{callout, clock, disk, taskqueue, vm};

static ONE: AtomicBool = AtomicBool::new(false);
static RNG: Mutex<Option<fastrand::Rng>> = Mutex::new(None);

/// From now on there is one thread only, or there are many.
pub fn begin(one_thread: bool, seed: u64) {
    ONE.store(one_thread, Ordering::Release);
    *RNG.lock().unwrap() = one_thread.then(|| fastrand::Rng::with_seed(seed ^ 0x5eed));
    clock::begin(one_thread);
}

/// Whether there is one thread only.
pub fn is_one_thread() -> bool {
    ONE.load(Ordering::Acquire)
}

/// Somebody waits: let one other thread of the kernel make a step. False when
/// none can, or when the host has threads for that.
pub fn pump() -> bool {
    let pick = {
        let mut rng = RNG.lock().unwrap();
        let Some(rng) = rng.as_mut() else { return false };
        clock::tick();
        let ready = [disk::waiting(), callout::due(), taskqueue::waiting(), vm::shared()];
        let all: usize = ready.iter().sum();
        // Nobody has anything to do before the next callout.
        (all > 0).then(|| {
            let mut at = rng.usize(..all);
            ready.iter().position(|n| {
                at < *n || {
                    at -= n;
                    false
                }
            })
        })
    };
    match pick.flatten() {
        Some(0) => disk::pump(),
        Some(1) => callout::run_one(),
        Some(2) => taskqueue::run_one(),
        Some(_) => vm::unbusy_shared(),
        None => callout::wait_for_next() && callout::run_one(),
    }
}
