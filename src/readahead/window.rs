// SPDX-License-Identifier: BSD-2-Clause
//! A window: pages of a file that nobody has asked for yet, on their way.

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

/// A window that is to be read.
pub struct Window {
    /// Its pages.
    pub pages: Range<u64>,
    /// How far to go on where it can be read together with the block map.
    pub reach: u64,
    /// Names its stream to whoever has to do with a buf of it.
    pub tag: usize,
    /// Bufs that the device may have.
    pub in_flight: u32,
    /// Whether it is still to be read after a wait for the block map, when
    /// its consumer has gone on.
    pub patient: bool,
    /// The user and device that it is read for.
    pub profile: Key,
}

/// What has become of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The index behind the last page dealt with.
    pub to: u64,
    /// Pages on their way that were not there.
    pub new: u32,
    /// Why `to` is not the window's end.
    pub why: Option<Why>,
}

/// Read the pages of a window that are not there, in as few bufs as the disk's
/// layout allows.
///
/// Called in a thread that may sleep: for the block map, and for what was
/// read together with it and turns out to be wrong.
pub fn read(identity: Identity, window: &Window) -> Outcome {
    let mut outcome = Outcome { to: window.pages.start, new: 0, why: None };
    let walked = within(identity, |place| walk(place, window, &mut outcome));
    outcome.why = walked.and_then(|walked| walked).err();
    outcome
}

/// Bring the block map of a page into memory. May sleep.
pub fn look_up(identity: Identity, page: u64) {
    // Whoever needs it finds out by himself why it is not there.
    let _ = within(identity, |place| bring(place, page));
}

/// Hold and lock a file while `f` runs, if that is possible at once.
fn within<T>(identity: Identity, f: impl FnOnce(&Place<'_>) -> T) -> Result<T, Why> {
    let held = identity.hold().ok_or(Why::Gone)?;
    let locked = held.try_lock().ok_or(Why::Locked)?;
    let vnode = locked.vnode();
    // The same addresses may be another filesystem's file by now.
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
            // sendfile(2) finds out about a hole without the disk.
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

/// Bring the block map of a page that will be needed soon into memory.
fn bring(place: &Place<'_>, page: u64) {
    let lbn = place.lbn(page.min(place.file.pages.saturating_sub(1)));
    if place.fs.must_read_map(place.vnode, lbn) {
        stats::MAPS_AHEAD.add(1);
        // What it says is asked for again when it is needed.
        let _ = place.vnode.bmap(lbn);
    }
}

/// Send one buf with what of `run` is not there yet. Gives the pages that are
/// there already, and those behind them that are on their way; at least one of
/// both.
fn send(place: &Place<'_>, run: Run, tag: usize) -> Result<(u32, u32), Why> {
    let (there, Some(buf)) = load(place, run, tag)? else { return Ok((run.pages(), 0)) };
    let new = buf.ahead();
    bufs::send(buf);
    Ok((there, new))
}
