// SPDX-License-Identifier: BSD-2-Clause
//! The dinode of UFS1 or UFS2 behind an inode.

use asyncpager::kpi::sys;

use crate::checks::quarantine;

/// Of `i_flag`: the inode is UFS2's.
const IN_UFS2: u32 = 0x0400;

/// Gives the inode a dinode of UFS1 or UFS2.
///
/// # Safety
///
/// A fresh inode.
pub unsafe fn allocate(inode: *mut sys::inode, ufs2: bool) {
    // SAFETY: by the caller's promise.
    unsafe {
        (*inode).i_flag = if ufs2 { IN_UFS2 } else { 0 };
        if ufs2 {
            (*inode).dinode_u.din2 = quarantine::allocate("dinode");
        } else {
            (*inode).dinode_u.din1 = quarantine::allocate("dinode");
        }
    }
}

/// Writes a file's size in bytes into its dinode.
///
/// # Safety
///
/// A live inode.
pub unsafe fn set_size(inode: *mut sys::inode, size: u64) {
    // SAFETY: an inode with its dinode, whose type its flag tells.
    unsafe {
        if (*inode).i_flag & IN_UFS2 != 0 {
            (*(*inode).dinode_u.din2).di_size = size;
        } else {
            (*(*inode).dinode_u.din1).di_size = size;
        }
    }
}

/// Frees the inode and its dinode.
///
/// # Safety
///
/// A live inode, which is not used any more.
pub unsafe fn free(inode: *mut sys::inode) {
    // SAFETY: as in `set_size`.
    unsafe {
        if (*inode).i_flag & IN_UFS2 != 0 {
            quarantine::free((*inode).dinode_u.din2);
        } else {
            quarantine::free((*inode).dinode_u.din1);
        }
    }
    quarantine::free(inode);
}
