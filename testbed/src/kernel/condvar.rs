// SPDX-License-Identifier: BSD-2-Clause
//! condvar(9).

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::c_char,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        rules::{record, rule, violation},
        sleep,
    },
    host::schedule,
    kernel::mutex,
};

/// Condition variables that are initialized, and the threads that wait for each,
/// the oldest first.
static ALL: Mutex<BTreeMap<usize, VecDeque<u64>>> = Mutex::new(BTreeMap::new());
static WOKEN: Condvar = Condvar::new();
/// The next wait's number.
static WAITS: AtomicU64 = AtomicU64::new(0);

/// Condition variables that are initialized.
pub fn condvars() -> usize {
    ALL.lock().unwrap().len()
}

/// `cv_init`.
pub extern "C" fn cv_init(cv: *mut sys::cv, _: *const c_char) {
    let before = ALL.lock().unwrap().insert(cv as usize, VecDeque::new());
    rule("cv_init", before.is_none(), "initialized already");
}

/// `cv_destroy`.
pub extern "C" fn cv_destroy(cv: *mut sys::cv) {
    let before = ALL.lock().unwrap().remove(&(cv as usize));
    rule("cv_destroy", before.is_some_and(|all| all.is_empty()), "not initialized, or waited for");
}

/// `_cv_wait`: the lock is a mutex's.
pub extern "C" fn cv_wait(cv: *mut sys::cv, lock: *mut sys::lock_object) {
    let call = "cv_wait";
    let me = WAITS.fetch_add(1, Ordering::Relaxed);
    let waits = |all: &BTreeMap<usize, VecDeque<u64>>| {
        all.get(&(cv as usize)).is_some_and(|waiting| waiting.contains(&me))
    };
    let known = ALL.lock().unwrap().get_mut(&(cv as usize)).map(|all| all.push_back(me));
    rule(call, known.is_some(), "not initialized");
    record(call, format_args!("{cv:?}"));
    let mutex = mutex::mtx_of(lock);
    // SAFETY: the caller's mutex, which it holds.
    unsafe { mutex::mtx_unlock(mutex, 0, std::ptr::null(), 0) };
    sleep::waits(call);
    let mut all = ALL.lock().unwrap();
    while waits(&all) {
        if schedule::is_one_thread() {
            drop(all);
            if !schedule::pump() {
                violation(call, "no thread is left to wake this one: it sleeps for ever");
            }
            all = ALL.lock().unwrap();
        } else {
            all = WOKEN.wait_timeout(all, Duration::from_millis(50)).unwrap().0;
        }
    }
    drop(all);
    // SAFETY: the caller's mutex.
    unsafe { mutex::mtx_lock(mutex, 0, std::ptr::null(), 0) };
}

/// `cv_signal`: wakes the thread that has waited longest.
pub extern "C" fn cv_signal(cv: *mut sys::cv) {
    let mut all = ALL.lock().unwrap();
    let waiting = all.get_mut(&(cv as usize));
    rule("cv_signal", waiting.is_some(), "not initialized");
    waiting.and_then(VecDeque::pop_front);
    WOKEN.notify_all();
}
