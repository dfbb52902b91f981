// SPDX-License-Identifier: BSD-2-Clause
//! The arithmetic of a file's block map (ufs/ufs/ufs_bmap.c, inode(5)). Pure,
//! without the kernel.
//!
//! The inode points to the first [`DIRECT`] blocks of a file. One, two or three
//! levels of indirect blocks lead to the rest. An indirect block has a negative
//! number: minus the number of the first block it leads to, and one less for
//! each level below it.

use crate::kpi::vnode::Extent;

/// Direct blocks: those to which the inode points.
pub const DIRECT: u64 = 12;
/// Levels of indirect blocks, at most.
pub const LEVELS: usize = 3;

/// An indirect block on the path to a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// The indirect block's number.
    pub lbn: i64,
    /// The index of the pointer that leads on.
    pub index: u64,
}

/// The path from the inode to a block: `stages[..depth]`, from the top down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    stages: [Stage; LEVELS],
    depth: usize,
    /// The first block to which the last stage leads.
    first: u64,
    per_block: u64,
}

impl Path {
    /// The path to block `lbn`. `per_block`: pointers in an indirect block.
    /// `None` for a direct block or one beyond the map.
    pub fn new(lbn: u64, per_block: u64) -> Option<Self> {
        let mut rest = lbn.checked_sub(DIRECT)?;
        let mut below = 1u64;
        let mut first = DIRECT;
        for depth in 1..=LEVELS {
            let here = below.checked_mul(per_block).filter(|n| *n > 0)?;
            if rest >= here {
                rest -= here;
                first = first.checked_add(here)?;
                below = here;
                continue;
            }
            // Each pointer of the top block leads to `below` blocks.
            let mut stages = [Stage::default(); LEVELS];
            for (level, stage) in stages.iter_mut().take(depth).enumerate() {
                let lower = i64::try_from(depth - 1 - level).ok()?;
                let index = rest.checked_div(below)?;
                *stage = Stage { lbn: -i64::try_from(first).ok()? - lower, index };
                if lower > 0 {
                    first = first.checked_add(index.checked_mul(below)?)?;
                    rest -= index.checked_mul(below)?;
                    below = below.checked_div(per_block)?;
                }
            }
            return Some(Self { stages, depth, first, per_block });
        }
        None
    }

    /// The indirect blocks of the path, from the top down.
    pub fn stages(&self) -> &[Stage] {
        self.stages.get(..self.depth).unwrap_or(&[])
    }

    /// Whether the last stage also leads to `lbn`.
    pub fn covers(&self, lbn: u64) -> bool {
        lbn.checked_sub(self.first).is_some_and(|n| n < self.per_block)
    }

    /// The first block to which the last stage does not lead any more.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.per_block)
    }
}

/// The bytes of an indirect block to read for its pointers `index..` that one
/// request can need. `width`, `block`, `page`: bytes. The range begins and ends
/// at a page boundary. All pointers of a filesystem have ranges of the same
/// length: one page or two.
pub fn piece(index: u64, width: u64, block: u64, page: u64) -> core::ops::Range<u64> {
    let len = (2 * page).min(block);
    let at = index.saturating_mul(width);
    let start = (at - at % page).min(block.saturating_sub(len));
    start..start + len
}

/// The block pointers in a piece of an indirect block.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// The bytes of the piece.
    pub bytes: &'a [u8],
    /// The block to which the piece's first pointer leads.
    pub first: u64,
    /// Pointers have 64 bits, not 32.
    pub wide: bool,
    /// Shift from a pointer to units of DEV_BSIZE.
    pub shift: u32,
    /// Difference between the pointers of two blocks that are adjacent on the
    /// device.
    pub step: u64,
    /// The size of the filesystem, in units of DEV_BSIZE. No valid pointer
    /// leads beyond.
    pub end: i64,
    /// The size of a block, in units of DEV_BSIZE.
    pub block: i64,
}

