// SPDX-License-Identifier: BSD-2-Clause
//! From a plan to bufs on their way to the disk.

use super::{
    PBUFS,
    complete::{self, Progress},
    latency,
    plan::{PAGE, Run},
    request::{Answer, Call, Place, Target},
};
use crate::{
    kpi::{
        buf::{Form, Parts, Pbuf, Transfer},
        errno::Errno,
        vm_pager::PagerError,
    },
    stats,
};

/// The loaded bufs of one call.
#[derive(Default)]
pub struct Batch {
    parts: Parts,
    /// Pages really read before and after the request.
    behind: u32,
    ahead: u32,
    /// Whether the only buf begins with the request's first page, so that it
    /// can carry the whole of it.
    whole: bool,
}

impl Batch {
    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Pages read after those asked for.
    pub fn ahead(&self) -> u32 {
        self.ahead
    }
}

/// Load one buf with a run of whole pages and with what can be read around
/// it. `None` when there is no pbuf.
pub fn load(target: &Target<'_>, run: Run, batch: &mut Batch) -> Option<()> {
    let mut part = PBUFS.alloc()?;
    let Target { place, pages: all, first, wanted } = *target;
    let begin = run.first_page().saturating_sub(first) as usize;
    let pages = all.get(begin..begin.saturating_add(run.pages() as usize))?;
    if run.behind > 0 {
        part.fill_behind(&place.object.write(), run.first_page(), run.behind);
    }
    if !part.fill_requested(pages) {
        return None;
    }
    if run.ahead > 0 {
        let next = run.first_page() + u64::from(run.pages());
        part.fill_ahead(&place.object.write(), next, run.ahead);
    }
    let (behind, ahead) = (part.behind(), part.ahead());
    let (blkno, bytes) = run.transfer(place.file, place.geometry, behind, ahead);
    address(&place, &mut part, Transfer { blkno, bytes, page_offset: 0 });
    batch.behind = batch.behind.max(behind);
    batch.ahead = batch.ahead.max(ahead);
    batch.whole = batch.is_empty() && begin == 0 && pages.len() == wanted;
    batch.parts.push(part);
    Some(())
}

/// Load a buf with the first blocks of a run that are not valid yet, for
/// blocks smaller than a page. Gives the bytes that need no more work; `None`
/// when there is no pbuf.
pub fn load_small(target: &Target<'_>, run: Run, batch: &mut Batch) -> Option<u64> {
    let Target { place, pages: all, first, .. } = *target;
    let block = place.geometry.block;
    let valid = |at: u64| {
        let index = (at / PAGE).saturating_sub(first) as usize;
        all.get(index)
            .is_none_or(|page| page.is_bogus() || page.is_valid((at % PAGE) as u32, block as u32))
    };
    let end = run.start + run.len;
    let mut stop = run.start;
    let skip = valid(stop);
    while stop < end && valid(stop) == skip {
        stop += block;
    }
    let len = stop.min(end) - run.start;
    if skip {
        return Some(len);
    }
    let run = Run { len, ..run };
    let mut part = PBUFS.alloc()?;
    let begin = run.first_page().saturating_sub(first) as usize;
    let pages = all.get(begin..begin.saturating_add(run.pages() as usize))?;
    if !part.fill_requested(pages) {
        return None;
    }
    let (blkno, bytes) = run.transfer(place.file, place.geometry, 0, 0);
    address(&place, &mut part, Transfer { blkno, bytes, page_offset: run.page_offset() });
    batch.whole = false;
    batch.parts.push(part);
    Some(len)
}

/// One more buf is in flight.
pub fn sent(part: &mut Pbuf) {
    stats::IN_FLIGHT.enter(1);
    latency::part_sent(part);
}

/// Complete a loaded buf's header.
pub fn address(place: &Place<'_>, part: &mut Pbuf, transfer: Transfer) {
    part.address(place.vnode, place.device, transfer, place.vnode.takes_unmapped());
}

/// Send a call's bufs. From the first one on, the request belongs to them:
/// an async call's reply may have been sent before this returns.
pub fn send<'a>(mut call: Call<'a>, mut batch: Batch) -> Answer<'a> {
    // A single buf carries its request itself. Several share a lead that
    // reads nothing.
    let lead =
        if batch.whole && batch.parts.len() == 1 { batch.parts.pop() } else { PBUFS.alloc() };
    let Some(mut lead) = lead else {
        return Answer::Emulate(call.vop);
    };
    let target = &call.target;
    let partly = target.last_partly_valid();
    if !lead.lead(&call.vop.reply, target.place.vnode, target.pages, partly) {
        return Answer::Emulate(call.vop);
    }
    call.vop.behind.report(batch.behind);
    call.vop.ahead.report(batch.ahead);
    let form = if call.vop.reply.is_async() { Form::Async(complete::iodone) } else { Form::Sync };
    call.vop.reply.pass_on();
    Answer::Done(dispatch(lead, batch, &form).map_err(|_: Errno| PagerError::Error))
}

/// Send more bufs of the async request that `part` is in flight for.
pub fn join(part: &Pbuf, batch: Batch) {
    stats::BUFS.add(batch.parts.len() as u32);
    batch.parts.join(part, &Form::Async(complete::iodone), sent);
}

/// Send the bufs of a request that its lead carries. In the sync form, how it went.
fn dispatch(lead: Pbuf, batch: Batch, form: &Form) -> Result<(), Errno> {
    stats::PAGES_BEHIND.add(batch.behind);
    stats::PAGES_AHEAD.add(batch.ahead);
    stats::BUFS.add(batch.parts.len().max(1) as u32);
    let mut outcome = Ok(());
    batch.parts.send(lead, form, sent, |part| {
        latency::came_back(&part);
        if let Progress::Answered(result) = complete::complete(part, form) {
            outcome = result;
        }
        stats::IN_FLIGHT.leave();
    });
    outcome
}
