// SPDX-License-Identifier: BSD-2-Clause
//! Waiting until every CPU has moved on (sched(9), smp(9)).

use super::sys;

/// Run on every CPU in turn, each time behind all that was runnable there.
///
/// A thread that was about to enter this module when its way in was taken
/// away, or about to return from it, was running or runnable: it does not
/// sleep between the two instructions in question. When this returns, it has
/// gone on. May sleep; changes nothing about the calling thread's affinity.
pub fn pass_every_cpu() {
    // SAFETY: a plain variable that never changes after boot.
    let last = unsafe { sys::mp_maxid };
    // A thread can migrate away from a CPU that is still to come, so twice.
    for _ in 0..2 {
        for cpu in 0..=last {
            // SAFETY: called from a module event without locks; the shim
            // skips CPUs that are not there.
            unsafe { sys::shim_cpu_pass(cpu) };
        }
    }
    // SAFETY: undoes the binding above.
    unsafe { sys::shim_cpu_unbind() };
}
