// SPDX-License-Identifier: BSD-2-Clause
//! Pages that are read before the block map tells where they are.
//!
//! FFS puts a file's first indirect block behind the blocks that are in the
//! inode, and what it leads to behind that (ffs_blkpref_ufs1()). So, while
//! that block is being read, what most likely are the pages behind it are read
//! too, and a file costs one latency to begin with and not two.
//!
//! What was read counts only if the map then says the same. The vnode is
//! locked from before the read until that is known, so that the map is true
//! for all of this time. The pages were not there, so that the disk has their
//! newest contents, and are busied, so that nobody writes to them. Where the
//! map says something else they are freed, as invalid as they were.

use core::{
    ops::Range,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    load::{finish, load},
    profile::{self, ACCURATE, Key, Profile},
};
use crate::{
    fs::MapBlock,
    kpi::buf::Claim,
    pager::{
        bufs::{self, Context, Job},
        latency,
        plan::{DEV_BSIZE, PAGE, Run, Step},
        request::Place,
    },
    stats,
};

/// `vfs.asyncpager.readahead.guess`: whether to read speculatively.
pub static ENABLED: AtomicBool = AtomicBool::new(true);

/// Bufs of a speculative read, at most.
const BUFS: usize = 9;
/// Pages of the first of them: the consumer may be there as soon as it is.
const SOON: u64 = 64;

/// Where the pages of a range are expected, and bufs that have been sent there.
pub struct SpeculativeRead {
    pages: Range<u64>,
    blkno: i64,
    parts: [Option<Part>; BUFS],
    profile: Key,
}

/// A buf with so many pages from `pindex` on, which reads from `blkno`.
struct Part {
    buf: Claim<Context>,
    pindex: u64,
    pages: u32,
    blkno: i64,
}

impl SpeculativeRead {
    /// Have the block `map` of the block map read, on which the first page of
    /// `range` hangs, and send bufs to where the pages most likely are, as long
    /// as speculation is accurate, none has failed on the device, and the device
    /// has less than `in_flight`. `None` when nothing can be said. May sleep for
    /// a buffer.
    pub fn begin(
        place: &Place<'_>,
        map: &MapBlock,
        range: Range<u64>,
        tag: usize,
        in_flight: u32,
        profile: Key,
    ) -> Option<Self> {
        let inside = range.start.saturating_mul(PAGE) % place.geometry.block.max(1);
        let blkno = map.likely?.saturating_add((inside / DEV_BSIZE) as i64);
        let mut read = Self { pages: range, blkno, parts: [const { None }; BUFS], profile };
        let bufs = bufs(profile::of(profile).accuracy);
        let device = place.device;
        if bufs > 0
            && ENABLED.load(Ordering::Relaxed)
            && latency::may_speculate(device.id(), || !device.verifies())
        {
            // First: nothing can be told before it is there.
            if !place.vnode.read_block(map.lbn, map.blkno) {
                return None;
            }
            read.send(place, bufs, tag, in_flight);
        }
        Some(read)
    }

    fn send(&mut self, place: &Place<'_>, bufs: usize, tag: usize, in_flight: u32) {
        let mut at = self.pages.start;
        for part in self.parts.iter_mut().take(bufs) {
            let most = u64::from(place.geometry.max_pages);
            let most = if at == self.pages.start { most.min(SOON) } else { most };
            let pages = self.pages.end.saturating_sub(at).min(most);
            let from = at.saturating_sub(self.pages.start).saturating_mul(PAGE / DEV_BSIZE);
            let blkno = self.blkno.saturating_add(from as i64);
            let whole = pages.saturating_mul(PAGE / DEV_BSIZE) as i64;
            let outside = blkno.saturating_add(whole) > place.fs.blocks(place.vnode);
            if pages == 0 || outside || latency::in_flight(place.device.id()) >= in_flight {
                return;
            }
            let (start, len) = (at.saturating_mul(PAGE), pages.saturating_mul(PAGE));
            let run = Run { start, len, blkno, behind: 0, ahead: 0 };
            // What cannot be had is read when the map is there.
            let Ok((there, loaded)) = load(place, run, tag) else { return };
            let new = loaded.as_ref().map_or(0, bufs::Buf::ahead);
            let pindex = at.saturating_add(u64::from(there));
            *part = loaded.map(|mut buf| {
                stats::PAGES_GUESSED.add(new);
                let blkno = buf.blkno();
                if let Job::Ahead { speculative, .. } = &mut buf.job {
                    *speculative = true;
                }
                Part { buf: bufs::send_claimable(buf), pindex, pages: new, blkno }
            });
            at = pindex.saturating_add(u64::from(new));
        }
    }

