// SPDX-License-Identifier: BSD-2-Clause
//! UFS's inodes and mounts (ufs/ufs/inode.h, ufs/ufs/ufsmount.h, ufs/ffs/fs.h).
//!
//! The structures are checked at each use: where they do not read as the headers
//! have them, there is no map, no size and no block.

use super::{sys, vnode::Vnode, vnode_if::Vector};

/// `ffs_vnodeops1`: UFS1.
pub static FFS1: Vector = Vector::new(|| &raw mut sys::ffs_vnodeops1);
/// `ffs_vnodeops2`: UFS2.
pub static FFS2: Vector = Vector::new(|| &raw mut sys::ffs_vnodeops2);

/// A vnode of FFS.
///
/// # Invariants
///
/// Its operations are FFS's, so that its private data is an inode.
#[derive(Clone, Copy)]
pub struct UfsVnode<'a>(Vnode<'a>);

impl<'a> UfsVnode<'a> {
    /// `None` for another filesystem's vnode.
    pub fn new(vnode: Vnode<'a>) -> Option<Self> {
        (FFS2.is_of(vnode) || FFS1.is_of(vnode)).then_some(Self(vnode))
    }

    /// The file's inode number.
    pub fn inode_number(&self) -> u64 {
        // SAFETY: a live vnode of FFS by the invariants.
        unsafe { sys::shim_inode_number(self.0.as_ptr()) }
    }

    /// The file's size as its inode has it now. A hint: nothing keeps it.
    pub fn inode_size(&self) -> u64 {
        // SAFETY: as above; one aligned word.
        unsafe { sys::shim_inode_size(self.0.as_ptr()) }
    }

    /// How the file's indirect blocks read. `None` where a pointer on the disk
    /// may not be followed: on a snapshot, and on an untrusted, asynchronous
    /// or journaled mount.
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

/// How the block pointers of a file's indirect blocks read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pointers {
    /// Pointers in an indirect block.
    pub per_block: u64,
    /// Shift from a pointer to units of DEV_BSIZE.
    pub shift: u32,
    /// From a block's pointer to that of the block just behind it.
    pub step: u64,
    /// Pointers are of 64 bits (UFS2) and not of 32.
    pub wide: bool,
}
