// SPDX-License-Identifier: BSD-2-Clause
//! Critical sections and the thread lock, a spin mutex: while a thread is in
//! one or holds the other, it must not sleep.

use std::cell::Cell;

use crate::checks::rules::rule;

thread_local! {
    /// Critical sections that this thread is in.
    static CRITICAL: Cell<usize> = const { Cell::new(0) };
    /// The thread whose thread lock this thread holds, by its address, or 0.
    static THREAD_LOCK: Cell<usize> = const { Cell::new(0) };
}

/// The call may sleep, or take a lock that may: preemption must be on.
pub fn preemptible(call: &str) {
    rule(call, CRITICAL.get() == 0, "sleeping in a critical section");
    rule(call, THREAD_LOCK.get() == 0, "sleeping with the thread lock held");
}

/// At the end of a call into the module, preemption must be on.
pub fn none_left(call: &str) {
    rule(call, CRITICAL.get() == 0, "the thread is left in a critical section");
    rule(call, THREAD_LOCK.get() == 0, "the thread lock is left locked");
}

/// critical_enter(9).
pub fn critical_enter() {
    CRITICAL.set(CRITICAL.get() + 1);
}

/// critical_exit(9).
pub fn critical_exit() {
    rule("critical_exit", CRITICAL.get() > 0, "not in a critical section");
    CRITICAL.set(CRITICAL.get() - 1);
}

/// thread_lock() of the thread at this address.
pub fn lock_thread(thread: usize) {
    rule("thread_lock", THREAD_LOCK.replace(thread) == 0, "locked already");
}

/// thread_unlock().
pub fn unlock_thread() {
    rule("thread_unlock", THREAD_LOCK.replace(0) != 0, "not locked");
}

/// Whether this thread holds the thread lock of the thread at this address.
pub fn is_thread_locked(thread: usize) -> bool {
    THREAD_LOCK.get() == thread
}
