// SPDX-License-Identifier: BSD-2-Clause
//! sx(9): `allproc_lock`, and the topology lock of GEOM.

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

/// `sx_try_xlock_`: GEOM's topology lock, the only one that is tried.
pub extern "C" fn sx_try_xlock(sx: *mut c_void, file: *const c_char, line: c_int) -> c_int {
    static CLASS: LazyLock<Class> = LazyLock::new(|| witness::class("GEOM topology", "sx"));
    let (address, class) = (sx as usize, *CLASS);
    let topology = Lock { address, class, sleepable: true, recursable: false, dup_ok: false };
    let got = lock::try_lock(address, true);
    if got {
        witness::acquired(topology, true, Place::new("sx_try_xlock", file, line));
    }
    c_int::from(got)
}

/// `_sx_xunlock`.
pub extern "C" fn sx_xunlock(sx: *mut c_void, _: *const c_char, _: c_int) {
    lock::release("sx_xunlock", sx as usize, true);
}

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
