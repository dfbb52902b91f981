// SPDX-License-Identifier: BSD-2-Clause
//! Rules of malloc(9).

use std::ptr;

use asyncpager::kpi::sys;

use crate::{
    checks::sleep,
    host::{low_memory, thread::Context},
    kernel::{callout, malloc},
    rule_tests::{
        callouts::{arm, sleeps},
        tasks::{enqueue, idles, queue},
    },
};

pub fn kind(name: &'static std::ffi::CStr) -> *mut sys::malloc_type {
    let kind: *mut sys::malloc_type = low_memory::zeroed();
    // SAFETY: fresh memory.
    unsafe { (*kind).ks_shortdesc = name.as_ptr() };
    kind
}

pub fn callout_freed() {
    let kind = kind(c"one");
    let at = malloc::malloc(size_of::<sys::callout>(), kind, sys::M_WAITOK);
    callout::callout_init(at.cast(), 1);
    arm(at.cast(), sleeps, ptr::null_mut());
    malloc::free(at, kind);
}

pub fn task_freed() {
    let kind = kind(c"one");
    let at = malloc::malloc(size_of::<sys::task>(), kind, sys::M_WAITOK | sys::M_ZERO);
    // SAFETY: a task's size.
    unsafe { (*at.cast::<sys::task>()).ta_func = Some(idles) };
    enqueue(queue(1), at.cast());
    malloc::free(at, kind);
}

pub fn freed_twice() {
    let kind = kind(c"one");
    let at = malloc::malloc(24, kind, sys::M_WAITOK);
    malloc::free(at, kind);
    malloc::free(at, kind);
}

pub fn freed_as_another_type() {
    malloc::free(malloc::malloc(24, kind(c"one"), sys::M_WAITOK), kind(c"two"));
}

pub fn written_behind() {
    let kind = kind(c"one");
    let at = malloc::malloc(24, kind, sys::M_WAITOK);
    // SAFETY: on purpose; within what the host has given.
    unsafe { at.cast::<u8>().add(24).write(0) };
    malloc::free(at, kind);
}

pub fn written_after_free() {
    let kind = kind(c"one");
    let at = malloc::malloc(24, kind, sys::M_WAITOK);
    malloc::free(at, kind);
    // SAFETY: on purpose; in quarantine it is still the host's to write.
    unsafe { at.cast::<u8>().write(0) };
    malloc::malloc_uninit(kind.cast());
}

pub fn allocation_left() {
    let kind = kind(c"one");
    malloc::malloc(24, kind, sys::M_WAITOK);
    malloc::malloc_uninit(kind.cast());
}

pub fn waiting_malloc() {
    sleep::run_as(Context::Completion, "b_iodone", || {
        malloc::malloc(24, kind(c"one"), sys::M_WAITOK)
    });
}

pub fn malloc_without_a_mode() {
    malloc::malloc(24, kind(c"one"), 0);
}
