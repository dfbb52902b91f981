// SPDX-License-Identifier: BSD-2-Clause
//! Mounts that are busy, and the lock of their list (sys/mount.h, vfs_busy(9)).

use std::{
    ffi::c_int,
    mem::offset_of,
    ptr,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use asyncpager::kpi::sys;

use crate::{
    checks::rules::{rule, violation},
    host::low_memory,
    kernel::mutex,
};

/// Mounts that are busy.
pub static BUSY: AtomicUsize = AtomicUsize::new(0);

/// `mountlist_mtx`; its class is the kernel's own.
pub fn mountlist_mtx() -> *mut u8 {
    static PLACE: LazyLock<usize> = LazyLock::new(|| {
        let mtx: *mut sys::mtx = low_memory::zeroed();
        mutex::own_mutex(mtx, "mountlist");
        mtx as usize
    });
    *PLACE as *mut u8
}

/// `vfs_busy`, from a walk along the list.
pub unsafe extern "C" fn vfs_busy(mount: *mut sys::mount, flags: c_int) -> c_int {
    const NOWAIT_MNTLSTLOCK: c_int = 3;
    let call = "vfs_busy";
    if flags != NOWAIT_MNTLSTLOCK {
        violation(call, "flags that the testbed does not know");
    }
    let cookie = mountlist_mtx() as usize + offset_of!(sys::mtx, mtx_lock);
    rule(call, mutex::holds(cookie), "the list of mounts is not locked");
    // SAFETY: a mount of the list.
    if unsafe { (*mount).mnt_kern_flag } & sys::MNTK_UNMOUNT != 0 {
        return sys::ENOENT;
    }
    BUSY.fetch_add(1, Ordering::Relaxed);
    // SAFETY: locked by this thread.
    unsafe { mutex::mtx_unlock(cookie as *mut usize, 0, ptr::null(), 0) };
    0
}

/// `vfs_unbusy`.
pub extern "C" fn vfs_unbusy(_: *mut sys::mount) {
    let before = BUSY.fetch_sub(1, Ordering::Relaxed);
    rule("vfs_unbusy", before > 0, "the mount is not busy");
}
