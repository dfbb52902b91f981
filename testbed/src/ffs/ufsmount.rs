// SPDX-License-Identifier: BSD-2-Clause
//! The root filesystem, an FFS, and the structures of any FFS that is mounted.

use std::{
    ffi::{c_char, c_int},
    mem::transmute,
    ptr,
    sync::LazyLock,
};

use asyncpager::kpi::sys;

use crate::{
    ffs::vnodeops,
    host::low_memory,
    kernel::differences::{self, Difference},
};

/// TAILQ_HEAD(mntlist, mount).
#[repr(C)]
struct List {
    first: *mut sys::mount,
    last: *mut *mut sys::mount,
}

/// `ffs_rdonly`, by its address only.
pub fn ffs_rdonly() -> *mut u8 {
    static PLACE: LazyLock<usize> = LazyLock::new(|| low_memory::zeroed::<u64>() as usize);
    *PLACE as *mut u8
}

type Rdonly = unsafe extern "C" fn(*mut sys::inode) -> c_int;

/// Make a ufsmount and its superblock that of `mount`, as ffs_mountfs() does.
///
/// # Safety
///
/// Zeroed structures of their own.
pub unsafe fn fill_ufsmount(
    mount: *mut sys::mount,
    ump: *mut sys::ufsmount,
    fs: *mut sys::fs,
    block: u64,
    ufs2: bool,
) {
    // SAFETY: by the caller's promise. um_rdonly is never called.
    unsafe {
        (*ump).um_mountp = mount;
        (*ump).um_nindir = block / if ufs2 { 8 } else { 4 };
        (*ump).um_rdonly = transmute::<*mut u8, Option<Rdonly>>(ffs_rdonly());
        (*ump).um_fs = fs;
        (*fs).fs_magic = if ufs2 { sys::FS_UFS2_MAGIC } else { sys::FS_UFS1_MAGIC };
        (*fs).fs_bsize = block as i32;
        (*mount).mnt_data = ump.cast();
    }
}

fn ufs() -> *mut sys::mount {
    let (mount, conf): (*mut sys::mount, *mut sys::vfsconf) =
        (low_memory::zeroed(), low_memory::zeroed());
    // SAFETY: fresh memory.
    unsafe {
        for (to, from) in (*conf).vfc_name.iter_mut().zip(b"ufs\0") {
            *to = *from as c_char;
        }
        (*mount).mnt_vfc = conf;
    }
    mount
}

/// `mountlist` and `rootvnode` of a kernel that has booted, or that has not
/// mounted its root yet.
pub fn boot(mounted: bool) -> (*mut u8, *mut u8) {
    let (list, rootvnode) = (low_memory::zeroed::<List>(), low_memory::zeroed::<*mut sys::vnode>());
    // SAFETY: fresh memory.
    unsafe {
        (*list).last = &raw mut (*list).first;
        if !mounted {
            return (list.cast(), rootvnode.cast());
        }
        // A mount that is being unmounted has lost its ufsmount.
        let leaving = ufs();
        (*leaving).mnt_kern_flag = sys::MNTK_UNMOUNT;
        let root = ufs();
        for mount in [leaving, root] {
            (*mount).mnt_list.tqe_prev = (*list).last;
            *(*list).last = mount;
            (*list).last = &raw mut (*mount).mnt_list.tqe_next;
        }
        let (ump, fs) = (low_memory::zeroed::<sys::ufsmount>(), low_memory::zeroed::<sys::fs>());
        fill_ufsmount(root, ump, fs, 32768, true);
        let (vnode, inode) =
            (low_memory::zeroed::<sys::vnode>(), low_memory::zeroed::<sys::inode>());
        (*vnode).v_type = sys::VDIR;
        (*vnode).v_mount = root;
        (*vnode).v_op = vnodeops::vectors()[1];
        (*vnode).v_data = inode.cast();
        (*inode).i_vnode = vnode;
        (*inode).i_number = 2;
        *rootvnode = vnode;
        if differences::is(Difference::UmMountp) {
            (*ump).um_mountp = leaving;
        }
        if differences::is(Difference::UmNindir) {
            (*ump).um_nindir += 1;
        }
        if differences::is(Difference::UmRdonly) {
            (*ump).um_rdonly = None;
        }
        if differences::is(Difference::FsMagic) {
            (*fs).fs_magic = 0;
        }
        if differences::is(Difference::IVnode) {
            (*inode).i_vnode = ptr::null_mut();
        }
        if differences::is(Difference::INumber) {
            (*inode).i_number = 3;
        }
    }
    (list.cast(), rootvnode.cast())
}
