// SPDX-License-Identifier: BSD-2-Clause
//! The list of mounts and the root filesystem, an FFS (sys/mount.h, vfs_busy(9)).

use std::{
    ffi::{c_char, c_int},
    mem::{offset_of, transmute},
    ptr,
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use asyncpager::kpi::sys;

use crate::{
    differs::{self, Difference},
    locks, low,
    rules::{rule, violation},
    vfs,
};

/// Mounts that are busy.
pub static BUSY: AtomicUsize = AtomicUsize::new(0);

/// TAILQ_HEAD(mntlist, mount).
#[repr(C)]
struct List {
    first: *mut sys::mount,
    last: *mut *mut sys::mount,
}

/// `mountlist_mtx`; its class is the kernel's own.
pub fn mountlist_mtx() -> *mut u8 {
    static PLACE: LazyLock<usize> = LazyLock::new(|| {
        let mtx: *mut sys::mtx = low::zeroed();
        locks::own_mutex(mtx, "mountlist");
        mtx as usize
    });
    *PLACE as *mut u8
}

/// `ffs_rdonly`, by its address only.
pub fn ffs_rdonly() -> *mut u8 {
    static PLACE: LazyLock<usize> = LazyLock::new(|| low::zeroed::<u64>() as usize);
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
    let (mount, conf): (*mut sys::mount, *mut sys::vfsconf) = (low::zeroed(), low::zeroed());
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
    let (list, rootvnode) = (low::zeroed::<List>(), low::zeroed::<*mut sys::vnode>());
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
        let (ump, fs) = (low::zeroed::<sys::ufsmount>(), low::zeroed::<sys::fs>());
        fill_ufsmount(root, ump, fs, 32768, true);
        let (vnode, inode) = (low::zeroed::<sys::vnode>(), low::zeroed::<sys::inode>());
        (*vnode).v_type = sys::VDIR;
        (*vnode).v_mount = root;
        (*vnode).v_op = vfs::vectors()[1];
        (*vnode).v_data = inode.cast();
        (*inode).i_vnode = vnode;
        (*inode).i_number = 2;
        *rootvnode = vnode;
        if differs::is(Difference::UmMountp) {
            (*ump).um_mountp = leaving;
        }
        if differs::is(Difference::UmNindir) {
            (*ump).um_nindir += 1;
        }
        if differs::is(Difference::UmRdonly) {
            (*ump).um_rdonly = None;
        }
        if differs::is(Difference::FsMagic) {
            (*fs).fs_magic = 0;
        }
        if differs::is(Difference::IVnode) {
            (*inode).i_vnode = ptr::null_mut();
        }
        if differs::is(Difference::INumber) {
            (*inode).i_number = 3;
        }
    }
    (list.cast(), rootvnode.cast())
}

/// `vfs_busy`, from a walk along the list.
pub unsafe extern "C" fn vfs_busy(mount: *mut sys::mount, flags: c_int) -> c_int {
    const NOWAIT_MNTLSTLOCK: c_int = 3;
    let call = "vfs_busy";
    if flags != NOWAIT_MNTLSTLOCK {
        violation(call, "flags that the testbed does not know");
    }
    let cookie = mountlist_mtx() as usize + offset_of!(sys::mtx, mtx_lock);
    rule(call, locks::holds(cookie), "the list of mounts is not locked");
    // SAFETY: a mount of the list.
    if unsafe { (*mount).mnt_kern_flag } & sys::MNTK_UNMOUNT != 0 {
        return sys::ENOENT;
    }
    BUSY.fetch_add(1, Ordering::Relaxed);
    // SAFETY: locked by this thread.
    unsafe { locks::mtx_unlock(cookie as *mut usize, 0, ptr::null(), 0) };
    0
}

/// `vfs_unbusy`.
pub extern "C" fn vfs_unbusy(_: *mut sys::mount) {
    let before = BUSY.fetch_sub(1, Ordering::Relaxed);
    rule("vfs_unbusy", before > 0, "the mount is not busy");
}
