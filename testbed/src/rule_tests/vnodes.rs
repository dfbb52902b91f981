// SPDX-License-Identifier: BSD-2-Clause
//! Rules of vnodes and of memory that was freed.

use std::{ptr, sync::Arc};

use asyncpager::kpi::sys;

use crate::{
    disk::{device::Disk, indirect::Indirect, request, ufs::Inode},
    ffs::file::{Bmap, File, Mount},
    kernel::vnode,
};

/// A file of 14.2's own, without the module: a block, a hole, a last page.
pub fn file(block: u64) -> Arc<File> {
    let (disk, _) = Disk::new(vec![7; 1 << 20], 512, 1, false);
    let map = vec![Some(8), None, Some(16)];
    let inode = Inode {
        path: "rule test".into(),
        number: 4,
        size: 2 * block + 100,
        map,
        indirect: Indirect::default(),
    };
    File::open(inode, Mount { block, unmapped: true, flags: 0, bmap: Bmap::Good }, &disk, true)
}

pub fn vnode_used_after_free() {
    let file = file(4096);
    file.gone();
    // SAFETY: on purpose: the address of a vnode that is no more.
    unsafe { (&raw const (*file.vnode).v_irflag).read_volatile() };
}

pub fn mount_used_after_free() {
    let file = file(4096);
    // SAFETY: on purpose: the mount is gone when it is looked at.
    unsafe {
        let mount = (*file.vnode).v_mount;
        vnode::vhold(file.vnode);
        file.gone();
        (&raw const (*mount).mnt_kern_flag).read_volatile();
    }
}

pub fn unmapped_buf_touched() {
    // The same handler reports faults in freed memory: install it.
    file(4096);
    // SAFETY: on purpose.
    unsafe { (request::unmapped() as *const u8).read_volatile() };
}

pub fn hold_dropped_twice() {
    // A second reference keeps the vnode itself.
    let file = file(4096);
    vnode::vhold(file.vnode);
    vnode::vdrop(file.vnode);
    vnode::vdrop(file.vnode);
}

pub fn reference_left() {
    let file = file(4096);
    vnode::vref(file.vnode);
    file.close();
}

pub fn locked_without_a_hold() {
    let file = file(4096);
    // SAFETY: the file's own vnode; as after a vdrop() too many.
    unsafe { (*file.vnode).v_holdcnt = 0 };
    vnode::vn_lock(file.vnode, sys::LK_SHARED, ptr::null(), 0);
}
