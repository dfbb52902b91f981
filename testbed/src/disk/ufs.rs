// SPDX-License-Identifier: BSD-2-Clause
//! A UFS image as a filesystem reads it: superblock, inodes, block maps,
//! directories (fs(5), dir(5)).

use anyhow::{Context, Result, bail, ensure};

use crate::disk::indirect::Indirect;

/// Bytes from the image's start to the superblock, UFS1 first.
const PLACES: [usize; 3] = [8192, 65536, 262144];
const MAGIC1: u32 = 0x0001_1954;
const MAGIC2: u32 = 0x1954_0119;
const ROOT: u64 = 2;
const DIRECT: usize = 12;
const TYPE: u16 = 0o170000;
const DIRECTORY: u16 = 0o040000;
const REGULAR: u16 = 0o100000;

/// A regular file of an image.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Path below the image's root.
    pub path: String,
    /// Inode number.
    pub number: u64,
    /// Bytes.
    pub size: u64,
    /// For each block its first byte on the device, in units of DEV_BSIZE; `None` for a hole.
    pub map: Vec<Option<i64>>,
    /// The indirect blocks that hold the map.
    pub indirect: Indirect,
}

/// An image's superblock.
pub struct Ufs<'a> {
    image: &'a [u8],
    /// Whether it is UFS2.
    pub ufs2: bool,
    /// Bytes of a block.
    pub block: u64,
    fragment: u64,
    per_indirect: u64,
    inodes_per_block: u64,
    inodes_per_group: u64,
    fragments_per_group: u64,
    groups: u64,
    inode_start: u64,
    group_offset: u64,
    group_mask: u64,
}

impl<'a> Ufs<'a> {
    /// Read the superblock; an image that is none is an error.
    pub fn open(image: &'a [u8]) -> Result<Self> {
        let (at, ufs2) = PLACES
            .iter()
            .find_map(|at| match le32(image, at + 1372) {
                Ok(MAGIC1) => Some((*at, false)),
                Ok(MAGIC2) => Some((*at, true)),
                _ => None,
            })
            .context("no UFS superblock: not a UFS image, or cut short")?;
        let field = |offset: usize| le32(image, at + offset).map(u64::from);
        let fs = Self {
            image,
            ufs2,
            block: field(48)?,
            fragment: field(52)?,
            per_indirect: field(116)?,
            inodes_per_block: field(120)?,
            inodes_per_group: field(184)?,
            fragments_per_group: field(188)?,
            groups: field(44)?,
            inode_start: field(16)?,
            group_offset: if ufs2 { 0 } else { field(24)? },
            group_mask: if ufs2 { 0 } else { field(28)? },
        };
        ensure!(
            (4096..=65536).contains(&fs.block)
                && fs.block.is_power_of_two()
                && (512..=fs.block).contains(&fs.fragment)
                && fs.fragment.is_power_of_two()
                && fs.per_indirect == fs.block / if ufs2 { 8 } else { 4 }
                && fs.inodes_per_block > 0
                && fs.inodes_per_group > 0
                && fs.fragments_per_group > 0,
            "the superblock makes no sense: the image is damaged"
        );
        Ok(fs)
    }

