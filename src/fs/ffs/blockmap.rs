// SPDX-License-Identifier: BSD-2-Clause
//! The arithmetic of a file's block map (ufs/ufs/ufs_bmap.c, inode(5)): pure,
//! without the kernel.
//!
//! The first [`DIRECT`] blocks of a file are in the inode; the rest hang on
//! one, two or three levels of indirect blocks. An indirect block has a
//! negative number: minus that of the first block it leads to, and one less
//! for each level below it.

use crate::kpi::vnode::Extent;

/// Blocks whose places are in the inode.
pub const DIRECT: u64 = 12;
/// Levels of indirect blocks, at most.
pub const LEVELS: usize = 3;

/// One indirect block on the way to a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stage {
    /// The indirect block's number.
    pub lbn: i64,
    /// Which of its pointers leads on.
    pub index: u64,
}

/// The way from the inode to a block: `stages[..depth]`, from the top down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    stages: [Stage; LEVELS],
    depth: usize,
    /// The first block that the last stage leads to.
    first: u64,
    per_block: u64,
}

impl Path {
    /// The way to block `lbn`, where an indirect block has `per_block`
    /// pointers. `None` for a block that is in the inode or beyond the map.
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
            // `below` blocks hang on each pointer of the top block.
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

    /// The indirect blocks on the way, from the top down.
    pub fn stages(&self) -> &[Stage] {
        self.stages.get(..self.depth).unwrap_or(&[])
    }

    /// Whether the last stage leads to `lbn` too.
    pub fn covers(&self, lbn: u64) -> bool {
        lbn.checked_sub(self.first).is_some_and(|n| n < self.per_block)
    }

    /// The first block that the last stage does not lead to any more.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.per_block)
    }
}

/// Which bytes of an indirect block to read for its pointers `index..` that a
/// request can need: a range that begins and ends with a page, and is of the
/// same length, one page or two, for all pointers of a filesystem.
pub fn piece(index: u64, width: u64, block: u64, page: u64) -> core::ops::Range<u64> {
    let len = (2 * page).min(block);
    let at = index.saturating_mul(width);
    let start = (at - at % page).min(block.saturating_sub(len));
    start..start + len
}

/// The block pointers in a piece of an indirect block.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// The piece.
    pub bytes: &'a [u8],
    /// The block that its first pointer leads to.
    pub first: u64,
    /// Pointers are of 64 bits and not of 32.
    pub wide: bool,
    /// Shift from a pointer to units of DEV_BSIZE.
    pub shift: u32,
    /// From a block's pointer to that of the block just behind it.
    pub step: u64,
    /// Units of DEV_BSIZE that the filesystem has: no pointer leads further.
    pub end: i64,
    /// Units of DEV_BSIZE in a block.
    pub block: i64,
}

impl Table<'_> {
    /// Where a block is, in units of DEV_BSIZE; `None` for a hole. The outer
    /// `None` is for a block that the piece says nothing about, or nonsense.
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

    /// Where a block is and how many follow it on the device, at most `most`.
    /// `None` as for [`Table::pointer`].
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

    /// Blocks below one pointer of an indirect block with `lower` levels below it.
    fn span(per_block: u64, lower: u32) -> u64 {
        per_block.pow(lower)
    }

    proptest! {
        /// Going down the stages, each one's number and pointer lead to the
        /// next, and the last one's pointer to the block itself.
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
            // The levels with fewer stages come before.
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
            // A request of maxphys, from any page of its first block on, in one indirect block.
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
