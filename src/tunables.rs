// SPDX-License-Identifier: BSD-2-Clause
//! Switches, below `vfs.asyncpager`: sysctls and loader tunables.

use core::ffi::{c_int, c_void};

use crate::{
    kpi::{
        errno::Errno,
        sys,
        sysctl::{self, Context},
    },
    stats, vop,
};

static CONTEXT: Context = Context::new();

/// Show switches and counters. May sleep; tunables take effect here.
pub fn register() -> Result<(), Errno> {
    let node = CONTEXT.begin(c"asyncpager", c"Asynchronous getpages for FFS")?;
    let all = || {
        CONTEXT.switch(
            node,
            c"enabled",
            c"Serve getpages; 0: leave it to the original VOP",
            &vop::ENABLED,
        )?;
        CONTEXT.handled_switch(node, c"sync", c"Serve synchronous getpages too", set_sync)?;
        stats::register(&CONTEXT, node)
    };
    all().inspect_err(|_| release())
}

/// Take the tree down.
pub fn release() {
    CONTEXT.end();
    stats::release();
}

/// Handler of `vfs.asyncpager.sync`.
///
/// # Safety
///
/// Called by sysctl(9) only.
unsafe extern "C" fn set_sync(
    oid: *mut sys::sysctl_oid,
    _: *mut c_void,
    _: sys::intmax_t,
    req: *mut sys::sysctl_req,
) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { sysctl::written_switch(oid, req, vop::sync()) } {
        Ok(Some(on)) => match vop::set_sync(on) {
            Ok(()) => 0,
            Err(error) => error.code(),
        },
        Ok(None) => 0,
        Err(error) => error.code(),
    }
}
