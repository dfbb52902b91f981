// SPDX-License-Identifier: BSD-2-Clause
//! condvar(9).

use std::{
    collections::BTreeMap,
    ffi::c_char,
    sync::{Condvar, Mutex},
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

/// Condition variables that are initialized, and how often each was broadcast.
static ALL: Mutex<BTreeMap<usize, u64>> = Mutex::new(BTreeMap::new());
static BROADCAST: Condvar = Condvar::new();

/// Condition variables that are initialized.
pub fn condvars() -> usize {
    ALL.lock().unwrap().len()
}

/// `cv_init`.
pub extern "C" fn cv_init(cv: *mut sys::cv, _: *const c_char) {
    let before = ALL.lock().unwrap().insert(cv as usize, 0);
    rule("cv_init", before.is_none(), "initialized already");
}

/// `cv_destroy`.
pub extern "C" fn cv_destroy(cv: *mut sys::cv) {
    let before = ALL.lock().unwrap().remove(&(cv as usize));
    rule("cv_destroy", before.is_some(), "not initialized");
}

/// `_cv_wait`: the lock is a mutex's.
pub extern "C" fn cv_wait(cv: *mut sys::cv, lock: *mut sys::lock_object) {
    let call = "cv_wait";
    let count = |all: &BTreeMap<usize, u64>| all.get(&(cv as usize)).copied();
    let before = count(&ALL.lock().unwrap());
    rule(call, before.is_some(), "not initialized");
    record(call, format_args!("{cv:?}"));
    let mutex = mutex::mtx_of(lock);
    // SAFETY: the caller's mutex, which it holds.
    unsafe { mutex::mtx_unlock(mutex, 0, std::ptr::null(), 0) };
    sleep::waits(call);
    let mut all = ALL.lock().unwrap();
    while count(&all) == before {
        if schedule::is_one_thread() {
            drop(all);
            if !schedule::pump() {
                violation(call, "no thread is left to broadcast: the thread sleeps for ever");
            }
            all = ALL.lock().unwrap();
        } else {
            all = BROADCAST.wait_timeout(all, Duration::from_millis(50)).unwrap().0;
        }
    }
    drop(all);
    // SAFETY: the caller's mutex.
    unsafe { mutex::mtx_lock(mutex, 0, std::ptr::null(), 0) };
}

/// `cv_broadcastpri`.
pub extern "C" fn cv_broadcast(cv: *mut sys::cv, _: i32) {
    let mut all = ALL.lock().unwrap();
    let count = all.get_mut(&(cv as usize));
    rule("cv_broadcast", count.is_some(), "not initialized");
    if let Some(count) = count {
        *count += 1;
    }
    BROADCAST.notify_all();
}
