// SPDX-License-Identifier: BSD-2-Clause
//! Waits until every CPU has run its runnable threads (sched(9), smp(9)).

use super::sys;

/// Runs on every CPU in turn, each time behind all threads that were runnable
/// on that CPU. Passes over the CPUs twice.
///
/// A thread in a window of a few instructions at the module's entry or exit is
/// running or runnable: it does not sleep there. So it has left the window when
/// this returns, unless it belongs to the idle class.
///
/// `next` gets the number of each CPU before the wait for it, since a real-time
/// thread may occupy that CPU for ever. The calling thread belongs to the
/// module, and keeps its low priority afterwards.
///
/// Locks: none. Sleeps: yes.
pub fn pass_every_cpu(next: impl Fn(u32)) {
    // SAFETY: a plain variable, constant after boot.
    let last = unsafe { sys::mp_maxid };
    // A thread can migrate to a CPU that this pass has left already, hence two
    // passes.
    for _ in 0..2 {
        for cpu in 0..=last {
            next(cpu);
            // SAFETY: the thread holds no locks and may sleep; the shim skips
            // absent CPUs.
            unsafe { sys::shim_cpu_pass(cpu) };
        }
    }
    // SAFETY: undoes the binding made above.
    unsafe { sys::shim_cpu_unbind() };
}
