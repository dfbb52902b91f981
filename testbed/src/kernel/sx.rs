// SPDX-License-Identifier: BSD-2-Clause
//! sx(9): `allproc_lock`, and no other.

use std::{
    ffi::{c_char, c_int, c_void},
    sync::{
        LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{
    checks::{
        sleep::may_sleep,
        witness::{self, Class, Lock, Place},
    },
    kernel::{lock, proc},
};

/// How often a thread has looked through the list of threads, to the end.
pub static LISTED: AtomicU32 = AtomicU32::new(0);

/// `_sx_slock`.
pub extern "C" fn sx_slock(sx: *mut c_void, _: c_int, file: *const c_char, line: c_int) -> c_int {
    static CLASS: LazyLock<Class> = LazyLock::new(|| witness::class("allproc", "sx"));
    let (call, address, class) = ("sx_slock", sx as usize, *CLASS);
    may_sleep(call);
    let allproc = Lock { address, class, sleepable: true, recursable: false, dup_ok: false };
    lock::take(allproc, false, Place::new(call, file, line), call);
    proc::list_threads();
    0
}

/// `_sx_sunlock`.
pub extern "C" fn sx_sunlock(sx: *mut c_void, _: *const c_char, _: c_int) {
    lock::release("sx_sunlock", sx as usize, false);
    LISTED.fetch_add(1, Ordering::AcqRel);
}
