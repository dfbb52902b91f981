// SPDX-License-Identifier: BSD-2-Clause
//! Bufs with pages that nobody has asked for: what can be read, and why not.

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

/// Why a window was not read, or not to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The file is gone, or is not one that the data path serves.
    Gone,
    /// Somebody has the vnode locked exclusively.
    Locked,
    /// Memory is short.
    NoMemory,
    /// There is no buf.
    NoBuf,
    /// The device has enough to do.
    Saturated,
    /// The block map cannot be read.
    NoMap,
    /// It had to be read first.
    Waited,
}

/// Load one buf with what of `run` is not there yet, but for so many pages
/// that are there already; none if all are. `tag` names the stream.
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

/// A loaded buf has come back: make what it has read valid.
pub fn finish(mut buf: Buf) {
    // A page that could not be read is gone again: who needs it asks for it,
    // and hears of the error.
    if complete::settle(&mut buf).is_err() {
        stats::WINDOW_ERRORS.add(1);
        if let Job::Ahead { tag, .. } = buf.job {
            super::failed(tag);
        }
    }
}

/// Pages that may be allocated for no stream in particular: those that are free
/// beyond the middle between where the page daemon begins to hurry and where
/// it stops.
pub fn room() -> u32 {
    let free = systm::free_pages();
    let floor = free.min / 2 + free.target / 2;
    free.count.saturating_sub(floor)
}
