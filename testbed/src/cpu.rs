// SPDX-License-Identifier: BSD-2-Clause
//! Threads as the module sees them: a pcpu behind %gs with curthread and counters.

use std::{cell::Cell, ffi::c_char, sync::Mutex};

use asyncpager::kpi::sys;

use crate::{low, rules::rule};

/// Bytes of one fake pcpu; counters lie behind the structure.
const SIZE: usize = 64 << 10;

static ALL: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static COUNTERS: Mutex<Vec<Option<()>>> = Mutex::new(Vec::new());

/// Those whose thread has ended; counters keep what they have.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// A thread's pcpu, for the next thread when this one ends.
struct Pcpu(Cell<usize>);

impl Drop for Pcpu {
    fn drop(&mut self) {
        FREE.lock().unwrap().extend(Some(self.0.get()).filter(|pcpu| *pcpu != 0));
    }
}

thread_local! {
    static MINE: Pcpu = const { Pcpu(Cell::new(0)) };
}

/// Make the calling host thread one that may run the module's code.
pub fn attach() {
    if MINE.with(|mine| mine.0.get()) != 0 {
        return;
    }
    let pcpu = match FREE.lock().unwrap().pop() {
        Some(pcpu) => pcpu,
        None => new(),
    };
    const ARCH_SET_GS: libc::c_int = 0x1001;
    // SAFETY: changes only %gs, which a Linux program does not use.
    let failed = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, pcpu) };
    assert_eq!(failed, 0, "arch_prctl(ARCH_SET_GS)");
    MINE.with(|mine| mine.0.set(pcpu));
}

/// Note that the calling thread is in a system call with this number, for as
/// long as `f` runs.
pub fn in_syscall<T>(code: u32, f: impl FnOnce() -> T) -> T {
    let thread = curthread();
    // SAFETY: the calling thread's own structure.
    let before = unsafe { std::mem::replace(&mut (*thread).td_sa.code, code) };
    let result = f();
    // SAFETY: as above.
    unsafe { (*thread).td_sa.code = before };
    result
}

/// Have the calling thread belong to a user for as long as `f` runs.
pub fn as_user<T>(uid: u32, f: impl FnOnce() -> T) -> T {
    // SAFETY: the calling thread's own credentials, which no other thread has.
    let cred = unsafe { (*curthread()).td_ucred };
    // SAFETY: as above.
    let before = unsafe { std::mem::replace(&mut (*cred).cr_ruid, uid) };
    let result = f();
    // SAFETY: as above.
    unsafe { (*cred).cr_ruid = before };
    result
}

/// curthread.
pub fn curthread() -> *mut sys::thread {
    let pcpu = MINE.with(|mine| mine.0.get()) as *const sys::pcpu;
    // SAFETY: an attached thread's pcpu.
    unsafe { (*pcpu).pc_curthread }
}

fn new() -> usize {
    let pcpu = low::variable(SIZE) as usize;
    let thread: *mut sys::thread = low::zeroed();
    let cred: *mut sys::ucred = low::zeroed();
    // SAFETY: fresh memory of the right size.
    unsafe {
        (*thread).td_ucred = cred;
        (*(pcpu as *mut sys::pcpu)).pc_curthread = thread;
    }
    ALL.lock().unwrap().push(pcpu);
    pcpu
}

fn offset(slot: usize) -> usize {
    size_of::<sys::pcpu>().next_multiple_of(64) + slot * 8
}

/// counter_u64_alloc(9): the handle is the counter's offset from %gs.
pub extern "C" fn counter_u64_alloc(_flags: i32) -> *mut u64 {
    crate::rules::may_sleep("counter_u64_alloc");
    let mut counters = COUNTERS.lock().unwrap();
    let slot = counters.iter().position(Option::is_none).unwrap_or(counters.len());
    if slot == counters.len() {
        counters.push(None);
    }
    counters[slot] = Some(());
    assert!(offset(slot) + 8 <= SIZE, "too many counters");
    let handle = offset(slot) as *mut u64;
    for pcpu in ALL.lock().unwrap().iter() {
        // SAFETY: within every pcpu.
        unsafe { ((pcpu + handle as usize) as *mut u64).write_volatile(0) };
    }
    handle
}

