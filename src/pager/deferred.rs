// SPDX-License-Identifier: BSD-2-Clause
//! Deferred maps: requests whose block map is read first, while no thread
//! waits.
//!
//! sendfile(2) calls vnode_pager_haspage() for the length of a run before it
//! calls the pager, and VOP_BMAP would read an indirect block to answer. When
//! that block is not in memory, [`promise`] answers with a run that it has not
//! looked up: the promised run. [`send`] then serves the call. A buf reads the
//! pointers, level by level. With the last level a worker thread plans and
//! sends the request, since a completion thread must not sleep.
//!
//! These reads bypass the buffer cache, and yet their pointers are valid. The
//! blocks were not in memory while the vnode was locked, so the disk has their
//! newest contents. Nor can a pointer that matters change before the request is
//! answered: a thread that moves a block or fills a hole first needs the pages
//! that lie there, and they are busied. A truncation sets the file's size
//! first, which the completion checks.

use super::{
    bufs::{self, Buf, Job, Use},
    latency,
    plan::{Extent, PAGE, Wishes},
    request::{Call, Part, Place, Request, Target},
    submit::{self, Walk},
    worker,
};
use crate::{
    fs::{self, Piece},
    kpi::{buf::Transfer, errno::Errno, getpages::Answer, vnode::Vnode, vnode_if::Bmap},
    stats,
};

/// The state of a request whose block map is being read. The buf that reads it
/// carries the state.
///
/// 1. The buf reads a piece of the first indirect block that is not in memory.
/// 2. Its completion hands the buf to the worker. The worker finds the next
///    level's block in the piece, and the buf reads that.
/// 3. The pointers of the last level lead to the request's data. The worker
///    sends a buf for each run. When no buf is free, it goes on when one comes
///    back.
/// 4. After the last run is sent, the worker drops the buf and its part
///    arrives.
pub struct MapRead {
    part: Part,
    level: usize,
    walk: Walk,
}

/// The length of the run to promise a caller of VOP_BMAP, in pages. `None`
/// leaves the call to the original VOP: the block map is in memory, the device
/// is fast, no buf is free, or the caller is not sendfile(2) before a call of
/// the pager. Locks: vnode. Sleeps: no.
pub fn promise(call: &Bmap<'_>) -> Option<u32> {
    if call.vnode.is_doomed() {
        return None;
    }
    // Most calls end here: the map is in memory.
    let map = fs::of(call.vnode)?.missing_map(call.vnode, call.lbn)?;
    let place = place(call.vnode)?;
    if !bufs::map_available(place.device.id()) {
        return None;
    }
    latency::mounted(place.device.id(), call.vnode.mounting());
    if !latency::may_be_long(place.device.id()) {
        return None;
    }
    let per_block = place.geometry.block / PAGE;
    let first = call.lbn.checked_mul(per_block)?;
    // sendfile(2) has busied and wired the page before it asks; no other caller
    // of this form does.
    let locked = place.object.read();
    if !(first..first.saturating_add(per_block)).any(|pindex| locked.is_wanted(pindex)) {
        return None;
    }
    // The call does not tell which page of the block it is about: assume the
    // last. In the file's last indirect block assume the first, since
    // sendfile(2) asks for nothing behind the end of the file.
    let end = map.end.saturating_mul(per_block);
    let at = if end >= place.file.pages { first } else { first.saturating_add(per_block) - 1 };
    let most = u64::from(place.geometry.max_pages).saturating_sub(1);
    Some(end.saturating_sub(at.saturating_add(1)).min(most) as u32)
}

