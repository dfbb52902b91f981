// SPDX-License-Identifier: BSD-2-Clause
//! The plan of a read: pure arithmetic, without the kernel.
//!
//! A request is a range of bytes of a file. [`step`] takes a position and the
//! block map's answer for the block there. It returns the bytes that one I/O
//! reads, and the number of extra pages before and after them.

/// Bytes in a page.
pub const PAGE: u64 = 4096;
/// Bytes in the unit of `blkno`.
pub const DEV_BSIZE: u64 = 512;

/// The file as its VM object has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Pages of the object.
    pub pages: u64,
    /// Bytes of the file (vnp_size).
    pub bytes: u64,
}

/// The geometry of the filesystem and its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Bytes of a block (f_iosize); a power of two.
    pub block: u64,
    /// Bytes of a sector, at most a page; a power of two.
    pub sector: u64,
    /// Pages that one buf can hold (maxphys).
    pub max_pages: u32,
}

pub use crate::kpi::vnode::Extent;

/// Extra pages that the caller wishes for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Before the first page.
    pub behind: u32,
    /// After the last page.
    pub ahead: u32,
}

/// The step for the bytes from a position on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A hole: this many bytes are zero.
    Zero(u64),
    /// One I/O reads the bytes.
    Read(Run),
}

/// One I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first requested byte, as an offset in the file.
    pub start: u64,
    /// Requested bytes that the I/O reads; at least one.
    pub len: u64,
    /// The device's block that holds `start`, in units of DEV_BSIZE.
    pub blkno: i64,
    /// Extra pages that may be read before `start`.
    pub behind: u32,
    /// Extra pages that may be read after `start + len`.
    pub ahead: u32,
}

impl Device {
    /// Whether a block is smaller than a page, so that a page has several.
    pub fn small_blocks(&self) -> bool {
        self.block < PAGE
    }
}

impl Run {
    /// Index of the first requested page.
    pub fn first_page(&self) -> u64 {
        self.start / PAGE
    }

    /// Offset of `start` in its page; 0 unless blocks are smaller than pages.
    pub fn page_offset(&self) -> u32 {
        (self.start % PAGE) as u32
    }

    /// Pages that the requested bytes touch.
    pub fn pages(&self) -> u32 {
        (self.start % PAGE).saturating_add(self.len).div_ceil(PAGE) as u32
    }

    /// The transfer with `behind` and `ahead` extra pages. Returns the first
    /// block, in units of DEV_BSIZE, and the length in bytes. The transfer ends
    /// at the end of the file, rounded up to a sector.
    pub fn transfer(&self, file: File, device: Device, behind: u32, ahead: u32) -> (i64, u32) {
        let before = u64::from(behind) * PAGE;
        let from = self.start.saturating_sub(before);
        let end = self.start.saturating_add(self.len).saturating_add(u64::from(ahead) * PAGE);
        let bytes = end.min(file.bytes).saturating_sub(from).max(1);
        let blkno = self.blkno.saturating_sub((before / DEV_BSIZE) as i64);
        (blkno, bytes.next_multiple_of(device.sector.max(1)) as u32)
    }
}

/// The step at `position`, for a request that ends before byte `end`. `first`:
/// the request begins at `position`.
///
/// The extra pages are limited to the contiguous range on the device and to the
/// object. When the buf cannot hold both, behind and ahead shrink in
/// proportion.
pub fn step(
    file: File,
    device: Device,
    position: u64,
    end: u64,
    extent: Extent,
    first: bool,
    wishes: Wishes,
) -> Step {
    let block = device.block.max(DEV_BSIZE);
    let inside = position % block;
    let Some(blkno) = extent.blkno else {
        return Step::Zero((block - inside).min(end.saturating_sub(position)));
    };
    // The bytes from the position to the end of the contiguous range.
    let reach = (u64::from(extent.after) + 1) * block - inside;
    let room = u64::from(device.max_pages) * PAGE - position % PAGE;
    let len = reach.min(room).min(end.saturating_sub(position)).max(1);
    let mut run = Run {
        start: position,
        len,
        blkno: blkno.saturating_add((inside / DEV_BSIZE) as i64),
        behind: 0,
        ahead: 0,
    };
    if device.small_blocks() {
        return Step::Read(run);
    }
    let behind = if first {
        let contiguous = u64::from(extent.before) * (block / PAGE) + inside / PAGE;
        u64::from(wishes.behind).min(contiguous).min(run.first_page())
    } else {
        0
    };
    let ahead = if position.saturating_add(len) >= end {
        let next = position.saturating_add(len).div_ceil(PAGE);
        u64::from(wishes.ahead).min((reach - len) / PAGE).min(file.pages.saturating_sub(next))
    } else {
        0
    };
    let spare = u64::from(device.max_pages.saturating_sub(run.pages()));
    let extra = behind + ahead;
    if extra <= spare {
        run.behind = behind as u32;
        run.ahead = ahead as u32;
    } else {
        // `extra` is not 0 here. Rounding favours `ahead`.
        run.behind = (u128::from(spare) * u128::from(behind) / u128::from(extra.max(1))) as u32;
        run.ahead = ahead.min(spare - u64::from(run.behind)) as u32;
    }
    Step::Read(run)
}

