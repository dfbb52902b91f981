// SPDX-License-Identifier: BSD-2-Clause
//! FFS (ufs/ufs/ufs_bmap.c, ufs/ffs/ffs_alloc.c, inode(5)).

pub mod blockmap;

use self::blockmap::{Path, Table};
use super::{FileSystem, MapBlock, Next, Piece};
use crate::kpi::{
    sys,
    ufs::{self, Pointers, UfsVnode},
    vnode::{Extent, Vnode},
    vnode_if::Vector,
};

/// FFS, in its UFS1 and UFS2 formats.
pub struct Ffs;

static VECTORS: [&Vector; 2] = [&ufs::FFS1, &ufs::FFS2];

/// Bytes in a page.
const PAGE: u64 = sys::PAGE_SIZE as u64;
/// Bytes in the unit of block numbers.
const DEV_BSIZE: u64 = sys::DEV_BSIZE as u64;

impl FileSystem for Ffs {
    fn vectors(&self) -> &'static [&'static Vector] {
        &VECTORS
    }

    fn file_number(&self, vnode: Vnode<'_>) -> Option<u64> {
        UfsVnode::new(vnode).map(|vnode| vnode.inode_number())
    }

    /// The inode's size. A truncation to length 0 with soft updates sets it,
    /// then frees the blocks, and only then waits for busied pages.
    fn size(&self, vnode: Vnode<'_>) -> Option<u64> {
        UfsVnode::new(vnode).map(|vnode| vnode.inode_size())
    }

    /// A block with soft updates' dependencies stays in memory. So the disk has
    /// the newest contents of every block from the missing one down, none of
    /// which is in memory.
    fn missing_map(&self, vnode: Vnode<'_>, lbn: u64) -> Option<MapBlock> {
        let pointers = UfsVnode::new(vnode)?.pointers()?;
        let path = Path::new(lbn, pointers.per_block)?;
        let stages = path.stages();
        let (level, stage) =
            stages.iter().enumerate().find(|(_, stage)| !vnode.in_memory(stage.lbn))?;
        if stages.iter().skip(level + 1).any(|stage| vnode.in_memory(stage.lbn)) {
            return None;
        }
        let blkno = vnode.bmap_indirect(stage.lbn).ok()??;
        let block = u64::from(vnode.block_size());
        let (piece, _) = piece(&path, level, pointers, block, blkno)?;
        // FFS allocates a file's first indirect block behind the file's direct
        // blocks, and the blocks that it leads to behind it
        // (ffs_blkpref_ufs1()).
        let behind = stage.index.saturating_add(1).saturating_mul(block) / DEV_BSIZE;
        let likely = (stages.len() == 1).then(|| blkno.saturating_add(behind as i64));
        Some(MapBlock {
            level,
            lbn: stage.lbn,
            blkno,
            piece,
            end: end(&path, lbn, pointers, block),
            likely,
        })
    }

    fn follow(&self, vnode: Vnode<'_>, lbn: u64, level: usize, bytes: &[u8]) -> Option<Next> {
        let pointers = UfsVnode::new(vnode)?.pointers()?;
        let path = Path::new(lbn, pointers.per_block)?;
        let stage = path.stages().get(level)?;
        let block = u64::from(vnode.block_size());
        if level.saturating_add(1) == path.stages().len() {
            return Some(Next::Data);
        }
        // The index of the piece's first pointer in this level's block.
        let (_, first) = piece(&path, level, pointers, block, 0)?;
        let Some(blkno) = table(vnode, pointers, bytes, first)?.pointer(stage.index)? else {
            return Some(Next::Hole);
        };
        let (below, _) = piece(&path, level.saturating_add(1), pointers, block, blkno)?;
        Some(Next::Map(below))
    }

    fn extent(
        &self,
        vnode: Vnode<'_>,
        lbn: u64,
        bytes: &[u8],
        at: u64,
        most: u32,
    ) -> Option<Extent> {
        let pointers = UfsVnode::new(vnode)?.pointers()?;
        let path = Path::new(lbn, pointers.per_block)?;
        let level = path.stages().len().checked_sub(1)?;
        let stage = path.stages().get(level)?;
        let (_, index) = piece(&path, level, pointers, u64::from(vnode.block_size()), 0)?;
        // The pointers of the last level lead to data blocks.
        let first = lbn.saturating_sub(stage.index).saturating_add(index);
        table(vnode, pointers, bytes, first)?.extent(at, most)
    }

    fn must_read_map(&self, vnode: Vnode<'_>, lbn: u64) -> bool {
        let pointers = UfsVnode::new(vnode).and_then(|vnode| vnode.pointers());
        let path = pointers.and_then(|pointers| Path::new(lbn, pointers.per_block));
        path.is_some_and(|path| path.stages().iter().any(|stage| !vnode.in_memory(stage.lbn)))
    }

    fn blocks(&self, vnode: Vnode<'_>) -> i64 {
        UfsVnode::new(vnode).map_or(0, |vnode| vnode.fs_blocks())
    }
}

/// The piece to read of the path's indirect block of this `level`, which is at
/// `blkno`; and the index of the piece's first pointer.
fn piece(
    path: &Path,
    level: usize,
    pointers: Pointers,
    block: u64,
    blkno: i64,
) -> Option<(Piece, u64)> {
    let width = if pointers.wide { 8 } else { 4 };
    let range = blockmap::piece(path.stages().get(level)?.index, width, block, PAGE);
    let bytes = range.end.saturating_sub(range.start) as u32;
    let blkno = blkno.saturating_add((range.start / DEV_BSIZE) as i64);
    Some((Piece { blkno, bytes }, range.start / width))
}

/// The first block of the file whose pointer is not in the last level's piece,
/// which is read for block `lbn`.
fn end(path: &Path, lbn: u64, pointers: Pointers, block: u64) -> u64 {
    let Some(stage) = path.stages().last() else { return path.end() };
    let width = if pointers.wide { 8 } else { 4 };
    let range = blockmap::piece(stage.index, width, block, PAGE);
    lbn.saturating_sub(stage.index).saturating_add(range.end / width).min(path.end())
}

fn table<'a>(
    vnode: Vnode<'_>,
    pointers: Pointers,
    bytes: &'a [u8],
    first: u64,
) -> Option<Table<'a>> {
    Some(Table {
        bytes,
        first,
        wide: pointers.wide,
        shift: pointers.shift,
        step: pointers.step,
        end: UfsVnode::new(vnode)?.fs_blocks(),
        block: (u64::from(vnode.block_size()) / DEV_BSIZE) as i64,
    })
}

static_assertions::const_assert_eq!(blockmap::DIRECT, sys::UFS_NDADDR as u64);
static_assertions::const_assert_eq!(blockmap::LEVELS, sys::UFS_NIADDR as usize);
