// SPDX-License-Identifier: BSD-2-Clause
//! rwlock(9): the locks of objects, and no others.

use std::{
    ffi::{c_char, c_int},
    mem::offset_of,
    ptr,
    sync::LazyLock,
};

use asyncpager::kpi::sys;

use crate::{
    checks::witness::{self, Class, Lock, Place},
    kernel::lock::{release, take, try_lock},
};

fn object_class() -> Class {
    static CLASS: LazyLock<Class> = LazyLock::new(|| witness::class("vm object", "rwlock"));
    *CLASS
}

fn rwlock(cookie: *mut usize) -> Lock {
    let (address, class) = (cookie as usize, object_class());
    // The kernel lets a thread hold the locks of two objects. The module has no reason to, and no
    // order between two objects is known.
    Lock { address, class, sleepable: false, recursable: false, dup_ok: false }
}

/// The address by which an object's lock is known.
pub fn object_cookie(object: *mut sys::vm_object) -> usize {
    object as usize + offset_of!(sys::vm_object, lock) + offset_of!(sys::rwlock, rw_lock)
}

/// Whether this thread holds the object's lock in any mode.
pub fn object_locked(object: *mut sys::vm_object) -> bool {
    witness::held(object_cookie(object)).is_some()
}

/// Whether this thread holds the object's write lock.
pub fn object_write_locked(object: *mut sys::vm_object) -> bool {
    witness::held(object_cookie(object)) == Some(true)
}

/// Hold the object's write lock for as long as `f` runs.
pub fn with_object<T>(object: *mut sys::vm_object, f: impl FnOnce() -> T) -> T {
    let cookie = object_cookie(object) as *mut usize;
    rw_wlock(cookie, ptr::null(), 0);
    let result = f();
    rw_wunlock(cookie, ptr::null(), 0);
    result
}

/// `__rw_rlock`.
pub extern "C" fn rw_rlock(cookie: *mut usize, file: *const c_char, line: c_int) {
    take(rwlock(cookie), false, Place::new("rw_rlock", file, line), "rw_rlock");
}

/// `__rw_try_rlock`.
pub extern "C" fn rw_try_rlock(cookie: *mut usize, file: *const c_char, line: c_int) -> c_int {
    let lock = rwlock(cookie);
    let got = try_lock(lock.address, false);
    if got {
        witness::acquired(lock, false, Place::new("rw_try_rlock", file, line));
    }
    c_int::from(got)
}

/// `_rw_runlock_cookie`.
pub extern "C" fn rw_runlock(cookie: *mut usize, _: *const c_char, _: c_int) {
    release("rw_runlock", cookie as usize, false);
}

/// `_rw_wlock_cookie`.
pub extern "C" fn rw_wlock(cookie: *mut usize, file: *const c_char, line: c_int) {
    take(rwlock(cookie), true, Place::new("rw_wlock", file, line), "rw_wlock");
}

/// `_rw_wunlock_cookie`.
pub extern "C" fn rw_wunlock(cookie: *mut usize, _: *const c_char, _: c_int) {
    release("rw_wunlock", cookie as usize, true);
}