/// A counter that nobody reads, for the system's own statistics.
pub fn spare_counter() -> *mut u64 {
    (SIZE - 8) as *mut u64
}

/// counter_u64_free(9).
pub extern "C" fn counter_u64_free(counter: *mut u64) {
    let slot = (counter as usize).wrapping_sub(offset(0)) / 8;
    let mut counters = COUNTERS.lock().unwrap();
    rule("counter_u64_free", counters.get(slot).is_some_and(Option::is_some), "not a live counter");
    counters[slot] = None;
}

/// The sum over all threads.
pub fn counter_fetch(counter: *mut u64) -> u64 {
    let all = ALL.lock().unwrap();
    all.iter().fold(0, |sum, pcpu| {
        // SAFETY: `counter` is an offset within every pcpu.
        sum.wrapping_add(unsafe { ((pcpu + counter as usize) as *const u64).read_volatile() })
    })
}

/// `counter_u64_fetch`.
pub extern "C" fn counter_u64_fetch(counter: *mut u64) -> u64 {
    counter_fetch(counter)
}

/// Counters that are allocated now.
pub fn counters() -> usize {
    COUNTERS.lock().unwrap().iter().flatten().count()
}

thread_local! {
    /// Critical sections that this thread is in.
    static CRITICAL: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread is bound to a CPU.
    static BOUND: Cell<bool> = const { Cell::new(false) };
    /// Whether this thread holds its own thread lock, a spin mutex.
    static THREAD_LOCK: Cell<bool> = const { Cell::new(false) };
}

/// Nothing of this thread's keeps it where it is: at the end of a call into the module.
pub fn unbound(call: &str) {
    rule(call, !BOUND.get(), "the thread is left bound to a CPU");
    rule(call, CRITICAL.get() == 0, "the thread is left in a critical section");
    rule(call, !THREAD_LOCK.get(), "the thread lock is left locked");
}

/// The call may sleep, or take a lock that may: never where preemption is off.
pub fn preemptible(call: &str) {
    rule(call, CRITICAL.get() == 0, "sleeping in a critical section");
    rule(call, !THREAD_LOCK.get(), "sleeping with the thread lock held");
}

/// `critical_enter_KBI`.
pub extern "C" fn critical_enter() {
    CRITICAL.set(CRITICAL.get() + 1);
}

/// `critical_exit_KBI`.
pub extern "C" fn critical_exit() {
    rule("critical_exit", CRITICAL.get() > 0, "not in a critical section");
    CRITICAL.set(CRITICAL.get() - 1);
}

/// `thread_lock_flags_`.
pub extern "C" fn thread_lock(thread: *mut sys::thread, _: i32, _: *const c_char, _: i32) {
    rule("thread_lock", thread == curthread(), "another thread's");
    rule("thread_lock", !THREAD_LOCK.replace(true), "locked already");
}

/// `__mtx_unlock_spin_flags`: the thread lock is the module's only spin mutex.
pub extern "C" fn thread_unlock(_: *mut usize, _: i32, _: *const c_char, _: i32) {
    rule("thread_unlock", THREAD_LOCK.replace(false), "not locked");
}

/// `sched_bind`.
pub extern "C" fn sched_bind(_: *mut sys::thread, cpu: i32) {
    rule("sched_bind", THREAD_LOCK.get(), "the thread lock is not held");
    rule("sched_bind", cpu >= 0, "no such CPU");
    BOUND.set(true);
}

/// `sched_unbind`.
pub extern "C" fn sched_unbind(_: *mut sys::thread) {
    rule("sched_unbind", THREAD_LOCK.get(), "the thread lock is not held");
    rule("sched_unbind", BOUND.replace(false), "not bound");
}
