// SPDX-License-Identifier: BSD-2-Clause
//! From a completed buf to the reply of its request.
//!
//! For async calls this runs in the disk's completion thread, which must not
//! sleep.

use core::mem;

use super::{
    bufs::{self, Buf, Job},
    plan::{self, PAGE},
    request::Request,
    worker,
};
use crate::{
    fs,
    kpi::{
        errno::Errno,
        getpages::{Last, Pending},
        systm::RateLimit,
        vm_object::Object,
        vm_page::BusiedPage,
    },
    kprintln, stats,
};

/// At most one message a second about failed reads.
static MESSAGES: RateLimit = RateLimit::new(1);

/// Handles a completed buf of an async request. Sleeps: no.
pub fn part(mut buf: Buf) {
    let behind = buf.behind();
    let around = behind + buf.ahead();
    let outcome = settle(&mut buf);
    if let Err(error) = outcome {
        if let Job::Part { part, retried } = &mut buf.job
            && !*retried
            && is_worth_retrying(error, around)
        {
            *retried = true;
            // The VOP has returned, and its caller may have unlocked the vnode.
            part.request().inspect(|request| request.value().unlocked());
            narrow(&mut buf, behind);
            worker::push(buf);
            return;
        }
        log(&buf, error);
    }
    if let Job::Part { part, .. } = mem::replace(&mut buf.job, Job::Idle) {
        // Drop the buf first: after the reply, vnode and mount may go away.
        drop(buf);
        part.arrive(outcome);
    }
}

/// Handles a completed buf of a synchronous request. Sleeps: while the buf is
/// read again. Errors: the device's, EIO.
pub fn sync(mut buf: Buf) -> Result<(), Errno> {
    let behind = buf.behind();
    let around = behind + buf.ahead();
    let mut outcome = settle(&mut buf);
    if let Err(error) = outcome
        && is_worth_retrying(error, around)
    {
        narrow(&mut buf, behind);
        buf = bufs::read(buf);
        outcome = settle(&mut buf);
    }
    outcome.inspect_err(|error| log(&buf, *error))
}

/// Whether to read a failed buf again without its `around` extra pages: a bad
/// sector below an extra page must not fail the request. A device that is gone
/// (ENXIO) stays gone.
fn is_worth_retrying(error: Errno, around: u32) -> bool {
    around > 0 && error != Errno::ENXIO
}

fn narrow(buf: &mut Buf, behind: u32) {
    stats::RETRIES.add(1);
    buf.narrow(behind);
}

/// Finishes the I/O of a buf: removes the mapping, zeroes the bytes behind the
/// end of the file, and validates or frees the extra pages. Locks: takes object
/// read. Sleeps: no. Errors: the device's, EIO.
pub fn settle(buf: &mut Buf) -> Result<(), Errno> {
    let mut outcome = buf.outcome();
    match buf.vnode().and_then(|vnode| vnode.object()) {
        Some(object) if outcome.is_ok() => {
            // The read lock keeps the end of the file where it is.
            let locked = object.read();
            let eof = locked.vnp_size();
            // The file may have grown since the buf was sent: zero the part
            // that the transfer did not reach. With small blocks other bufs
            // read that part.
            let small = buf.vnode().is_some_and(|vnode| u64::from(vnode.block_size()) < PAGE);
            let reached = if small { u64::MAX } else { u64::from(buf.bytes()) };
            let start = buf.first_pindex().map_or(eof, |pindex| pindex.saturating_mul(PAGE));
            let good = plan::below_eof(start, reached, eof);
            for (i, page) in (0u64..).zip(buf.pages()).skip((good / PAGE) as usize) {
                let below = good.saturating_sub(i.saturating_mul(PAGE)).min(PAGE) as u32;
                page.zero(below, PAGE as u32 - below);
            }
            for page in buf.extras() {
                page.validate(&locked);
            }
        }
        Some(_) => {}
        None => outcome = Err(Errno::EIO),
    }
    buf.finish_extras(|page| !page.none_valid());
    outcome
}

/// Drops a reference to a request, with the outcome of its I/O. The last one
/// answers the request.
pub fn arrive(request: Pending<Request>, outcome: Result<(), Errno>) {
    if let Err(error) = outcome {
        request.value().fail(error);
    }
    if let Some(last) = request.finish() {
        answer(last);
    }
}

/// Answers a pending request. All replies of pending requests pass here.
fn answer(last: Last<Request>) {
    let request = last.value();
    let mut outcome = request.outcome();
    if request.was_unlocked() {
        outcome = without_truncated(&last, outcome);
    }
    match (outcome, last.vnode().object()) {
        (Ok(()), Some(object)) => {
            let read = last.pages().len().saturating_sub(usize::from(request.last_partly_valid()));
            make_valid(&object, last.pages(), read);
        }
        (Ok(()), None) => outcome = Err(Errno::EIO),
        (Err(_), _) => stats::ERRORS.add(1),
    }
    last.answer(outcome);
}

/// Zeroes the bytes that a truncation has cut off since the VOP returned.
///
/// A truncation may free the file's blocks before it waits for the busied
/// pages, so bytes read since then may belong to another file. It lowers the
/// [size](fs::FileSystem::size) first, and ends only after the answer. So all
/// bytes below the present size have been the file's all along. (FFS without
/// soft updates raises the size again for a while, but waits for the busied
/// pages before it frees a block.)
fn without_truncated(last: &Last<Request>, outcome: Result<(), Errno>) -> Result<(), Errno> {
    let Some(size) = fs::of(last.vnode()).and_then(|fs| fs.size(last.vnode())) else {
        return outcome;
    };
    let Some(first) = last.pages().first().map(BusiedPage::pindex) else { return outcome };
    let start = first.saturating_mul(PAGE);
    for (i, page) in (0u64..).zip(last.pages()) {
        let below = plan::below_eof(start.saturating_add(i * PAGE), PAGE, size) as u32;
        page.zero(below, PAGE as u32 - below);
    }
    // The error may come from a pointer that the truncation has made stale.
    if size <= start { Ok(()) } else { outcome }
}

/// Validates pages up to the end of the file. `read`: the first pages, which
/// were read as a whole. Locks: takes object read.
pub fn make_valid(object: &Object<'_>, pages: &[BusiedPage], read: usize) {
    let locked = object.read();
    for (i, page) in pages.iter().enumerate() {
        if i < read {
            page.validate(&locked);
        } else {
            // The invalid part of this page lies behind the end of the file.
            page.zero_invalid();
        }
    }
}

/// Out of line, to keep its stack out of the success path.
#[cold]
#[inline(never)]
fn log(buf: &Buf, error: Errno) {
    if let (Some(vnode), Some(pindex)) = (buf.vnode(), buf.first_pindex())
        && MESSAGES.pass()
    {
        let (offset, bytes) = (pindex.saturating_mul(PAGE), buf.bytes());
        let size = vnode.object().map_or(0, |object| object.vnp_size());
        let on = vnode.mounted_on();
        let number = fs::of(vnode).and_then(|fs| fs.file_number(vnode)).unwrap_or(0);
        kprintln!(
            "{on} inode {number} offset {offset}: reading {bytes} of {size} bytes failed, \
             errno {error}"
        );
    }
}
