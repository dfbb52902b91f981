// SPDX-License-Identifier: BSD-2-Clause
//! mutex(9).

use std::{
    collections::HashMap,
    ffi::{CStr, c_char, c_int},
    mem::offset_of,
    sync::{LazyLock, Mutex},
};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        rules::{record, rule, violation},
        witness::{self, Class, Lock, Place},
    },
    kernel::{
        lock::{is_owned, release, remove, take, try_lock},
        pcpu,
    },
};

struct Mtx {
    class: Class,
    opts: c_int,
    /// It is the kernel's own, and no module's.
    own: bool,
}

static MUTEXES: LazyLock<Mutex<HashMap<usize, Mtx>>> = LazyLock::new(Mutex::default);

/// Mutexes of modules that are initialized now.
pub fn mutexes() -> usize {
    MUTEXES.lock().unwrap().values().filter(|mtx| !mtx.own).count()
}

/// Make a mutex of the kernel's own.
pub fn own_mutex(mtx: *mut sys::mtx, name: &str) {
    let cookie = mtx as usize + offset_of!(sys::mtx, mtx_lock);
    let (class, opts) = (witness::class(name, "sleep mutex"), 0);
    MUTEXES.lock().unwrap().insert(cookie, Mtx { class, opts, own: true });
    // SAFETY: the caller's mutex.
    unsafe { (cookie as *mut usize).write(sys::MTX_UNOWNED as usize) };
}

/// Whether this thread holds the mutex whose lock word is at this address.
pub fn holds(address: usize) -> bool {
    witness::held(address).is_some()
}

/// Whether a mutex lies in this memory.
pub fn mutex_within(memory: std::ops::Range<usize>) -> bool {
    MUTEXES.lock().unwrap().keys().any(|address| memory.contains(address))
}

/// The lock word of the mutex with this lock_object.
pub fn mtx_of(object: *mut sys::lock_object) -> *mut usize {
    (object as usize - offset_of!(sys::mtx, lock_object) + offset_of!(sys::mtx, mtx_lock))
        as *mut usize
}

fn mtx(call: &str, cookie: *mut usize, opts: c_int) -> Lock {
    let mutexes = MUTEXES.lock().unwrap();
    let Some(mtx) = mutexes.get(&(cookie as usize)) else {
        violation(call, format_args!("{cookie:?} is not an initialized mutex"));
    };
    Lock {
        address: cookie as usize,
        class: mtx.class,
        sleepable: false,
        recursable: (mtx.opts | opts) & sys::MTX_RECURSE != 0,
        dup_ok: (mtx.opts | opts) & sys::MTX_DUPOK != 0,
    }
}

/// `_mtx_init`.
pub unsafe extern "C" fn mtx_init(
    cookie: *mut usize,
    name: *const c_char,
    kind: *const c_char,
    opts: c_int,
) {
    let call = "mtx_init";
    rule(call, opts & sys::MTX_SPIN == 0, "the testbed has no spin mutexes");
    // SAFETY: C strings; the type may be NULL, and then the name is the class.
    let class = unsafe { CStr::from_ptr(if kind.is_null() { name } else { kind }) };
    let class = witness::class(&class.to_string_lossy(), "sleep mutex");
    record(call, format_args!("mutex {cookie:?} of class {class}"));
    let before = MUTEXES.lock().unwrap().insert(cookie as usize, Mtx { class, opts, own: false });
    rule(call, before.is_none(), format_args!("{cookie:?} is initialized already"));
    // SAFETY: the caller's mutex.
    unsafe { cookie.write(sys::MTX_UNOWNED as usize) };
}

/// `_mtx_destroy`.
pub unsafe extern "C" fn mtx_destroy(cookie: *mut usize) {
    let call = "mtx_destroy";
    let lock = mtx(call, cookie, 0);
    record(call, format_args!("mutex {cookie:?} of class {}", lock.class));
    if witness::held(lock.address).is_some() {
        let last = witness::released(call, lock.address, true);
        rule(call, last, "the mutex is recursed");
    } else {
        rule(call, !is_owned(lock.address), "another thread owns the mutex");
    }
    remove(lock.address);
    MUTEXES.lock().unwrap().remove(&lock.address);
    witness::forget(lock.address);
    // SAFETY: the caller's mutex, which has no owner.
    unsafe { cookie.write(sys::MTX_DESTROYED as usize) };
}

/// `__mtx_lock_flags`.
pub unsafe extern "C" fn mtx_lock(
    cookie: *mut usize,
    opts: c_int,
    file: *const c_char,
    line: c_int,
) {
    let call = "mtx_lock";
    let lock = mtx(call, cookie, opts);
    let place = Place::new(call, file, line);
    if witness::held(lock.address).is_some() {
        witness::check(&lock, &place);
        witness::acquired(lock, true, place);
    } else {
        take(lock, true, place, call);
        // SAFETY: this thread owns the mutex now, and mtx_owned() looks there.
        unsafe { cookie.write(pcpu::curthread() as usize) };
    }
}

/// `_mtx_trylock_flags_`.
pub unsafe extern "C" fn mtx_trylock(
    cookie: *mut usize,
    opts: c_int,
    file: *const c_char,
    line: c_int,
) -> c_int {
    let call = "mtx_trylock";
    let lock = mtx(call, cookie, opts);
    let mine = witness::held(lock.address).is_some();
    // No order is checked: a try does not wait.
    let got = if mine { lock.recursable } else { try_lock(lock.address, true) };
    if got {
        witness::acquired(lock, true, Place::new(call, file, line));
        // SAFETY: as in mtx_lock().
        unsafe { cookie.write(pcpu::curthread() as usize) };
    }
    c_int::from(got)
}

/// `__mtx_unlock_flags`.
pub unsafe extern "C" fn mtx_unlock(cookie: *mut usize, _: c_int, _: *const c_char, _: c_int) {
    let call = "mtx_unlock";
    let lock = mtx(call, cookie, 0);
    if witness::held(lock.address) == Some(true) && witness::depth(lock.address) == 1 {
        // SAFETY: still this thread's.
        unsafe { cookie.write(sys::MTX_UNOWNED as usize) };
    }
    release(call, lock.address, true);
}
