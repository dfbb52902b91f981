// SPDX-License-Identifier: BSD-2-Clause
//! Loads and finishes the bufs of windows.

use crate::{
    kpi::{buf::Transfer, systm},
    pager::{
        bufs::{self, Buf, Job, Use},
        complete,
        plan::{DEV_BSIZE, PAGE, Run},
        request::Place,
        submit,
    },
    stats,
};

/// The reason when a window was not read, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The file is gone, or the data path does not serve it.
    Gone,
    /// Another thread has the vnode locked exclusively.
    Locked,
    /// Memory is short.
    NoMemory,
    /// No buf is available.
    NoBuf,
    /// The device has enough transfers in flight.
    Saturated,
    /// The block map cannot be read.
    NoMap,
    /// The block map had to be read first: the consumer has moved meanwhile.
    Waited,
}

/// Loads one buf for `run`, behind its leading pages that exist already.
/// Returns the number of those pages, and the buf; no buf when all pages exist.
/// `tag`: the stream's. Locks: takes object write. Sleeps: no. Errors:
/// [`Why::NoMemory`], [`Why::NoBuf`].
pub fn load(place: &Place<'_>, run: Run, tag: usize) -> Result<(u32, Option<Buf>), Why> {
    if room() < run.pages() {
        return Err(Why::NoMemory);
    }
    let mut buf = bufs::alloc(Use::Readahead, place.device).ok_or(Why::NoBuf)?;
    let locked = place.object.write();
    let there = locked.existing(run.first_page(), run.pages());
    let start = run.start.saturating_add(u64::from(there) * PAGE);
    let rest = run.pages().saturating_sub(there);
    buf.fill_ahead(&locked, start / PAGE, rest);
    drop(locked);
    let new = buf.ahead();
    if new == 0 {
        return if rest == 0 { Ok((there, None)) } else { Err(Why::NoMemory) };
    }
    let skipped = u64::from(there) * (PAGE / DEV_BSIZE);
    let run = Run {
        start,
        len: u64::from(new) * PAGE,
        blkno: run.blkno.saturating_add(skipped as i64),
        ..run
    };
    let (blkno, bytes) = run.transfer(place.file, place.geometry, 0, 0);
    submit::address(place, &mut buf, Transfer { blkno, bytes, page_offset: 0 });
    buf.job = Job::Ahead { paging: place.object.paging(), tag, speculative: false };
    stats::PAGES_WINDOW.add(new);
    stats::WINDOW_BUFS.add(1);
    Ok((there, Some(buf)))
}

/// Validates the pages of a completed buf. Sleeps: no.
pub fn finish(mut buf: Buf) {
    // A page that could not be read has been freed. The request that needs it
    // reads it again, and gets the error.
    if complete::settle(&mut buf).is_err() {
        stats::WINDOW_ERRORS.add(1);
        if let Job::Ahead { tag, .. } = buf.job {
            super::failed(tag);
        }
    }
}

/// Free pages available for read-ahead: those above the middle between
/// v_free_min and v_free_target.
pub fn room() -> u32 {
    let free = systm::free_pages();
    let floor = free.min / 2 + free.target / 2;
    free.count.saturating_sub(floor)
}
