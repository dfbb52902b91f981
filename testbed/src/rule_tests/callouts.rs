// SPDX-License-Identifier: BSD-2-Clause
//! Rules of callout(9).

use std::{ffi::c_void, ptr};

use asyncpager::kpi::sys;

use crate::{
    checks::sleep,
    host::{low_memory, schedule},
    kernel::{callout, mutex},
    rule_tests::locks::{lock, mutex},
};

/// A handler that sleeps.
pub unsafe extern "C" fn sleeps(_: *mut c_void) {
    sleep::may_sleep("pause_sbt");
}

unsafe extern "C" fn takes(arg: *mut c_void) {
    lock(arg.cast());
}

unsafe extern "C" fn drains(arg: *mut c_void) {
    // SAFETY: a callout of `armed`.
    unsafe { callout::callout_stop(arg.cast(), sys::CS_DRAIN, None) };
}

type Handler = unsafe extern "C" fn(*mut c_void);

pub fn arm(callout: *mut sys::callout, handler: Handler, arg: *mut c_void) {
    // SAFETY: the caller's callout.
    unsafe { callout::callout_reset(callout, 1 << 20, 0, Some(handler), arg, 0, 0) };
}

fn armed(handler: Handler, arg: *mut c_void) -> *mut sys::callout {
    let callout = low_memory::zeroed();
    callout::callout_init(callout, 1);
    arm(callout, handler, arg);
    callout
}

pub fn callout_sleeps() {
    armed(sleeps, ptr::null_mut());
    schedule::pump();
}

pub fn callout_keeps_a_mutex() {
    armed(takes, mutex(c"lone", 0).cast());
    schedule::pump();
}

pub fn callout_not_initialized() {
    arm(low_memory::zeroed(), sleeps, ptr::null_mut());
}

pub fn callout_reinitialized() {
    callout::callout_init(armed(sleeps, ptr::null_mut()), 1);
}

pub fn guarded() -> (*mut sys::callout, *mut usize) {
    let mtx: *mut sys::mtx = low_memory::zeroed();
    let callout = low_memory::zeroed();
    // SAFETY: fresh memory.
    unsafe {
        let word = (&raw mut (*mtx).mtx_lock).cast();
        mutex::mtx_init(word, c"lone".as_ptr(), ptr::null(), 0);
        callout::callout_init_lock(callout, &raw mut (*mtx).lock_object, 0);
        (callout, word)
    }
}

pub fn callout_without_its_mutex() {
    arm(guarded().0, sleeps, ptr::null_mut());
}

pub fn callout_drained_locked() {
    let (callout, mutex) = guarded();
    lock(mutex);
    // SAFETY: a live callout.
    unsafe { callout::callout_stop(callout, sys::CS_DRAIN, None) };
}

pub fn callout_drains_itself() {
    let callout = low_memory::zeroed();
    callout::callout_init(callout, 1);
    arm(callout, drains, callout.cast());
    schedule::pump();
}
