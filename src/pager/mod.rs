// SPDX-License-Identifier: BSD-2-Clause
//! The data path, in reading order: [`request`] → [`plan`] → [`submit`] → [`complete`].

pub mod complete;
pub mod plan;
pub mod request;
pub mod submit;

use self::{
    plan::{Extent, PAGE, Step, Wishes},
    request::{Answer, Call, failed, prepare},
    submit::Batch,
};
use crate::{
    kpi::{
        buf::PbufZone, errno::Errno, vm_page::BusiedPage, vm_pager::PagerError, vnode_if::Getpages,
    },
    stats,
};

/// Serve a call of VOP_GETPAGES_ASYNC, or of VOP_GETPAGES when its reply is
/// not async: then this waits for the I/O.
///
/// The vnode is locked and the object is not. May sleep for the block map,
/// never for the data of an async call.
pub fn getpages<'a>(vop: Getpages<'a>, zone: &'static PbufZone) -> Answer<'a> {
    stats::PAGES_REQUESTED.add(vop.pages.len() as u32);
    let call = match prepare(vop) {
        Ok(call) => call,
        Err(answer) => return answer,
    };
    if call.wanted == 0 {
        // The only page, and what it lacks lies behind the end of the file.
        call.vop.pages.iter().for_each(BusiedPage::zero_invalid);
        stats::PAGES_VALID.add(1);
        return finished(call);
    }
    match plan_all(&call, zone) {
        Ok(batch) if batch.is_empty() => {
            complete::validate(&call.object, call.vop.pages, call.wanted < call.vop.pages.len());
            finished(call)
        }
        Ok(batch) => submit::send(call, batch, zone),
        Err(Stop::NoBuf) => {
            stats::NO_PBUF.add(1);
            if single_run(&call) { Answer::Original(call.vop) } else { Answer::Emulate(call.vop) }
        }
        Err(Stop::Error(error)) => failed(call.vop, PagerError::Error, error),
    }
}

/// Why a plan came to nothing.
enum Stop {
    /// There is no pbuf at hand.
    NoBuf,
    /// The block map could not be read.
    Error(Errno),
}

/// Walk the request's bytes, zero its holes, and load a buf for each run.
/// Nothing is sent yet, and an error leaves nothing behind.
fn plan_all(call: &Call<'_>, zone: &'static PbufZone) -> Result<Batch, Stop> {
    let mut batch = Batch::default();
    let start = call.first * PAGE;
    let mut end = start + call.wanted as u64 * PAGE;
    if call.geometry.small_blocks() {
        end = end.min(call.file.bytes.next_multiple_of(call.geometry.block));
    }
    let all = call.wanted == call.vop.pages.len();
    let wishes = Wishes {
        behind: call.vop.behind.wish(),
        // Behind a page that ends the file there is nothing.
        ahead: if all { call.vop.ahead.wish() } else { 0 },
    };
    let mut position = start;
    while position < end {
        let lbn = position / call.geometry.block;
        let map = call.vop.vnode.bmap(lbn).map_err(Stop::Error)?;
        let extent = Extent { blkno: map.blkno, before: map.before, after: map.after };
        let step =
            plan::step(call.file, call.geometry, position, end, extent, position == start, wishes);
        position += match step {
            Step::Zero(len) => {
                zero(call, position, len);
                len
            }
            Step::Read(run) if call.geometry.small_blocks() => {
                submit::load_small(call, run, zone, &mut batch).ok_or(Stop::NoBuf)?
            }
            Step::Read(run) => {
                submit::load(call, run, zone, &mut batch).ok_or(Stop::NoBuf)?;
                run.len
            }
        };
    }
    Ok(batch)
}

/// Zero the bytes of a hole. They become valid with the rest of the request.
fn zero(call: &Call<'_>, position: u64, len: u64) {
    let mut at = position;
    let end = position.saturating_add(len);
    while at < end {
        let offset = at % PAGE;
        let n = (PAGE - offset).min(end - at);
        if let Some(page) = call.vop.pages.get((at / PAGE).saturating_sub(call.first) as usize)
            && !page.is_valid(offset as u32, n as u32)
        {
            page.zero(offset as u32, n as u32);
            stats::ZEROED_BYTES.add(n as u32);
        }
        at += n;
    }
}

/// Whether the original async VOP may serve the call too: it reads one run
/// only, does not call iodone for a hole, and forgets a last page that is
/// valid in part.
fn single_run(call: &Call<'_>) -> bool {
    if call.wanted < call.vop.pages.len() {
        return false;
    }
    let position = call.first * PAGE;
    let Ok(map) = call.vop.vnode.bmap(position / call.geometry.block) else {
        return false;
    };
    let extent = Extent { blkno: map.blkno, before: map.before, after: map.after };
    let end = position + call.wanted as u64 * PAGE;
    match plan::step(call.file, call.geometry, position, end, extent, true, Wishes::default()) {
        Step::Read(run) => run.start + run.len >= end,
        Step::Zero(_) => false,
    }
}

/// All pages are valid, without any I/O.
fn finished(mut call: Call<'_>) -> Answer<'_> {
    call.vop.behind.report(0);
    call.vop.ahead.report(0);
    call.vop.reply.send(Ok(()));
    Answer::Done(Ok(()))
}