fn place(vnode: Vnode<'_>) -> Option<Place<'_>> {
    let place = Place::new(vnode, vnode.object()?, vnode.device().ok()?)?;
    (place.is_served() && !place.geometry.small_blocks()).then_some(place)
}

/// Sends the first buf of a request whose run was promised. Gives the call
/// back, untouched, when its block map is in memory after all, or when no buf
/// or page is free. Locks: vnode. Sleeps: for a bio.
#[allow(clippy::result_large_err)] // the call itself, not an error
pub fn send(call: Call<'_>) -> Result<Answer<'_>, Call<'_>> {
    let Some((mut buf, level)) = first_read(&call) else {
        return Err(call);
    };
    let Call { mut vop, target } = call;
    let request = match Request::pend(&target, vop.reply, true) {
        Ok(request) => request,
        Err(reply) => {
            vop.reply = reply;
            return Err(Call { vop, target });
        }
    };
    vop.behind.report(0);
    vop.ahead.report(0);
    stats::MAPS_READ.add(1);
    let part = Part::from(request);
    buf.job = Job::Map(MapRead { part, level, walk: Walk::default() });
    bufs::send(buf);
    Ok(Answer::Done(Ok(())))
}

/// Prepares a buf that reads the first piece of the block map that is not in
/// memory. Returns the buf and its level.
fn first_read(call: &Call<'_>) -> Option<(Buf, usize)> {
    let Target { place, first, wanted, .. } = call.target;
    let map = place.fs.missing_map(place.vnode, place.lbn(first))?;
    if place.lbn(first + wanted as u64 - 1) >= map.end {
        return None;
    }
    let mut buf = bufs::alloc(Use::Map, place.device)?;
    let Piece { blkno, bytes } = map.piece;
    if !buf.fill_unmanaged(bytes / PAGE as u32) {
        return None;
    }
    let transfer = Transfer { blkno, bytes, page_offset: 0 };
    buf.address(place.vnode, place.device, transfer, false);
    Some((buf, map.level))
}

/// Handles a completed buf that has read pointers. Sleeps: no.
pub fn map_read(mut buf: Buf) {
    match buf.outcome() {
        Ok(()) => worker::push(buf),
        Err(error) => end(buf, Err(error)),
    }
}

/// Goes on with a request whose pointers have been read. Gives the buf back
/// when no other buf is free. Sleeps: for a bio.
pub fn go_on(mut buf: Buf) -> Option<Buf> {
    match next(&mut buf) {
        Ok(Next::Read) => bufs::send(buf),
        Ok(Next::Done) => end(buf, Ok(())),
        Ok(Next::Starved) => return Some(buf),
        Err(error) => end(buf, Err(error)),
    }
    None
}

/// Ends the read of the map with `outcome`. The request's other bufs end the
/// rest.
fn end(mut buf: Buf, outcome: Result<(), Errno>) {
    if let Job::Map(read) = core::mem::replace(&mut buf.job, Job::Idle) {
        drop(buf);
        read.part.arrive(outcome);
    }
}

/// The next step after a look at the pointers.
enum Next {
    /// Read the next level.
    Read,
    /// None: all bufs of the request are on their way.
    Done,
    /// Wait for a buf.
    Starved,
}

/// Follows the pointers: aims the buf at the next level, or sends the request's
/// bufs. Errors: EIO for pointers that make no sense.
fn next(buf: &mut Buf) -> Result<Next, Errno> {
    let Job::Map(MapRead { part, level, walk }) = &buf.job else { return Err(Errno::EIO) };
    let (level, mut walk) = (*level, *walk);
    let request = part.request().ok_or(Errno::EIO)?.clone();
    let device = buf.device().ok_or(Errno::EIO)?;
    let target = Target::of_pending(&request, device).ok_or(Errno::EIO)?;
    let place = target.place;
    let lbn = place.lbn(target.first);
    let next = place.fs.follow(place.vnode, lbn, level, buf.bytes_read()).ok_or(Errno::EIO)?;
    if let fs::Next::Map(below) = next {
        // All pieces of a filesystem's maps have the same length.
        buf.aim(below.blkno);
        if let Job::Map(read) = &mut buf.job {
            read.level = level.saturating_add(1);
        }
        return Ok(Next::Read);
    }
    let most = place.geometry.max_pages;
    let extent = |at| match next {
        fs::Next::Hole => Ok(Extent { blkno: None, before: 0, after: 0 }),
        _ => place.fs.extent(place.vnode, lbn, buf.bytes_read(), at, most).ok_or(Errno::EIO),
    };
    loop {
        let before = walk;
        let Some(run) = walk.next(&target, Wishes::default(), extent)? else {
            return Ok(Next::Done);
        };
        let Some(mut data) = bufs::alloc(Use::Deferred, place.device) else {
            if let Job::Map(read) = &mut buf.job {
                read.walk = before;
            }
            return Ok(Next::Starved);
        };
        data.job = Job::Part { part: Part::new(&request), retried: false };
        if submit::load(&mut data, &target, run) {
            bufs::send(data);
        }
    }
}
