// SPDX-License-Identifier: BSD-2-Clause
//! Indirect blocks of a file: where they are on the disk.

use std::collections::BTreeMap;

use crate::disk::device::Disk;

/// Blocks whose places are in the inode.
pub const DIRECT: u64 = 12;

/// The indirect blocks of an inode, by their negative numbers. Empty for a
/// file whose block map is always at hand.
#[derive(Clone, Debug, Default)]
pub struct Indirect {
    blocks: BTreeMap<i64, Block>,
    /// Bytes of what a pointer counts.
    pub fragment: u64,
    /// Pointers are of 64 bits, as UFS2 has them.
    pub wide: bool,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    /// In units of DEV_BSIZE.
    place: i64,
    /// The blocks of the file that it leads to.
    first: u64,
    count: u64,
}

impl Indirect {
    /// No indirect blocks, in a filesystem with fragments of `fragment` bytes.
    pub fn new(fragment: u64, wide: bool) -> Self {
        Self { blocks: BTreeMap::new(), fragment, wide }
    }

    /// Adds an indirect block of this level at this place, which leads to `count` blocks from
    /// `first` on.
    pub fn add(&mut self, level: u32, place: i64, first: u64, count: u64) {
        let number = -(first as i64) - i64::from(level - 1);
        self.blocks.insert(number, Block { place, first, count });
    }

    /// Writes the indirect blocks of UFS2 for a file with this map onto the disk, from `top`
    /// downwards.
    pub fn lay_out(disk: &Disk, top: &mut usize, map: &[Option<i64>], block: u64) -> Self {
        let mut laid_out = Self::new(512, true);
        let per_block = block / 8;
        let mut first = DIRECT;
        for level in 1..=3 {
            laid_out.tree(disk, top, map, block, level, first);
            first += per_block.pow(level);
        }
        laid_out
    }

    /// One indirect block and what hangs on it; its pointer.
    fn tree(
        &mut self,
        disk: &Disk,
        top: &mut usize,
        map: &[Option<i64>],
        block: u64,
        level: u32,
        first: u64,
    ) -> u64 {
        let per_block = block / 8;
        let below = per_block.pow(level - 1);
        if first >= map.len() as u64 {
            return 0;
        }
        let pointers: Vec<u64> = (0..per_block)
            .map(|i| first + i * below)
            .map(|at| match level {
                1 => map.get(at as usize).copied().flatten().unwrap_or(0) as u64,
                _ => self.tree(disk, top, map, block, level - 1, at),
            })
            .collect();
        if pointers.iter().all(|pointer| *pointer == 0) {
            return 0;
        }
        *top -= block as usize;
        let bytes: Vec<u8> = pointers.iter().flat_map(|pointer| pointer.to_le_bytes()).collect();
        disk.write_initial(*top, &bytes);
        let place = (*top / 512) as i64;
        self.add(level, place, first, below * per_block);
        place as u64
    }

    /// The numbers of the indirect blocks that lead to block `lbn`.
    pub fn on_the_way(&self, lbn: u64) -> impl Iterator<Item = i64> {
        let leads =
            move |block: &Block| lbn.checked_sub(block.first).is_some_and(|n| n < block.count);
        self.blocks.iter().filter(move |(_, block)| leads(block)).map(|(number, _)| *number)
    }

    /// Whether there are no indirect blocks.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// Where the indirect block with this number is.
    pub fn place(&self, number: i64) -> Option<i64> {
        self.blocks.get(&number).map(|block| block.place)
    }
}
