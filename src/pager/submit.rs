// SPDX-License-Identifier: BSD-2-Clause
//! From a plan to bufs on their way to the disk.

use super::{
    complete::{self, Progress},
    plan::{PAGE, Run},
    request::{Answer, Call},
};
use crate::{
    kpi::{
        buf::{Form, Parts, Pbuf, PbufZone, Transfer},
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
}

/// Load one buf with a run of whole pages and with what can be read around
/// it. `None` when there is no pbuf.
pub fn load(call: &Call<'_>, run: Run, zone: &'static PbufZone, batch: &mut Batch) -> Option<()> {
    let mut part = zone.alloc()?;
    let begin = run.first_page().saturating_sub(call.first) as usize;
    let pages = call.vop.pages.get(begin..begin.saturating_add(run.pages() as usize))?;
    if run.behind > 0 {
        part.fill_behind(&call.object.write(), run.first_page(), run.behind);
    }
    if !part.fill_requested(pages) {
        return None;
    }
    if run.ahead > 0 {
        let next = run.first_page() + u64::from(run.pages());
        part.fill_ahead(&call.object.write(), next, run.ahead);
    }
    let (behind, ahead) = (part.behind(), part.ahead());
    let (blkno, bytes) = run.transfer(call.file, call.geometry, behind, ahead);
    address(call, &mut part, Transfer { blkno, bytes, page_offset: 0 });
    batch.behind = batch.behind.max(behind);
    batch.ahead = batch.ahead.max(ahead);
    batch.whole = batch.is_empty() && begin == 0 && pages.len() == call.wanted;
    batch.parts.push(part);
    Some(())
}

/// Load a buf with the first blocks of a run that are not valid yet, for
/// blocks smaller than a page. Gives the bytes that need no more work; `None`
/// when there is no pbuf.
pub fn load_small(
    call: &Call<'_>,
    run: Run,
    zone: &'static PbufZone,
    batch: &mut Batch,
) -> Option<u64> {
    let block = call.geometry.block;
    let valid = |at: u64| {
        let index = (at / PAGE).saturating_sub(call.first) as usize;
        call.vop
            .pages
            .get(index)
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
    let mut part = zone.alloc()?;
    let begin = run.first_page().saturating_sub(call.first) as usize;
    let pages = call.vop.pages.get(begin..begin.saturating_add(run.pages() as usize))?;
    if !part.fill_requested(pages) {
        return None;
    }
    let (blkno, bytes) = run.transfer(call.file, call.geometry, 0, 0);
    address(call, &mut part, Transfer { blkno, bytes, page_offset: run.page_offset() });
    batch.whole = false;
    batch.parts.push(part);
    Some(len)
}

fn address(call: &Call<'_>, part: &mut Pbuf, transfer: Transfer) {
    part.address(call.vop.vnode, call.device, transfer, call.vop.vnode.takes_unmapped());
}

/// Send a call's bufs. From the first one on, the request belongs to them:
/// an async call's reply may have been sent before this returns.
pub fn send<'a>(mut call: Call<'a>, mut batch: Batch, zone: &'static PbufZone) -> Answer<'a> {
    let partly = call.wanted < call.vop.pages.len();
    // A single buf carries its request itself. Several share a lead that
    // reads nothing.
    let lead = if batch.whole && batch.parts.len() == 1 { batch.parts.pop() } else { zone.alloc() };
    let Some(mut lead) = lead else {
        return Answer::Emulate(call.vop);
    };
    if !lead.lead(&call.vop.reply, call.vop.vnode, call.vop.pages, partly) {
        return Answer::Emulate(call.vop);
    }
    call.vop.behind.report(batch.behind);
    call.vop.ahead.report(batch.ahead);
    stats::PAGES_BEHIND.add(batch.behind);
    stats::PAGES_AHEAD.add(batch.ahead);
    stats::BUFS.add(batch.parts.len().max(1) as u32);
    let form = if call.vop.reply.is_async() { Form::Async(complete::iodone) } else { Form::Sync };
    let bufs = batch.parts.len().max(1);
    if call.vop.reply.is_async() {
        stats::IN_FLIGHT.enter(bufs);
    }
    call.vop.reply.pass_on();
    let mut outcome = Ok(());
    batch.parts.send(lead, &form, |part| {
        if let Progress::Answered(result) = complete::complete(part, &form) {
            outcome = result;
        }
    });
    Answer::Done(outcome.map_err(|_: Errno| PagerError::Error))
}
