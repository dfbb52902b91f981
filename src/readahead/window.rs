// SPDX-License-Identifier: BSD-2-Clause
//! A window: pages of a file that are read ahead of any request.

use core::ops::Range;

use super::{
    load::{Why, load},
    profile::Key,
    speculative::SpeculativeRead,
};
use crate::{
    kpi::vnode::Identity,
    pager::{
        bufs, latency,
        plan::{PAGE, Run, Step},
        request::Place,
    },
    stats,
};

/// A window to read.
pub struct Window {
    /// The window's pages.
    pub pages: Range<u64>,
    /// The index up to which a speculative read may go, while the block map is
    /// read.
    pub reach: u64,
    /// The stream's tag, which its bufs carry.
    pub tag: usize,
    /// Transfers in flight at the device from which on the window is cut short.
    pub in_flight: u32,
    /// Whether to read the window even after a wait for the block map, although
    /// the consumer has moved meanwhile.
    pub patient: bool,
    /// The profile of the window's user and device.
    pub profile: Key,
}

/// The outcome of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The index behind the last page that is valid, in flight or skipped as a
    /// hole.
    pub to: u64,
    /// Pages that the window has allocated and sent.
    pub new: u32,
    /// The reason when the window was cut short.
    pub why: Option<Why>,
}

/// Reads the absent pages of a window, in as few bufs as the disk's layout
/// allows.
///
/// Sleeps: for the block map, for a bio, and for speculative reads that prove
/// wrong.
pub fn read(identity: Identity, window: &Window) -> Outcome {
    let mut outcome = Outcome { to: window.pages.start, new: 0, why: None };
    let walked = within(identity, |place| walk(place, window, &mut outcome));
    outcome.why = walked.and_then(|walked| walked).err();
    outcome
}

/// Brings the block map of a page into memory. Sleeps: yes.
pub fn look_up(identity: Identity, page: u64) {
    // Ignore errors: the request that needs the map gets its own.
    let _ = within(identity, |place| bring(place, page));
}

/// Calls `f` with the file held and locked shared, if the lock is free. Errors:
/// [`Why::Gone`], [`Why::Locked`].
fn within<T>(identity: Identity, f: impl FnOnce(&Place<'_>) -> T) -> Result<T, Why> {
    let held = identity.hold().ok_or(Why::Gone)?;
    let locked = held.try_lock().ok_or(Why::Locked)?;
    let vnode = locked.vnode();
    // The same addresses may belong to another file by now.
    if vnode.is_doomed() || !identity.is_of(vnode) {
        return Err(Why::Gone);
    }
    let object = vnode.object().ok_or(Why::Gone)?;
    let device = vnode.device().map_err(|_| Why::Gone)?;
    let place = Place::new(vnode, object, device).ok_or(Why::Gone)?;
    if !place.is_served() || place.geometry.small_blocks() {
        return Err(Why::Gone);
    }
    Ok(f(&place))
}

fn walk(place: &Place<'_>, window: &Window, outcome: &mut Outcome) -> Result<(), Why> {
    let Window { ref pages, reach, tag, in_flight, patient, profile } = *window;
    let (device, file) = (place.device, place.file);
    let end = pages.end.min(file.pages);
    if end <= pages.start {
        // The file has become shorter.
        return Err(Why::Gone);
    }
    while outcome.to < end {
        if latency::in_flight(device.id()) >= in_flight {
            return Err(Why::Saturated);
        }
        let position = outcome.to.saturating_mul(PAGE);
        let far = outcome.to..end.max(reach.min(file.pages));
        let missing = place.fs.missing_map(place.vnode, place.lbn(outcome.to));
        let speculative = missing
            .as_ref()
            .and_then(|map| SpeculativeRead::begin(place, map, far, tag, in_flight, profile));
        let step = place.step(position, end.saturating_mul(PAGE)).map_err(|_| Why::NoMap)?;
        if let Some(read) = speculative {
            let (to, new) = read.judge(place);
            outcome.new = outcome.new.saturating_add(new);
            if to > outcome.to {
                outcome.to = to;
                continue;
            }
        }
        if missing.is_some() && !patient {
            return Err(Why::Waited);
        }
        match step {
            // Skip a hole: sendfile(2) reads it without the disk.
            Step::Zero(len) => outcome.to = position.saturating_add(len).div_ceil(PAGE),
            Step::Read(run) => {
                let (there, new) = send(place, run, tag)?;
                outcome.to = outcome.to.saturating_add(u64::from(there.saturating_add(new)));
                outcome.new = outcome.new.saturating_add(new);
            }
        }
    }
    bring(place, end.saturating_add(end - pages.start));
    Ok(())
}

/// Brings the block map of a page that will be needed soon into memory. Sleeps:
/// yes.
fn bring(place: &Place<'_>, page: u64) {
    let lbn = place.lbn(page.min(place.file.pages.saturating_sub(1)));
    if place.fs.must_read_map(place.vnode, lbn) {
        stats::MAPS_AHEAD.add(1);
        // Ignore the answer: a later call asks again.
        let _ = place.vnode.bmap(lbn);
    }
}

/// Sends one buf with the absent pages of `run`. Returns the number of pages
/// that exist already, and of those behind them that are now in flight; at
/// least one in all.
fn send(place: &Place<'_>, run: Run, tag: usize) -> Result<(u32, u32), Why> {
    let (there, Some(buf)) = load(place, run, tag)? else { return Ok((run.pages(), 0)) };
    let new = buf.ahead();
    bufs::send(buf);
    Ok((there, new))
}
