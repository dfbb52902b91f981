// SPDX-License-Identifier: BSD-2-Clause
//! UFS's inodes and mounts (ufs/ufs/inode.h, ufs/ufs/ufsmount.h, ufs/ffs/fs.h).
//!
//! Each use checks the structures. When they do not match the headers, the
//! answers are no pointers, size 0 and no block.

use super::{sys, vnode::Vnode, vnode_if::Vector};

/// `ffs_vnodeops1`: UFS1.
pub static FFS1: Vector = Vector::new(|| &raw mut sys::ffs_vnodeops1);
/// `ffs_vnodeops2`: UFS2.
pub static FFS2: Vector = Vector::new(|| &raw mut sys::ffs_vnodeops2);

/// An FFS vnode.
///
/// # Invariants
///
/// The vnode's operations are FFS's, so its private data is an inode.
#[derive(Clone, Copy)]
pub struct UfsVnode<'a>(Vnode<'a>);

impl<'a> UfsVnode<'a> {
    /// `None` for another filesystem's vnode.
    pub fn new(vnode: Vnode<'a>) -> Option<Self> {
        (FFS2.is_of(vnode) || FFS1.is_of(vnode)).then_some(Self(vnode))
    }

    /// The file's inode number.
    pub fn inode_number(&self) -> u64 {
        // SAFETY: a live FFS vnode (invariants).
        unsafe { sys::shim_inode_number(self.0.as_ptr()) }
    }

    /// The size in the file's inode, in bytes. A hint: no lock keeps it.
    pub fn inode_size(&self) -> u64 {
        // SAFETY: as above; reads one aligned word.
        unsafe { sys::shim_inode_size(self.0.as_ptr()) }
    }

    /// The format of the file's indirect blocks. `None` when the module must
    /// not follow pointers on the disk: on a snapshot, or on an untrusted,
    /// asynchronous or journaled mount.
    pub fn pointers(&self) -> Option<Pointers> {
        let mut map = sys::shim_map { nindir: 0, bptrtodb: 0, seqinc: 0, wide: false };
        // SAFETY: as above; the mount stays as long as the vnode.
        let plain = unsafe { sys::shim_map_of(self.0.as_ptr(), &mut map) };
        plain.then_some(Pointers {
            per_block: map.nindir,
            shift: map.bptrtodb,
            step: u64::from(map.seqinc),
            wide: map.wide,
        })
    }

    /// The size of the file's filesystem, in units of DEV_BSIZE.
    pub fn fs_blocks(&self) -> i64 {
        // SAFETY: as above; the mount keeps its superblock.
        unsafe { sys::shim_fs_blocks(self.0.as_ptr()) }
    }
}

/// The format of the block pointers in a file's indirect blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointers {
    /// Pointers in an indirect block.
    pub per_block: u64,
    /// Shift from a pointer to units of DEV_BSIZE.
    pub shift: u32,
    /// Difference between the pointers of two blocks that are adjacent on the
    /// device.
    pub step: u64,
    /// Pointers have 64 bits (UFS2), not 32 (UFS1).
    pub wide: bool,
}
