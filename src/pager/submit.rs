// SPDX-License-Identifier: BSD-2-Clause
//! Turns a request into bufs and sends them, run by run.

use super::{
    bufs::{self, Buf, Job, Use},
    complete,
    plan::{self, Extent, PAGE, Run, Step, Wishes},
    request::{Call, Miss, Part, Place, Request, Target, failed},
};
use crate::{
    kpi::{buf::Transfer, errno::Errno, getpages::Answer, vm_pager::PagerError},
    stats,
};

/// The progress of a request: bytes from its first page on that need no more
/// work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk(u64);

impl Walk {
    /// Returns the next run to read; `None` at the request's end. `map`: looks
    /// up a logical block. Zeroes the holes on the way. Errors: those of `map`.
    pub fn next(
        &mut self,
        target: &Target<'_>,
        wishes: Wishes,
        map: impl Fn(u64) -> Result<Extent, Errno>,
    ) -> Result<Option<Run>, Errno> {
        let (file, geometry) = (target.place.file, target.place.geometry);
        let start = target.first * PAGE;
        let mut end = start + target.wanted as u64 * PAGE;
        if geometry.small_blocks() {
            // No buf reads the last page as a whole. Zero its part behind the
            // file's last block, in case the file grows meanwhile.
            let behind = file.bytes.max(start);
            zero(target, behind, end.saturating_sub(behind));
            end = end.min(file.bytes.next_multiple_of(geometry.block.max(1)));
        }
        while start + self.0 < end {
            let position = start + self.0;
            let extent = map(position / geometry.block.max(1))?;
            match plan::step(file, geometry, position, end, extent, position == start, wishes) {
                Step::Zero(len) => {
                    zero(target, position, len);
                    self.0 += len;
                }
                Step::Read(run) if geometry.small_blocks() => {
                    let (len, valid) = stretch(target, run);
                    self.0 += len;
                    if !valid {
                        return Ok(Some(Run { len, ..run }));
                    }
                }
                Step::Read(run) => {
                    self.0 += run.len;
                    return Ok(Some(run));
                }
            }
        }
        Ok(None)
    }
}

/// For blocks smaller than a page: the number of bytes, from the start of the
/// run, that are all valid or all invalid; and whether they are valid.
fn stretch(target: &Target<'_>, run: Run) -> (u64, bool) {
    let block = target.place.geometry.block.max(plan::DEV_BSIZE);
    let is_valid = |at: u64| {
        let index = (at / PAGE).saturating_sub(target.first) as usize;
        target
            .pages
            .get(index)
            .is_none_or(|page| page.is_bogus() || page.is_valid((at % PAGE) as u32, block as u32))
    };
    let (end, first) = (run.start + run.len, is_valid(run.start));
    let mut stop = run.start;
    while stop < end && is_valid(stop) == first {
        stop += block;
    }
    (stop.min(end) - run.start, first)
}

/// Zeroes the bytes of a hole. They become valid with the rest of the request.
fn zero(target: &Target<'_>, position: u64, len: u64) {
    let mut at = position;
    let end = position.saturating_add(len);
    while at < end {
        let offset = at % PAGE;
        let n = (PAGE - offset).min(end - at);
        if let Some(page) = target.pages.get((at / PAGE).saturating_sub(target.first) as usize)
            && !page.is_valid(offset as u32, n as u32)
        {
            page.zero(offset as u32, n as u32);
            stats::ZEROED_BYTES.add(n as u32);
        }
        at += n;
    }
}

/// Loads a buf with a run of the request and with the extra pages around it.
/// False when the run is not within the request: then the buf is unusable.
/// Locks: takes object write. Sleeps: no.
pub fn load(buf: &mut Buf, target: &Target<'_>, run: Run) -> bool {
    let Target { place, pages: all, first, .. } = *target;
    let begin = run.first_page().saturating_sub(first) as usize;
    let pages = all.get(begin..begin.saturating_add(run.pages() as usize));
    if run.behind > 0 {
        buf.fill_behind(&place.object.write(), run.first_page(), run.behind);
    }
    if !pages.is_some_and(|pages| buf.fill_requested(pages)) {
        return false;
    }
    if run.ahead > 0 {
        let next = run.first_page() + u64::from(run.pages());
        buf.fill_ahead(&place.object.write(), next, run.ahead);
    }
    let (behind, ahead) = (buf.behind(), buf.ahead());
    let (blkno, bytes) = run.transfer(place.file, place.geometry, behind, ahead);
    address(&place, buf, Transfer { blkno, bytes, page_offset: run.page_offset() });
    stats::PAGES_BEHIND.add(behind);
    stats::PAGES_AHEAD.add(ahead);
    stats::BUFS.add(1);
    true
}

