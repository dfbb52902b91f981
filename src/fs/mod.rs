// SPDX-License-Identifier: BSD-2-Clause
//! Filesystems: what is particular to each, behind one trait.
//!
//! A filesystem that has VOP_BMAP(9) is served with nothing more than its
//! vectors. What it tells beyond that saves waiting: where its block map lies on
//! the device, and where a file's data most likely are before the map is read.

pub mod ffs;

use crate::kpi::{
    vnode::{Extent, Vnode},
    vnode_if::Vector,
};

/// One filesystem. A vnode that is given to a function is one of its own, locked
/// or kept by busied pages.
pub trait FileSystem: Sync {
    /// The vectors whose slots are taken over.
    fn vectors(&self) -> &'static [&'static Vector];

    /// The file's number, for messages.
    fn file_number(&self, _vnode: Vnode<'_>) -> Option<u64> {
        None
    }

    /// Bytes of the file as the filesystem has it now: no byte behind them is
    /// the file's any more, even if the VM object still has them. `None` when
    /// blocks are never freed before the VM object is shorter.
    fn size(&self, _vnode: Vnode<'_>) -> Option<u64> {
        None
    }

    /// Where the data path may read pointers that lead to block `lbn` past the
    /// buffer cache: the first block of the map on the way that is not in
    /// memory. `None` when nothing has to be read, or VOP_BMAP(9) has to do it.
    /// Locks: vnode. Sleeps: no.
    fn missing_map(&self, _vnode: Vnode<'_>, _lbn: u64) -> Option<MapBlock> {
        None
    }

    /// What the pointers in `bytes` say, which were read from the map's block of
    /// this `level` on the way to block `lbn`. `None` for nonsense.
    fn follow(&self, _vnode: Vnode<'_>, _lbn: u64, _level: usize, _bytes: &[u8]) -> Option<Next> {
        None
    }

    /// Where block `at` and those behind it are, at most `most`, as pointers say
    /// for which [`follow`](Self::follow) of `lbn` has answered [`Next::Data`].
    /// `None` for nonsense.
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

    /// Whether VOP_BMAP(9) of block `lbn` has to read. A hint. Sleeps: no.
    fn must_read_map(&self, _vnode: Vnode<'_>, _lbn: u64) -> bool {
        false
    }

    /// Units of DEV_BSIZE of the device that the filesystem has.
    fn blocks(&self, _vnode: Vnode<'_>) -> i64 {
        0
    }
}

/// A block of a file's block map that is not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapBlock {
    /// Its level: 0 for one that the inode leads to.
    pub level: usize,
    /// Its number in the file, negative, as the buffer cache knows it.
    pub lbn: i64,
    /// Where it is, in units of DEV_BSIZE.
    pub blkno: i64,
    /// The piece of it that a request's pointers are in.
    pub piece: Piece,
    /// The first block of the file that the map's last level does not lead to.
    pub end: u64,
    /// Where the block most likely is that was looked for, in units of
    /// DEV_BSIZE; `None` when nothing can be said.
    pub likely: Option<i64>,
}

/// Bytes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where they begin, in units of DEV_BSIZE.
    pub blkno: i64,
    /// How many they are: whole pages.
    pub bytes: u32,
}

/// What pointers lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// More pointers, on the level below.
    Map(Piece),
    /// The file's blocks.
    Data,
    /// Nothing: all blocks below are holes.
    Hole,
}

static ALL: [&dyn FileSystem; 1] = [&ffs::Ffs];

/// All vectors whose slots are taken over.
pub fn vectors() -> &'static [&'static Vector] {
    ffs::Ffs.vectors()
}

/// The filesystem of a vnode, if it is one that the module knows.
pub fn of(vnode: Vnode<'_>) -> Option<&'static dyn FileSystem> {
    let is_of = |fs: &&&dyn FileSystem| fs.vectors().iter().any(|vector| vector.is_of(vnode));
    ALL.iter().find(is_of).copied()
}
