// SPDX-License-Identifier: BSD-2-Clause
//! The data path, in reading order: [`request`] → [`plan`] → [`submit`] → [`complete`].

pub mod chain;
pub mod complete;
pub mod late;
pub mod latency;
pub mod map;
pub mod plan;
pub mod request;
pub mod submit;

use self::{
    plan::{Extent, PAGE, Step, Wishes},
    request::{Answer, Call, Miss, Target, failed, prepare},
    submit::Batch,
};
use crate::{
    kpi::{
        buf::PbufZone, errno::Errno, vm_page::BusiedPage, vm_pager::PagerError, vnode::BlockMap,
        vnode_if::Getpages,
    },
    stats,
};

/// The module's pbufs.
pub static PBUFS: PbufZone = PbufZone::new();

/// Serve a call of VOP_GETPAGES_ASYNC, or of VOP_GETPAGES when its reply is
/// not async: then this waits for the I/O. `promised` says that the caller
/// was told of a run that nobody has looked up yet. What an async call missed
/// is noted in `miss`.
///
/// The vnode is locked and the object is not. May sleep for the block map
/// unless `promised`, never for the data of an async call.
pub fn getpages<'a>(vop: Getpages<'a>, promised: bool, miss: &mut Option<Miss>) -> Answer<'a> {
    stats::PAGES_REQUESTED.add(vop.pages.len() as u32);
    let mut call = match prepare(vop) {
        Ok(call) => call,
        Err(answer) => return answer,
    };
    let target = call.target;
    if target.wanted == 0 {
        // The only page, and what it lacks lies behind the end of the file.
        target.pages.iter().for_each(BusiedPage::zero_invalid);
        stats::PAGES_VALID.add(1);
        return finished(call);
    }
    *miss = call.vop.reply.is_async().then(|| Miss::new(&target, call.vop.ahead.wish()));
    if promised {
        match chain::send(call) {
            Ok(answer) => {
                if let Some(miss) = miss {
                    miss.ask.unmapped = true;
                }
                return answer;
            }
            Err(again) => call = again,
        }
    }
    let wishes = Wishes {
        behind: call.vop.behind.wish(),
        // Behind a page that ends the file there is nothing.
        ahead: if target.last_partly_valid() { 0 } else { call.vop.ahead.wish() },
    };
    let plan = plan_from(0, &target, wishes, |lbn| target.place.vnode.bmap(lbn).map(extent));
    match plan.end {
        Ok(()) if plan.batch.is_empty() => {
            complete::validate(&target);
            finished(call)
        }
        Ok(()) => {
            let batch = plan.batch;
            if let Some(miss) = miss {
                miss.ask.ahead = batch.ahead();
            }
            submit::send(call, batch)
        }
        Err(Stop::NoBuf) => {
            stats::NO_PBUF.add(1);
            if single_run(&target) { Answer::Original(call.vop) } else { Answer::Emulate(call.vop) }
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

/// Bufs that are loaded and not sent yet; dropped, they leave nothing behind.
struct Plan {
    batch: Batch,
    /// Bytes of the request that need no more work than `batch`.
    done: u64,
    /// Whether that is all of them.
    end: Result<(), Stop>,
}

/// Walk the request's bytes from its byte `done` on, zero its holes, and load
/// a buf for each run, as `map` tells where the file's blocks are.
fn plan_from(
    done: u64,
    target: &Target<'_>,
    wishes: Wishes,
    map: impl Fn(u64) -> Result<Extent, Errno>,
) -> Plan {
    let mut plan = Plan { batch: Batch::default(), done, end: Ok(()) };
    plan.end = plan.walk(target, wishes, map);
    plan
}

impl Plan {
    fn walk(
        &mut self,
        target: &Target<'_>,
        wishes: Wishes,
        map: impl Fn(u64) -> Result<Extent, Errno>,
    ) -> Result<(), Stop> {
        let (file, geometry) = (target.place.file, target.place.geometry);
        let start = target.first * PAGE;
        let mut end = start + target.wanted as u64 * PAGE;
        if geometry.small_blocks() {
            // No buf has all of the last page: what none reads is zero, even
            // if the file grows meanwhile.
            let behind = file.bytes.max(start);
            zero(target, behind, end.saturating_sub(behind));
            end = end.min(file.bytes.next_multiple_of(geometry.block.max(1)));
        }
        while start + self.done < end {
            let position = start + self.done;
            let extent = map(position / geometry.block.max(1)).map_err(Stop::Error)?;
            let step = plan::step(file, geometry, position, end, extent, position == start, wishes);
            self.done += match step {
                Step::Zero(len) => {
                    zero(target, position, len);
                    len
                }
                Step::Read(run) if geometry.small_blocks() => {
                    submit::load_small(target, run, &mut self.batch).ok_or(Stop::NoBuf)?
                }
                Step::Read(run) => {
                    submit::load(target, run, &mut self.batch).ok_or(Stop::NoBuf)?;
                    run.len
                }
            };
        }
        Ok(())
    }
}

/// What VOP_BMAP has said, as the plan takes it.
pub fn extent(map: BlockMap) -> Extent {
    Extent { blkno: map.blkno, before: map.before, after: map.after }
}

/// Zero the bytes of a hole. They become valid with the rest of the request.
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

/// Whether the original async VOP may serve the call too: it reads one run
/// only, does not call iodone for a hole, and forgets a last page that is
/// valid in part.
fn single_run(target: &Target<'_>) -> bool {
    if target.last_partly_valid() {
        return false;
    }
    let position = target.first * PAGE;
    let end = position + target.wanted as u64 * PAGE;
    match target.place.step(position, end) {
        Ok(Step::Read(run)) => run.start + run.len >= end,
        Ok(Step::Zero(_)) | Err(_) => false,
    }
}

/// All pages are valid, without any I/O.
fn finished(mut call: Call<'_>) -> Answer<'_> {
    call.vop.behind.report(0);
    call.vop.ahead.report(0);
    call.vop.reply.send(Ok(()));
    Answer::Done(Ok(()))
}
