// SPDX-License-Identifier: BSD-2-Clause
//! From a completed buf to the request's reply.
//!
//! Runs in the disk's completion thread for async calls: no sleeping here.

use core::ptr::NonNull;

use super::{
    late::later,
    latency,
    plan::{self, PAGE},
    request::Target,
};
use crate::{
    kpi::{
        buf::{Form, Pbuf},
        errno::Errno,
        sys,
        systm::RateLimit,
        vm_object::Object,
        vm_page::BusiedPage,
    },
    kprintln, stats,
};

/// One message a second about failed reads.
static MESSAGES: RateLimit = RateLimit::new(1);

/// What a completed buf has come to.
pub enum Progress {
    /// It is on its way to the disk again.
    SentAgain,
    /// Other parts of its request are still in flight.
    Arrived,
    /// The request has been answered so.
    Answered(Result<(), Errno>),
}

/// `b_iodone` of every async buf: its way back into this module.
///
/// # Safety
///
/// Called by the disk's completion thread with a buf that
/// [`submit`](super::submit::send) has sent.
pub unsafe extern "C" fn iodone(bp: *mut sys::buf) {
    if let Some(bp) = NonNull::new(bp) {
        // SAFETY: the caller's promise.
        let part = unsafe { Pbuf::from_iodone(bp) };
        latency::came_back(&part);
        if !matches!(complete(part, &Form::Async(iodone)), Progress::SentAgain) {
            stats::IN_FLIGHT.leave();
        }
    }
}

fn send_again(mut part: Pbuf) {
    latency::part_sent(&mut part);
    part.send(&Form::Async(iodone));
}

/// A part's I/O is over. When it was the request's last, the request is answered.
///
/// The caller owns the completed buf, and no lock.
pub fn complete(mut part: Pbuf, form: &Form) -> Progress {
    loop {
        let (behind, ahead) = (part.behind(), part.ahead());
        let Err(error) = settle(&mut part) else {
            return arrive(part, Ok(()));
        };
        // A bad sector under a page that nobody asked for must not fail the
        // request: what was asked for is read once more on its own. A device
        // that is gone stays gone.
        if behind + ahead == 0 || error == Errno::ENXIO || !part.narrow(behind) {
            log(&part, error);
            return arrive(part, Err(error));
        }
        stats::RETRIES.add(1);
        if matches!(form, Form::Async(_)) {
            later(part, send_again);
            return Progress::SentAgain;
        }
        latency::part_sent(&mut part);
        match part.send(form) {
            Some(again) => {
                latency::came_back(&again);
                part = again;
            }
            None => return Progress::SentAgain,
        }
    }
}

/// The I/O's own clean-up: mapping, bytes behind the end of the file, and the
/// pages that nobody asked for.
pub fn settle(part: &mut Pbuf) -> Result<(), Errno> {
    let mut outcome = part.settle();
    match part.vnode().and_then(|vnode| vnode.object()) {
        Some(object) if outcome.is_ok() => {
            // The read lock keeps the file's end where it is.
            let locked = object.read();
            let eof = locked.vnp_size();
            // The file may have grown since the buf was sent: what the
            // transfer did not reach is zeroed too. With small blocks that
            // is for other bufs to read.
            let small = part.vnode().is_some_and(|vnode| u64::from(vnode.block_size()) < PAGE);
            let reached = if small { u64::MAX } else { u64::from(part.bytes()) };
            let start = part.first_pindex().map_or(eof, |pindex| pindex.saturating_mul(PAGE));
            let good = plan::below_eof(start, reached, eof);
            for (i, page) in (0u64..).zip(part.pages()).skip((good / PAGE) as usize) {
                let below = good.saturating_sub(i.saturating_mul(PAGE)).min(PAGE) as u32;
                page.zero(below, PAGE as u32 - below);
            }
            for page in part.extras() {
                page.validate(&locked);
            }
        }
        Some(_) => {}
        None => outcome = Err(Errno::EIO),
    }
    part.finish_extras(|page| !page.none_valid());
    outcome
}

/// A part's share of its request is done. The last one answers it.
pub fn arrive(part: Pbuf, outcome: Result<(), Errno>) -> Progress {
    let Some((mut lead, outcome)) = part.arrive(outcome) else {
        return Progress::Arrived;
    };
    if outcome.is_ok()
        && let Some(object) = lead.vnode().and_then(|vnode| vnode.object())
    {
        let pages = lead.requested();
        let read = pages.len().saturating_sub(usize::from(lead.last_partly_valid()));
        make_valid(&object, pages, read);
    }
    if outcome.is_err() {
        stats::ERRORS.add(1);
    }
    // The object, the vnode and the mount may go away with the reply.
    lead.reply().send(outcome);
    drop(lead);
    Progress::Answered(outcome)
}

/// Make the pages of a request valid that needed no I/O.
pub fn validate(target: &Target<'_>) {
    make_valid(&target.place.object, target.pages, target.wanted);
}

/// Make pages valid up to the end of the file, `read` of them as a whole.
fn make_valid(object: &Object<'_>, pages: &[BusiedPage], read: usize) {
    let locked = object.read();
    for (i, page) in pages.iter().enumerate() {
        if i < read {
            page.validate(&locked);
        } else {
            // Its invalid part lies behind the end of the file.
            page.zero_invalid();
        }
    }
}

/// Report a request's failed read. Read-ahead and speculative bufs fail
/// silently: the request that needs their pages reads them again.
///
/// Not inlined, to keep its stack out of the fast path.
#[cold]
#[inline(never)]
fn log(part: &Pbuf, error: Errno) {
    if let (Some(vnode), Some(pindex)) = (part.vnode(), part.first_pindex())
        && let Some(object) = vnode.object()
        && MESSAGES.pass()
    {
        let offset = pindex.saturating_mul(PAGE);
        let bytes = part.bytes();
        kprintln!(
            "{vnode} offset {offset}: reading {bytes} of {} bytes failed, errno {error}",
            object.vnp_size()
        );
    }
}
