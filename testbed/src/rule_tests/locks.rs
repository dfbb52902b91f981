// SPDX-License-Identifier: BSD-2-Clause
//! Rules of mutex(9), rwlock(9) and their order.

use std::{ffi::c_int, ptr};

use asyncpager::kpi::sys;

use crate::{
    checks::{sleep, witness},
    host::low_memory,
    kernel::{mutex, rwlock, vm_object, vnode},
};

pub fn mutex(class: &std::ffi::CStr, opts: c_int) -> *mut usize {
    let mutex = low_memory::zeroed();
    // SAFETY: fresh memory, and a C string.
    unsafe { mutex::mtx_init(mutex, class.as_ptr(), ptr::null(), opts) };
    mutex
}

pub fn lock(mutex: *mut usize) {
    // SAFETY: a mutex of `mutex`, or an address that is only looked up.
    unsafe { mutex::mtx_lock(mutex, 0, c"here.c".as_ptr(), 7) };
}

pub fn unlock(mutex: *mut usize) {
    // SAFETY: as above.
    unsafe { mutex::mtx_unlock(mutex, 0, c"here.c".as_ptr(), 8) };
}

pub fn both(first: *mut usize, second: *mut usize) {
    lock(first);
    lock(second);
    unlock(second);
    unlock(first);
}

pub fn order_reversed() {
    let (a, b) = (mutex(c"a", 0), mutex(c"b", 0));
    both(a, b);
    both(b, a);
}

pub fn order_by_way_of_a_third() {
    let (a, b, c) = (mutex(c"a", 0), mutex(c"b", 0), mutex(c"c", 0));
    both(a, b);
    both(b, c);
    both(c, a);
}

pub fn twins_reversed() {
    let (a, b) = (mutex(c"twins", sys::MTX_DUPOK), mutex(c"twins", sys::MTX_DUPOK));
    both(a, b);
    both(b, a);
}

pub fn second_of_a_class() {
    both(mutex(c"lone", 0), mutex(c"lone", 0));
}

pub fn two_objects() {
    let (a, b) = (vm_object::new_object(1), vm_object::new_object(1));
    rwlock::with_object(a, || rwlock::with_object(b, || ()));
}

pub fn mutex_recursed() {
    let a = mutex(c"lone", 0);
    both(a, a);
}

pub fn object_lock_recursed() {
    let object = vm_object::new_object(1);
    rwlock::with_object(object, || rwlock::with_object(object, || ()));
}

pub fn mutex_not_owned() {
    unlock(mutex(c"lone", 0));
}

pub fn wrong_mode() {
    let cookie = rwlock::object_cookie(vm_object::new_object(1)) as *mut usize;
    rwlock::rw_rlock(cookie, ptr::null(), 0);
    rwlock::rw_wunlock(cookie, ptr::null(), 0);
}

pub fn mutex_not_initialized() {
    lock(low_memory::zeroed());
}

pub fn mutex_initialized_twice() {
    let a = mutex(c"lone", 0);
    // SAFETY: memory of a mutex.
    unsafe { mutex::mtx_init(a, c"again".as_ptr(), ptr::null(), 0) };
}

pub fn mutex_used_after_destroy() {
    let a = mutex(c"lone", 0);
    // SAFETY: a live mutex.
    unsafe { mutex::mtx_destroy(a) };
    lock(a);
}

pub fn mutex_destroyed_recursed() {
    let a = mutex(c"lone", sys::MTX_RECURSE);
    lock(a);
    lock(a);
    // SAFETY: a live mutex.
    unsafe { mutex::mtx_destroy(a) };
}

pub fn asleep() {
    lock(mutex(c"lone", 0));
    sleep::may_sleep("pause_sbt");
}

pub fn vnode_lock_with_a_mutex() {
    lock(mutex(c"lone", 0));
    let place = witness::Place::new("vn_lock", ptr::null(), 0);
    // The address of a vnode is all that its lock needs.
    let lock = vnode::vnode_lock(low_memory::zeroed());
    witness::check(&lock, &place);
}
