// SPDX-License-Identifier: BSD-2-Clause
//! One host thread that plays all the kernel's threads: whenever it would
//! sleep, the seed picks the thread that runs instead.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use crate::host::clock;

/// A kind of thread that the one host thread can play.
#[derive(Clone, Copy)]
pub struct Thread {
    /// How many steps such threads could make now.
    pub ready: fn() -> usize,
    /// Makes one step; false when none could be made.
    pub step: fn() -> bool,
}

/// The threads of a kernel.
#[derive(Clone, Copy)]
pub struct Threads {
    /// All kinds of them. A seed repeats a run for the same order of kinds only.
    pub kinds: &'static [Thread],
    /// Lets time pass until a thread has something to do, and makes that step.
    pub idle: fn() -> bool,
}

static ONE: AtomicBool = AtomicBool::new(false);
static STATE: Mutex<Option<(fastrand::Rng, Threads)>> = Mutex::new(None);

/// From now on one host thread plays `threads`, as `seed` picks them; with `None`
/// there are host threads for them.
pub fn begin(threads: Option<Threads>, seed: u64) {
    let one_thread = threads.is_some();
    ONE.store(one_thread, Ordering::Release);
    *STATE.lock().unwrap() =
        threads.map(|threads| (fastrand::Rng::with_seed(seed ^ 0x5eed), threads));
    clock::begin(one_thread);
}

/// Whether one host thread plays all threads.
pub fn is_one_thread() -> bool {
    ONE.load(Ordering::Acquire)
}

/// The calling thread waits: lets one other thread of the kernel make a step.
/// False when none can, or when the host has threads for that.
pub fn pump() -> bool {
    let (pick, threads) = {
        let mut state = STATE.lock().unwrap();
        let Some((rng, threads)) = state.as_mut() else { return false };
        clock::tick();
        let ready: Vec<_> = threads.kinds.iter().map(|kind| (kind.ready)()).collect();
        let all: usize = ready.iter().sum();
        let pick = (all > 0).then(|| {
            let mut at = rng.usize(..all);
            ready.iter().position(|n| {
                at < *n || {
                    at -= n;
                    false
                }
            })
        });
        (pick.flatten(), *threads)
    };
    match pick {
        Some(kind) => (threads.kinds[kind].step)(),
        None => (threads.idle)(),
    }
}
