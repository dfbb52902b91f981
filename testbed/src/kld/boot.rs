// SPDX-License-Identifier: BSD-2-Clause
//! Starts the kernel's threads: in host threads, or all played by one.

use crate::{
    disk::device,
    host::schedule::{self, Thread, Threads},
    kernel::{callout, resident, taskqueue},
};

/// The threads that one host thread plays.
const THREADS: Threads = Threads {
    kinds: &[
        Thread { ready: device::waiting, step: device::pump },
        Thread { ready: callout::due, step: callout::run_one },
        Thread { ready: taskqueue::waiting, step: taskqueue::run_one },
        Thread { ready: resident::shared, step: resident::unbusy_shared },
    ],
    // Nothing is ready before the next callout's time.
    idle: || callout::wait_for_next() && callout::run_one(),
};

/// Boots with one host thread for all threads, or with one for each.
pub fn boot(one_thread: bool, seed: u64) {
    schedule::begin(one_thread.then_some(THREADS), seed);
}