    /// All regular files.
    pub fn files(&self) -> Result<Vec<Inode>> {
        let mut files = Vec::new();
        let mut pending = vec![(String::new(), ROOT)];
        let mut directories = 0;
        while let Some((path, number)) = pending.pop() {
            directories += 1;
            ensure!(directories < 100_000, "directories without end: the image is damaged");
            for (name, child) in
                self.directory(number).with_context(|| format!("directory /{path}"))?
            {
                let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                let (mode, inode) = self.inode(child, &path).with_context(|| format!("/{path}"))?;
                match mode & TYPE {
                    DIRECTORY => pending.push((path, child)),
                    REGULAR => files.push(inode),
                    _ => {}
                }
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    fn inode(&self, number: u64, path: &str) -> Result<(u16, Inode)> {
        let group = number / self.inodes_per_group;
        ensure!(group < self.groups, "inode {number} is in no cylinder group");
        let start = self.fragments_per_group * group
            + self.group_offset * (group & !self.group_mask & 0xffff_ffff)
            + self.inode_start;
        let inside = number % self.inodes_per_group;
        let length = if self.ufs2 { 256 } else { 128 };
        let at = start * self.fragment
            + inside / self.inodes_per_block * self.block
            + inside % self.inodes_per_block * length;
        let at = usize::try_from(at)?;
        let mode = le32(self.image, at)? as u16;
        let (size_at, blocks_at, width) = if self.ufs2 { (16, 112, 8) } else { (8, 40, 4) };
        let size = le64(self.image, at + size_at)?;
        ensure!(size < 1 << 40, "a size of {size} bytes is not believable");
        let (mut map, mut indirect) = (Vec::new(), Indirect::new(self.fragment, self.ufs2));
        if matches!(mode & TYPE, DIRECTORY | REGULAR) {
            let blocks = size.div_ceil(self.block);
            for lbn in 0..blocks.min(DIRECT as u64) {
                map.push(self.place(self.pointer(at + blocks_at + lbn as usize * width)?)?);
            }
            for level in 1..=3u32 {
                let pointer =
                    self.pointer(at + blocks_at + (DIRECT + level as usize - 1) * width)?;
                self.indirect(pointer, level, blocks, &mut map, &mut indirect)?;
            }
        }
        Ok((mode, Inode { path: path.to_string(), number, size, map, indirect }))
    }

    fn indirect(
        &self,
        pointer: u64,
        level: u32,
        blocks: u64,
        map: &mut Vec<Option<i64>>,
        known: &mut Indirect,
    ) -> Result<()> {
        let below = self.per_indirect.pow(level - 1);
        if pointer == 0 {
            let holes = (below * self.per_indirect).min(blocks.saturating_sub(map.len() as u64));
            map.extend((0..holes).map(|_| None));
            return Ok(());
        }
        if let Some(place) = self.place(pointer)? {
            known.add(level, place, map.len() as u64, below * self.per_indirect);
        }
        let width = if self.ufs2 { 8 } else { 4 };
        for i in 0..self.per_indirect {
            if map.len() as u64 >= blocks {
                break;
            }
            let at = usize::try_from(pointer * self.fragment + i * width)?;
            let entry = self.pointer(at)?;
            if level == 1 {
                map.push(self.place(entry)?);
            } else {
                self.indirect(entry, level - 1, blocks, map, known)?;
            }
        }
        Ok(())
    }

    fn pointer(&self, at: usize) -> Result<u64> {
        if self.ufs2 { le64(self.image, at) } else { le32(self.image, at).map(u64::from) }
    }

    fn place(&self, fragment: u64) -> Result<Option<i64>> {
        if fragment == 0 {
            return Ok(None);
        }
        let byte = fragment * self.fragment;
        ensure!(
            byte < self.image.len() as u64,
            "a block lies behind the image's end: it is cut short"
        );
        Ok(Some((byte / 512) as i64))
    }

    fn directory(&self, number: u64) -> Result<Vec<(String, u64)>> {
        let (mode, inode) = self.inode(number, "")?;
        ensure!(mode & TYPE == DIRECTORY, "inode {number} is not a directory");
        let mut entries = Vec::new();
        let mut bytes = Vec::new();
        for (lbn, place) in inode.map.iter().enumerate() {
            let len = (inode.size - lbn as u64 * self.block).min(self.block) as usize;
            let at = place.context("a directory with a hole")? as usize * 512;
            bytes.extend_from_slice(
                self.image.get(at..at + len).context("a directory leaves the image")?,
            );
        }
        let mut at = 0;
        while at + 8 <= bytes.len() {
            let child = u64::from(le32(&bytes, at)?);
            let record = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
            let length = usize::from(bytes[at + 7]);
            if record < 8 || at + record > bytes.len() || 8 + length > record {
                bail!("a directory entry makes no sense");
            }
            let name = String::from_utf8_lossy(&bytes[at + 8..at + 8 + length]).into_owned();
            if child != 0 && name != "." && name != ".." {
                entries.push((name, child));
            }
            at += record;
        }
        Ok(entries)
    }
}

fn le32(bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes.get(at..at + 4).context("the image is cut short")?;
    Ok(u32::from_le_bytes(word.try_into()?))
}

fn le64(bytes: &[u8], at: usize) -> Result<u64> {
    let word = bytes.get(at..at + 8).context("the image is cut short")?;
    Ok(u64::from_le_bytes(word.try_into()?))
}
