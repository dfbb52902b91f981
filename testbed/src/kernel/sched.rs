// SPDX-License-Identifier: BSD-2-Clause
//! The scheduler: thread locks, critical sections, binding to a CPU, yielding
//! (sys/sched.h, critical_enter(9)).

use std::{
    cell::Cell,
    ffi::c_char,
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};

use asyncpager::kpi::sys;

use crate::{
    checks::{preemption, rules::rule, sleep::may_sleep},
    kernel::{pcpu::curthread, proc},
};

thread_local! {
    /// The CPU that this thread is bound to.
    static BOUND: Cell<Option<i32>> = const { Cell::new(None) };
}

/// The CPU that a real-time thread occupies, or -1.
pub static HOG: AtomicI32 = AtomicI32::new(-1);

/// At the end of a call into the module, the thread must be free to move and to sleep.
pub fn unbound(call: &str) {
    rule(call, BOUND.get().is_none(), "the thread is left bound to a CPU");
    preemption::none_left(call);
}

/// `critical_enter_KBI`.
pub extern "C" fn critical_enter() {
    preemption::critical_enter();
}

/// `critical_exit_KBI`.
pub extern "C" fn critical_exit() {
    preemption::critical_exit();
}

/// `thread_lock_flags_`.
pub extern "C" fn thread_lock(thread: *mut sys::thread, _: i32, _: *const c_char, _: i32) {
    rule("thread_lock", proc::is_thread(thread), "not a thread");
    preemption::lock_thread(thread as usize);
}

/// `__mtx_unlock_spin_flags`: thread locks are the module's only spin mutexes.
pub extern "C" fn thread_unlock(_: *mut usize, _: i32, _: *const c_char, _: i32) {
    preemption::unlock_thread();
}

/// `kern_yield`: everything else that is runnable on the CPU runs first.
pub extern "C" fn kern_yield(_: i32) {
    may_sleep("kern_yield");
    std::thread::yield_now();
    while BOUND.get() == Some(HOG.load(Ordering::Acquire)) {
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn locks_itself() -> bool {
    preemption::is_thread_locked(curthread() as usize)
}

/// `sched_bind`.
pub extern "C" fn sched_bind(_: *mut sys::thread, cpu: i32) {
    rule("sched_bind", locks_itself(), "the thread lock is not held");
    rule("sched_bind", cpu >= 0, "no such CPU");
    BOUND.set(Some(cpu));
}

/// `sched_unbind`.
pub extern "C" fn sched_unbind(_: *mut sys::thread) {
    rule("sched_unbind", locks_itself(), "the thread lock is not held");
    rule("sched_unbind", BOUND.replace(None).is_some(), "not bound");
}
