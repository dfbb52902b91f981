// SPDX-License-Identifier: BSD-2-Clause
//! Rules of taskqueue(9).

use std::{
    ffi::{c_int, c_void},
    ptr,
};

use asyncpager::kpi::sys;

use crate::{
    host::{low_memory, schedule},
    kernel::taskqueue,
    rule_tests::locks::{lock, mutex},
};

pub fn queue(threads: c_int) -> *mut c_void {
    let place: *mut *mut c_void = low_memory::zeroed();
    // SAFETY: fresh memory, and C strings.
    unsafe {
        *place = taskqueue::taskqueue_create(
            c"tasks".as_ptr(),
            sys::M_WAITOK,
            taskqueue::taskqueue_thread_enqueue as *const c_void,
            place.cast(),
        );
        if threads > 0 {
            taskqueue::taskqueue_start_threads(place, threads, 0, c"tasks".as_ptr());
        }
        *place
    }
}

type Work = unsafe extern "C" fn(*mut c_void, c_int);

pub fn task(work: Work, context: *mut c_void) -> *mut sys::task {
    let task: *mut sys::task = low_memory::zeroed();
    // SAFETY: fresh memory.
    unsafe { ((*task).ta_func, (*task).ta_context) = (Some(work), context) };
    task
}

pub fn enqueue(queue: *mut c_void, task: *mut sys::task) {
    // SAFETY: the caller's task.
    unsafe { taskqueue::taskqueue_enqueue(queue, task) };
}

/// A task that does nothing.
pub unsafe extern "C" fn idles(_: *mut c_void, _: c_int) {}

unsafe extern "C" fn works_locked(context: *mut c_void, _: c_int) {
    lock(context.cast());
}

unsafe extern "C" fn drains_its_task(context: *mut c_void, _: c_int) {
    // SAFETY: a queue and its task, as task_drains_itself() has put them there.
    let [queue, task] = unsafe { context.cast::<[*mut c_void; 2]>().read() };
    taskqueue::taskqueue_drain(queue, task.cast());
}

pub fn task_on_a_freed_queue() {
    let queue = queue(1);
    taskqueue::taskqueue_free(queue);
    enqueue(queue, task(idles, ptr::null_mut()));
}

pub fn task_without_a_thread() {
    enqueue(queue(0), task(idles, ptr::null_mut()));
}

pub fn task_not_initialized() {
    enqueue(queue(1), low_memory::zeroed());
}

pub fn task_drains_itself() {
    let context: *mut [*mut c_void; 2] = low_memory::zeroed();
    let (queue, task) = (queue(1), task(drains_its_task, context.cast()));
    // SAFETY: fresh memory.
    unsafe { context.write([queue, task.cast()]) };
    enqueue(queue, task);
    schedule::pump();
}

pub fn task_keeps_a_mutex() {
    enqueue(queue(1), task(works_locked, mutex(c"lone", 0).cast()));
    schedule::pump();
}
