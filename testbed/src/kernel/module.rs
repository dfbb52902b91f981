// SPDX-License-Identifier: BSD-2-Clause
//! Modules that register themselves (sys/module.h).

use std::{ffi::c_void, sync::Mutex};

use asyncpager::kpi::sys;

static REGISTERED: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// The module that has registered itself first.
pub fn registered() -> Option<*const sys::moduledata> {
    REGISTERED.lock().unwrap().first().map(|data| *data as *const sys::moduledata)
}

/// No module has registered itself.
pub fn forget_registered() {
    REGISTERED.lock().unwrap().clear();
}

/// `module_register_init`.
pub extern "C" fn module_register_init(data: *const c_void) {
    REGISTERED.lock().unwrap().push(data as usize);
}
