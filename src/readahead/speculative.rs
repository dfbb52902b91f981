// SPDX-License-Identifier: BSD-2-Clause
//! Speculative reads: pages that are read before the block map tells where they
//! are.
//!
//! FFS allocates a file's first indirect block behind the file's direct blocks,
//! and the blocks that it leads to behind it (ffs_blkpref_ufs1()). So while
//! that block is being read, the pages that most likely follow it are read too.
//! A file then starts with one latency instead of two.
//!
//! The pages become valid only if the block map confirms their place. The vnode
//! is locked from before the read until then, so the map cannot change. The
//! pages were absent, so the disk has their newest contents, and they are
//! busied, so no thread writes to them. Pages in the wrong place are freed,
//! still invalid.

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
/// Pages of the first buf, at most: a small buf comes back soon, and the
/// consumer waits for it.
const SOON: u64 = 64;

/// A speculative read: the expected place of a range of pages, and the bufs
/// sent there.
pub struct SpeculativeRead {
    pages: Range<u64>,
    blkno: i64,
    parts: [Option<Part>; BUFS],
    profile: Key,
}

/// A speculative buf: `pages` pages from `pindex` on, read from `blkno`.
struct Part {
    buf: Claim<Context>,
    pindex: u64,
    pages: u32,
    blkno: i64,
}

impl SpeculativeRead {
    /// Starts to read the block `map` of the block map, which leads to the
    /// first page of `range`; then sends speculative bufs to the expected
    /// place. The number of bufs depends on the profile's accuracy. None is
    /// sent after one has failed on the device, or while the device has
    /// `in_flight` transfers.
    ///
    /// `None` when there is no expected place, or when the block is in memory
    /// by now. Locks: vnode. Sleeps: for a buffer or a bio.
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
            // Send the block first: only it can confirm the pages.
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
            // On failure leave the range to the regular path, once the map is
            // in memory.
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

    /// Checks the bufs against the block map, which is in memory now. Accepts
    /// those in the right place as they come back; waits for the others and
    /// frees their pages. Returns the index behind the contiguous correct
    /// pages, and the number of correct pages. Sleeps: for wrong bufs.
    pub fn judge(mut self, place: &Place<'_>) -> (u64, u32) {
        let soon = self.pages.end.saturating_sub(self.pages.start).min(SOON) as u32;
        let begins = is_at(place, self.pages.start, soon, self.blkno);
        let (mut all, mut to, mut read) = (begins, self.pages.start, 0);
        // Accept the correct bufs first, so that waiting for the wrong ones
        // delays nothing.
        let mut wrong = [const { None }; BUFS];
        for (part, wrong) in self.parts.iter_mut().zip(&mut wrong) {
            let Some(Part { buf, pindex, pages, blkno }) = part.take() else { continue };
            if is_at(place, pindex, pages, blkno) {
                if let Some(back) = buf.leave() {
                    finish(bufs::claimed(back));
                }
                read += pages;
                if all {
                    // Pages between two bufs existed before.
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
    /// Without a block map no page is accepted.
    fn drop(&mut self) {
        self.parts.iter_mut().filter_map(Option::take).for_each(|part| discard(part.buf));
    }
}

/// Waits for a buf that has read the wrong place, and frees its pages. Sleeps:
/// yes.
fn discard(buf: Claim<Context>) {
    drop(bufs::claimed(buf.wait()));
}

/// Whether the block map has `pages` pages from `pindex` on contiguously at
/// `blkno`. Sleeps: only when the map has left memory again.
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

/// The number of bufs to send at an accuracy. After a read that was wrong from
/// its first page none are sent, until two reads in a row would have been
/// right. Then one small buf is sent.
fn bufs(accuracy: u8) -> usize {
    match accuracy {
        0 | 1 => 0,
        2 => 1,
        _ => BUFS,
    }
}

/// The accuracy after a read. `begins`: its first pages were where expected;
/// `all`: all of them were.
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
