// SPDX-License-Identifier: BSD-2-Clause
//! From a completed buf to the request's reply.
//!
//! Runs in the disk's completion thread for async calls: no sleeping here.

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

/// One message a second about failed reads.
static MESSAGES: RateLimit = RateLimit::new(1);

/// A buf of an async request is back.
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
            // The vnode's lock has gone with the VOP.
            part.request().inspect(|request| request.value().unlocked());
            narrow(&mut buf, behind);
            worker::push(buf);
            return;
        }
        log(&buf, error);
    }
    if let Job::Part { part, .. } = mem::replace(&mut buf.job, Job::Idle) {
        // The buf first: the reply lets vnode and mount go away.
        drop(buf);
        part.arrive(outcome);
    }
}

/// A buf of a synchronous request is back. Sleeps while it is read again.
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

/// Whether a failed buf with so many pages that nobody asked for is read once
/// more without them: a bad sector below such a page must not fail the request.
/// A device that is gone stays gone.
fn is_worth_retrying(error: Errno, around: u32) -> bool {
    around > 0 && error != Errno::ENXIO
}

fn narrow(buf: &mut Buf, behind: u32) {
    stats::RETRIES.add(1);
    buf.narrow(behind);
}

/// The I/O's own clean-up: mapping, bytes behind the end of the file, and the
/// pages that nobody asked for.
pub fn settle(buf: &mut Buf) -> Result<(), Errno> {
    let mut outcome = buf.outcome();
    match buf.vnode().and_then(|vnode| vnode.object()) {
        Some(object) if outcome.is_ok() => {
            // The read lock keeps the file's end where it is.
            let locked = object.read();
            let eof = locked.vnp_size();
            // The file may have grown since the buf was sent: what the
            // transfer did not reach is zeroed too. With small blocks that
            // is for other bufs to read.
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

/// A share of a request is done; with the last one the request is answered.
pub fn arrive(request: Pending<Request>, outcome: Result<(), Errno>) {
    if let Err(error) = outcome {
        request.value().fail(error);
    }
    if let Some(last) = request.finish() {
        answer(last);
    }
}

/// Answer a request: all replies of pending requests pass here.
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

/// Zero what a truncation has cut off since the VOP has returned.
///
/// A truncation may free the file's blocks before it waits for the busied pages:
/// what was read since may be another file's. The [size](fs::FileSystem::size)
/// falls first, and the truncation ends only after the answer. So what lies below
/// it now was the file's all along. (FFS without soft updates raises the size
/// again for a while, but waits for the busied pages before it frees a block.)
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
    // An error may come of following what were pointers once.
    if size <= start { Ok(()) } else { outcome }
}

/// Make pages valid up to the end of the file, the first `read` of them as a whole.
pub fn make_valid(object: &Object<'_>, pages: &[BusiedPage], read: usize) {
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

/// Kept out of the way of what goes well, with the stack that it takes.
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
