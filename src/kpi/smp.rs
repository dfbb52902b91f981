// SPDX-License-Identifier: BSD-2-Clause
//! Waiting until every CPU has moved on (sched(9), smp(9)).

use super::sys;

/// Run on every CPU in turn, each time behind all that was runnable there.
///
/// A thread that was about to enter this module when its way in was taken
/// away, or about to return from it, was running or runnable: it does not
/// sleep between the two instructions in question. When this returns, it has
/// gone on, unless it is of the idle class. `next` is told of each CPU before
/// it is waited for: a real-time thread may keep it for ever.
///
/// Called in a thread of the module's own, whose priority stays low after this.
/// Locks: none. Sleeps: yes.
pub fn pass_every_cpu(next: impl Fn(u32)) {
    // SAFETY: a plain variable that never changes after boot.
    let last = unsafe { sys::mp_maxid };
    // A thread can migrate away from a CPU that is still to come, so twice.
    for _ in 0..2 {
        for cpu in 0..=last {
            next(cpu);
            // SAFETY: called without locks, in a thread that may sleep; the
            // shim skips CPUs that are not there.
            unsafe { sys::shim_cpu_pass(cpu) };
        }
    }
    // SAFETY: undoes the binding above.
    unsafe { sys::shim_cpu_unbind() };
}
