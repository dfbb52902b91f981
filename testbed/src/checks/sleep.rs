// SPDX-License-Identifier: BSD-2-Clause
//! Which calls may sleep, and when.

use std::cell::Cell;

use crate::{
    checks::{preemption, rules::rule, witness},
    host::thread::{self, Context},
};

thread_local! {
    static WAITS: Cell<u64> = const { Cell::new(0) };
}

/// Runs `f` as another kernel thread does: with none of this one's locks, and
/// without any when it returns.
pub fn run_as<T>(context: Context, call: &str, f: impl FnOnce() -> T) -> T {
    thread::in_context(context, || witness::without_locks(call, f))
}

/// The call may sleep: checks the kind of thread, preemption and the locks held.
pub fn may_sleep(call: &str) {
    let context = thread::context();
    rule(call, context.may_sleep(), format_args!("sleeping in a {} thread", context.name()));
    preemption::preemptible(call);
    witness::sleeping(call);
}

/// The call must not be made with a lock held that forbids to sleep.
pub fn no_lock(call: &str) {
    witness::lockless(call);
}

/// The calling thread waits for I/O, or pauses; counted.
pub fn waits(call: &str) {
    may_sleep(call);
    WAITS.set(WAITS.get() + 1);
}

/// How often the calling thread has waited.
pub fn waited() -> u64 {
    WAITS.get()
}