impl Table<'_> {
    /// The place of a block, in units of DEV_BSIZE; the inner `None` is a hole.
    /// The outer `None`: the piece has no pointer to the block, or an invalid
    /// one.
    pub fn pointer(&self, lbn: u64) -> Option<Option<i64>> {
        let raw = self.raw(lbn)?;
        let blkno = i64::try_from(raw.checked_shl(self.shift)?).ok()?;
        let sane = blkno.checked_add(self.block).is_some_and(|end| end <= self.end);
        sane.then_some((blkno > 0).then_some(blkno))
    }

    fn raw(&self, lbn: u64) -> Option<u64> {
        let index = usize::try_from(lbn.checked_sub(self.first)?).ok()?;
        if self.wide {
            self.bytes.as_chunks().0.get(index).map(|p| u64::from_ne_bytes(*p))
        } else {
            self.bytes.as_chunks().0.get(index).map(|p| u64::from(u32::from_ne_bytes(*p)))
        }
    }

    /// The place of a block and the number of contiguous blocks behind it, at
    /// most `most`. `None` as for [`Table::pointer`].
    pub fn extent(&self, lbn: u64, most: u32) -> Option<Extent> {
        let joined = |n: &u32| {
            let at = lbn.saturating_add(u64::from(*n));
            let before = self.raw(at - 1).and_then(|p| p.checked_add(self.step));
            before.is_some() && self.raw(at) == before
        };
        let blkno = self.pointer(lbn)?;
        let after = if blkno.is_some() { (1..=most).take_while(joined).count() as u32 } else { 0 };
        Some(Extent { blkno, before: 0, after })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Blocks below one pointer of an indirect block with `lower` levels below
    /// it.
    fn span(per_block: u64, lower: u32) -> u64 {
        per_block.pow(lower)
    }

    proptest! {
        /// From the top down, the number and pointer of each stage lead to the
        /// next stage, and the last pointer to the block itself.
        #[test]
        fn the_path_leads_to_the_block(
            per_block in prop::sample::select(vec![2u64, 16, 512, 1024, 4096, 8192]),
            at in 0.0f64..1.0,
        ) {
            let all = DIRECT + per_block + per_block.pow(2) + per_block.pow(3);
            let lbn = (all as f64 * at * at * at) as u64;
            let path = Path::new(lbn, per_block);
            if lbn < DIRECT {
                prop_assert_eq!(path, None);
                return Ok(());
            }
            let path = path.unwrap();
            let depth = path.stages().len() as u32;
            // The blocks of paths with fewer stages come before.
            let mut first = DIRECT + (1..depth).map(|d| per_block.pow(d)).sum::<u64>();
            prop_assert!(lbn >= first && lbn - first < per_block.pow(depth));
            for (i, stage) in path.stages().iter().enumerate() {
                let lower = depth - 1 - i as u32;
                prop_assert_eq!(stage.lbn, -(first as i64) - i64::from(lower));
                prop_assert!(stage.index < per_block);
                if lower > 0 {
                    first += stage.index * span(per_block, lower);
                } else {
                    prop_assert!(path.covers(first) && path.covers(lbn));
                    prop_assert!(!path.covers(first - 1) && !path.covers(first + per_block));
                    prop_assert_eq!(path.end(), first + per_block);
                    prop_assert_eq!(first + stage.index, lbn);
                }
            }
        }

        #[test]
        fn a_piece_holds_what_a_request_needs(
            order in 12u32..17, wide: bool, index in 0u64..16384, pages in 1u64..=256,
        ) {
            let (block, width) = (1u64 << order, if wide { 8 } else { 4 });
            let index = index % (block / width);
            let piece = piece(index, width, block, 4096);
            prop_assert!(piece.start.is_multiple_of(4096) && piece.end <= block);
            prop_assert_eq!(piece.end - piece.start, block.min(8192));
            // A request of maxphys, from any page of its first block on, in one
            // indirect block.
            let blocks = (pages * 4096).div_ceil(block) + 1;
            let last = (index + blocks).min(block / width);
            prop_assert!(index * width >= piece.start && last * width <= piece.end);
        }
    }

    #[test]
    fn extents_are_what_the_pointers_say() {
        let pointers: Vec<u64> = vec![800, 808, 816, 0, 832, 840, 900];
        let wide: Vec<u8> = pointers.iter().flat_map(|p| p.to_ne_bytes()).collect();
        let narrow: Vec<u8> = pointers.iter().flat_map(|p| (*p as u32).to_ne_bytes()).collect();
        for (bytes, is_wide) in [(&wide, true), (&narrow, false)] {
            let table =
                Table { bytes, first: 100, wide: is_wide, shift: 3, step: 8, end: 7264, block: 64 };
            let extent = |lbn| table.extent(lbn, 9).map(|e| (e.blkno, e.after));
            assert_eq!(extent(100), Some((Some(6400), 2)));
            assert_eq!(extent(102), Some((Some(6528), 0)));
            assert_eq!(extent(103), Some((None, 0)));
            assert_eq!(extent(104), Some((Some(6656), 1)));
            assert_eq!(extent(106), Some((Some(7200), 0)));
            assert_eq!((extent(99), extent(107)), (None, None));
            assert_eq!(table.extent(100, 1).map(|e| e.after), Some(1));
        }
    }
}