/// Completes a loaded buf's header.
pub fn address(place: &Place<'_>, buf: &mut Buf, transfer: Transfer) {
    buf.address(place.vnode, place.device, transfer, place.vnode.takes_unmapped());
}

fn wishes(call: &Call<'_>) -> Wishes {
    // No page follows one that ends the file.
    let ends = call.target.last_partly_valid();
    Wishes { behind: call.vop.behind.wish(), ahead: if ends { 0 } else { call.vop.ahead.wish() } }
}

/// Sends the bufs of an async call. The reply may be sent before this returns.
///
/// Each buf is sent as soon as it is loaded: this thread must not wait for a
/// buf while it owns an unsent one. Locks: vnode. Sleeps: for the block map, a
/// buf or a bio.
pub fn send<'a>(call: Call<'a>, miss: &mut Miss) -> Answer<'a> {
    let wishes = wishes(&call);
    let Call { mut vop, target } = call;
    let request = match Request::pend(&target, vop.reply, false) {
        Ok(request) => request,
        Err(reply) => {
            vop.reply = reply;
            return failed(vop, PagerError::Fail, Errno::EINVAL);
        }
    };
    let (mut walk, mut around, mut sent) = (Walk::default(), Wishes::default(), 0u32);
    let outcome = loop {
        match walk.next(&target, wishes, |lbn| target.place.extent(lbn)) {
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
            Ok(Some(run)) => {
                let mut buf = bufs::alloc_or_wait(target.place.device);
                buf.job = Job::Part { part: Part::new(&request), retried: false };
                // Dropping the buf fails the request.
                if load(&mut buf, &target, run) {
                    around.behind = around.behind.max(buf.behind());
                    around.ahead = around.ahead.max(buf.ahead());
                    sent = sent.saturating_add(1);
                    bufs::send(buf);
                }
            }
        }
    };
    miss.ask.ahead = around.ahead;
    vop.behind.report(around.behind);
    vop.ahead.report(around.ahead);
    match outcome {
        Err(_) if sent == 0 => {
            stats::FAILED.add(1);
            complete::arrive(request, outcome);
            Answer::Done(Err(PagerError::Error))
        }
        outcome => {
            complete::arrive(request, outcome);
            Answer::Done(Ok(()))
        }
    }
}

/// Serves a synchronous call, one run after the other. Locks: vnode. Sleeps:
/// until the data have been read.
pub fn read(call: Call<'_>) -> Answer<'_> {
    let wishes = wishes(&call);
    let Call { mut vop, target } = call;
    let (mut walk, mut around) = (Walk::default(), Wishes::default());
    let outcome = loop {
        match walk.next(&target, wishes, |lbn| target.place.extent(lbn)) {
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
            Ok(Some(run)) => {
                // A page fault of a thread that serves the device must not wait
                // for bufs of that device. For one page the original VOP needs
                // none of ours.
                let buf = bufs::alloc(Use::Request, target.place.device);
                if buf.is_none() && target.pages.len() == 1 {
                    return Answer::Original(vop);
                }
                let mut buf = buf.unwrap_or_else(|| bufs::alloc_or_wait(target.place.device));
                if !load(&mut buf, &target, run) {
                    break Err(Errno::EIO);
                }
                around.behind = around.behind.max(buf.behind());
                around.ahead = around.ahead.max(buf.ahead());
                if let Err(error) = complete::sync(bufs::read(buf)) {
                    break Err(error);
                }
            }
        }
    };
    if outcome.is_ok() {
        complete::make_valid(&target.place.object, target.pages, target.wanted);
    } else {
        stats::ERRORS.add(1);
    }
    vop.behind.report(around.behind);
    vop.ahead.report(around.ahead);
    vop.reply.send(outcome);
    Answer::Done(outcome.map_err(|_| PagerError::Error))
}
