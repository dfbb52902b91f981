// SPDX-License-Identifier: BSD-2-Clause
//! Filesystems: the code for each one, behind one trait.
//!
//! A filesystem with VOP_BMAP(9) needs only its vectors. Its other answers save
//! waiting: the place of its block map on the device, and the likely place of a
//! file's data before the map is read.

pub mod ffs;

use crate::kpi::{
    vnode::{Extent, Vnode},
    vnode_if::Vector,
};

/// A filesystem. Each vnode that its functions get is one of its own, locked or
/// kept by busied pages.
pub trait FileSystem: Sync {
    /// The vectors whose slots the module replaces.
    fn vectors(&self) -> &'static [&'static Vector];

    /// The file's number, for messages.
    fn file_number(&self, _vnode: Vnode<'_>) -> Option<u64> {
        None
    }

    /// The file's size by the filesystem, in bytes. Bytes behind it are not the
    /// file's any more, even while the VM object still has them. `None` when
    /// the filesystem never frees blocks before the VM object shrinks.
    fn size(&self, _vnode: Vnode<'_>) -> Option<u64> {
        None
    }

    /// The first block of the map on the way to block `lbn` that is not in
    /// memory, when the data path may read it past the buffer cache. `None`
    /// when all of them are in memory, or only VOP_BMAP(9) may read them.
    /// Locks: vnode. Sleeps: no.
    fn missing_map(&self, _vnode: Vnode<'_>, _lbn: u64) -> Option<MapBlock> {
        None
    }

    /// Follows the pointers in `bytes`, which were read from the map's block of
    /// this `level` on the way to block `lbn`. `None` for invalid pointers.
    fn follow(&self, _vnode: Vnode<'_>, _lbn: u64, _level: usize, _bytes: &[u8]) -> Option<Next> {
        None
    }

    /// The place of block `at` and of up to `most` contiguous blocks behind it,
    /// by pointers for which [`follow`](Self::follow) of `lbn` has answered
    /// [`Next::Data`]. `None` for invalid pointers.
    fn extent(
        &self,
        _vnode: Vnode<'_>,
        _lbn: u64,
        _bytes: &[u8],
        _at: u64,
        _most: u32,
    ) -> Option<Extent> {
        None
    }

    /// Whether VOP_BMAP(9) of block `lbn` has to read the disk. A hint. Sleeps:
    /// no.
    fn must_read_map(&self, _vnode: Vnode<'_>, _lbn: u64) -> bool {
        false
    }

    /// The size of the filesystem, in units of DEV_BSIZE.
    fn blocks(&self, _vnode: Vnode<'_>) -> i64 {
        0
    }
}

/// A block of a file's block map that is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapBlock {
    /// The block's level; 0 for a block to which the inode points.
    pub level: usize,
    /// The block's negative number in the file, as in the buffer cache.
    pub lbn: i64,
    /// The block's place, in units of DEV_BSIZE.
    pub blkno: i64,
    /// The piece of the block that holds a request's pointers.
    pub piece: Piece,
    /// The first block of the file whose pointer is not in the last level's
    /// piece.
    pub end: u64,
    /// The likely place of the data block that was looked up, in units of
    /// DEV_BSIZE. `None` when it cannot be predicted.
    pub likely: Option<i64>,
}

/// A range of bytes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The first block, in units of DEV_BSIZE.
    pub blkno: i64,
    /// The length in bytes; whole pages.
    pub bytes: u32,
}

/// The targets of pointers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// More pointers, one level down.
    Map(Piece),
    /// Data blocks of the file.
    Data,
    /// None: all blocks below are holes.
    Hole,
}

static ALL: [&dyn FileSystem; 1] = [&ffs::Ffs];

/// All vectors whose slots the module replaces.
pub fn vectors() -> &'static [&'static Vector] {
    ffs::Ffs.vectors()
}

/// The filesystem of a vnode. `None` when the module does not know it.
pub fn of(vnode: Vnode<'_>) -> Option<&'static dyn FileSystem> {
    let is_of = |fs: &&&dyn FileSystem| fs.vectors().iter().any(|vector| vector.is_of(vnode));
    ALL.iter().find(is_of).copied()
}