/// The number of bytes below the end of the file, out of `bytes` from `start`
/// on.
pub fn below_eof(start: u64, bytes: u64, file_bytes: u64) -> u64 {
    file_bytes.saturating_sub(start).min(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file on a device, described block by block: the reference that `step`
    /// is checked against.
    #[derive(Clone, Debug)]
    struct World {
        device: Device,
        bytes: u64,
        /// The place of each block, in blocks of the device.
        map: Vec<Option<i64>>,
    }

    impl World {
        fn file(&self) -> File {
            File { pages: self.bytes.div_ceil(PAGE), bytes: self.bytes }
        }

        fn blkno(&self, lbn: usize) -> Option<i64> {
            self.map.get(lbn).copied().flatten()
        }

        /// Whether a block and the next one are contiguous on the device.
        fn joined(&self, lbn: usize) -> bool {
            matches!((self.blkno(lbn), self.blkno(lbn + 1)), (Some(a), Some(b)) if b == a + 1)
        }

        fn extent(&self, position: u64) -> Extent {
            let lbn = (position / self.device.block) as usize;
            let mut after = 0;
            while self.joined(lbn + after) {
                after += 1;
            }
            let mut before = 0;
            while lbn > before && self.joined(lbn - before - 1) {
                before += 1;
            }
            let unit = (self.device.block / DEV_BSIZE) as i64;
            Extent {
                blkno: self.blkno(lbn).map(|b| b * unit),
                before: before as u32,
                after: if self.blkno(lbn).is_some() { after as u32 } else { 0 },
            }
        }

        /// The DEV_BSIZE block of the device that holds a byte of the file.
        fn place(&self, byte: u64) -> Option<i64> {
            let block = self.device.block;
            self.blkno((byte / block) as usize)
                .map(|b| b * (block / DEV_BSIZE) as i64 + (byte % block / DEV_BSIZE) as i64)
        }
    }

    fn world() -> impl Strategy<Value = World> {
        (9u32..17, prop::sample::select(vec![512u64, 4096]), 1u32..40, 1u64..600_000)
            .prop_flat_map(|(block, sector, max_pages, bytes)| {
                let block = (1u64 << block).max(sector);
                let blocks = bytes.div_ceil(block) as usize;
                (
                    Just((block, sector, max_pages, bytes)),
                    prop::collection::vec((0u8..8, 0i64..1000), blocks..=blocks),
                )
            })
            .prop_map(|((block, sector, max_pages, bytes), draws)| {
                let mut next = 100;
                let map = draws
                    .into_iter()
                    .map(|(kind, jump)| match kind {
                        0 => None,
                        1 => {
                            next += jump + 2;
                            Some(next)
                        }
                        _ => {
                            next += 1;
                            Some(next)
                        }
                    })
                    .collect();
                World { device: Device { block, sector, max_pages }, bytes, map }
            })
    }

    fn request() -> impl Strategy<Value = (World, u64, u64, Wishes)> {
        world().prop_flat_map(|w| {
            let pages = w.file().pages;
            (Just(w), 0..pages, 1..64u64, 0u32..80, 0u32..80).prop_map(
                |(w, first, count, behind, ahead)| {
                    let count = count.min(w.file().pages - first);
                    (w, first, count, Wishes { behind, ahead })
                },
            )
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// The steps cover the request exactly once, each byte from its own
        /// place on the device, and no step exceeds a buf.
        #[test]
        fn steps_cover_the_request((w, first, count, wishes) in request()) {
            let (start, end) = (first * PAGE, (first + count) * PAGE);
            let end = if w.device.small_blocks() { end.min(w.bytes.next_multiple_of(w.device.block)) } else { end };
            let mut position = start;
            while position < end {
                match step(w.file(), w.device, position, end, w.extent(position), position == start, wishes) {
                    Step::Zero(n) => {
                        prop_assert!(n > 0 && position + n <= end);
                        for byte in (position..position + n).step_by(DEV_BSIZE as usize) {
                            prop_assert_eq!(w.place(byte), None);
                        }
                        position += n;
                    }
                    Step::Read(run) => {
                        prop_assert_eq!(run.start, position);
                        prop_assert!(run.len > 0 && position + run.len <= end);
                        prop_assert!(run.pages() + run.behind + run.ahead <= w.device.max_pages);
                        // The transfer reads every byte below the end of the
                        // file, extra pages included, from its place.
                        let (blkno, bytes) = run.transfer(w.file(), w.device, run.behind, run.ahead);
                        let from = position - u64::from(run.behind) * PAGE;
                        let to = (position + run.len + u64::from(run.ahead) * PAGE).min(w.bytes);
                        for byte in (from..to).step_by(DEV_BSIZE as usize) {
                            prop_assert_eq!(
                                w.place(byte), Some(blkno + ((byte - from) / DEV_BSIZE) as i64)
                            );
                        }
                        prop_assert!(to <= from || u64::from(bytes) >= to - from);
                        prop_assert!(u64::from(bytes) < to.max(from + 1) - from + w.device.sector);
                        prop_assert_eq!(u64::from(bytes) % w.device.sector, 0);
                        position += run.len;
                    }
                }
            }
        }

        /// The extra pages are as many as wished, or one of the limits is met.
        #[test]
        fn extras_are_cut_only_by_a_limit((w, first, count, wishes) in request()) {
            prop_assume!(!w.device.small_blocks());
            let (start, end) = (first * PAGE, (first + count) * PAGE);
            let extent = w.extent(start);
            let Step::Read(run) = step(w.file(), w.device, start, end, extent, true, wishes) else {
                return Ok(());
            };
            prop_assert!(run.behind <= wishes.behind && run.ahead <= wishes.ahead);
            let full = run.pages() + run.behind + run.ahead == w.device.max_pages;
            if run.behind < wishes.behind {
                let before = first - u64::from(run.behind);
                let at_start = before == 0;
                let broken = !at_start && {
                    let byte = before * PAGE;
                    w.place(byte - PAGE).is_none()
                        || w.place(byte - PAGE).map(|b| b + (PAGE / DEV_BSIZE) as i64) != w.place(byte)
                };
                prop_assert!(at_start || broken || full, "behind {} of {}", run.behind, wishes.behind);
            }
            let next = start + run.len + u64::from(run.ahead) * PAGE;
            if run.ahead < wishes.ahead && start + run.len >= end {
                let at_end = next / PAGE >= w.file().pages;
                let broken = !at_end && {
                    w.place(next).is_none()
                        || w.place(next - PAGE).map(|b| b + (PAGE / DEV_BSIZE) as i64) != w.place(next)
                };
                prop_assert!(at_end || broken || full, "ahead {} of {}", run.ahead, wishes.ahead);
            }
        }

        #[test]
        fn below_eof_is_the_overlap(start in 0u64..9000, bytes in 0u64..9000, file in 0u64..9000) {
            let overlap = (start..start + bytes).filter(|byte| *byte < file).count();
            prop_assert_eq!(below_eof(start, bytes, file) as usize, overlap);
        }
    }

    #[test]
    fn trimming_to_maxphys_is_in_proportion() {
        let file = File { pages: 1000, bytes: 1000 * PAGE };
        let device = Device { block: 32768, sector: 512, max_pages: 16 };
        let extent = Extent { blkno: Some(6400), before: 20, after: 50 };
        let wishes = Wishes { behind: 30, ahead: 10 };
        let Step::Read(run) = step(file, device, 200 * PAGE, 204 * PAGE, extent, true, wishes)
        else {
            panic!("not a hole");
        };
        assert_eq!((run.behind, run.ahead), (9, 3));
        assert_eq!(run.transfer(file, device, 9, 3), (6400 - 72, 16 * PAGE as u32));
    }

    #[test]
    fn the_last_sector_is_read_whole() {
        let file = File { pages: 2, bytes: 4097 };
        let device = Device { block: 4096, sector: 512, max_pages: 256 };
        let extent = Extent { blkno: Some(8), before: 0, after: 1 };
        let Step::Read(run) = step(file, device, 0, 2 * PAGE, extent, true, Wishes::default())
        else {
            panic!("not a hole");
        };
        assert_eq!(run.len, 2 * PAGE);
        assert_eq!(run.transfer(file, device, 0, 0), (8, 4608));
    }
}