    /// Keep what the map, which is in memory now, says is right, when it is
    /// there, and wait for the rest until it is gone. Gives the index behind
    /// the last page that is right without a gap, and how many are right.
    pub fn judge(mut self, place: &Place<'_>) -> (u64, u32) {
        let soon = self.pages.end.saturating_sub(self.pages.start).min(SOON) as u32;
        let begins = is_at(place, self.pages.start, soon, self.blkno);
        let (mut all, mut to, mut read) = (begins, self.pages.start, 0);
        // Nobody waits for what is right because of what is wrong.
        let mut wrong = [const { None }; BUFS];
        for (part, wrong) in self.parts.iter_mut().zip(&mut wrong) {
            let Some(Part { buf, pindex, pages, blkno }) = part.take() else { continue };
            if is_at(place, pindex, pages, blkno) {
                if let Some(back) = buf.leave() {
                    finish(bufs::claimed(back));
                }
                read += pages;
                if all {
                    // Pages between the bufs were there before.
                    to = pindex.saturating_add(u64::from(pages));
                }
            } else {
                all = false;
                stats::PAGES_MISTAKEN.add(pages);
                *wrong = Some(buf);
            }
        }
        wrong.into_iter().flatten().for_each(discard);
        profile::learn(self.profile, |profile| Profile {
            accuracy: accuracy(profile.accuracy, begins, all),
            ..profile
        });
        (to, read)
    }
}

impl Drop for SpeculativeRead {
    /// There is no map, and nothing is kept.
    fn drop(&mut self) {
        self.parts.iter_mut().filter_map(Option::take).for_each(|part| discard(part.buf));
    }
}

/// Wait until a buf that has read the wrong place is back, and free its pages.
fn discard(buf: Claim<Context>) {
    drop(bufs::claimed(buf.wait()));
}

/// Whether the block map has so many pages from `pindex` on at `blkno` and
/// just behind it. May sleep, though the map is in memory most likely.
fn is_at(place: &Place<'_>, pindex: u64, pages: u32, mut blkno: i64) -> bool {
    let mut at = pindex.saturating_mul(PAGE);
    let end = at.saturating_add(u64::from(pages) * PAGE);
    while at < end {
        match place.step(at, end) {
            Ok(Step::Read(run)) if run.blkno == blkno => {
                at = at.saturating_add(run.len);
                blkno = blkno.saturating_add((run.len / DEV_BSIZE) as i64);
            }
            _ => return false,
        }
    }
    true
}

/// Bufs that may be sent at this accuracy of speculation: none after a read
/// that was wrong from its beginning until two in a row would have been right,
/// and then a single small one.
fn bufs(accuracy: u8) -> usize {
    match accuracy {
        0 | 1 => 0,
        2 => 1,
        _ => BUFS,
    }
}

/// The accuracy after a read whose first pages, and all of whose pages, were
/// where they were expected, or not.
fn accuracy(before: u8, begins: bool, all: bool) -> u8 {
    match (begins, all) {
        (true, true) => before.saturating_add(1).min(ACCURATE),
        (true, false) => before.saturating_sub(1),
        (false, _) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_falls_at_once_and_rises_slowly() {
        let mut now = ACCURATE;
        let mut note = |begins, all| {
            now = accuracy(now, begins, all);
            bufs(now)
        };
        assert_eq!(note(true, true), BUFS);
        assert_eq!(note(true, false), 1, "a file that goes on elsewhere");
        assert_eq!(note(true, false), 0);
        assert_eq!([note(true, true), note(true, true)], [1, BUFS]);
        assert_eq!(note(false, false), 0);
        assert_eq!([note(true, true), note(true, true), note(true, true)], [0, 1, BUFS]);
    }
}
