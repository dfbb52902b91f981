// SPDX-License-Identifier: BSD-2-Clause
//! Deferred maps: requests whose block map is read first, while no thread waits.
//!
//! sendfile(2) asks vnode_pager_haspage() for the length of a run before it
//! calls the pager, and VOP_BMAP would read an indirect block to answer. When
//! that block is not in memory, [`promise`] answers with a run that nobody has
//! looked up, and [`send`] serves it: a buf reads the pointers, level by level,
//! and when they are there the request is planned and sent, by a thread of our
//! own, since a completion thread may not.
//!
//! What it reads past the buffer cache is the truth: the blocks were not in
//! memory while the vnode was locked, so the disk has their newest contents,
//! and none of their pointers that matter can change before the request is
//! answered. A thread that moves a block or fills a hole needs the pages that lie
//! there first, and these are busied; a truncation sets the file's size first.

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

/// A request whose block map is being read, in the buf that reads it.
///
/// 1. The buf reads a piece of the first indirect block that is not in memory.
/// 2. Its completion hands it to the worker, which finds in it the place of the
///    next level's block; the buf reads that.
/// 3. On the last level the pointers lead to the request's data. The worker
///    sends a buf for each run. When it finds no buf it goes on later.
/// 4. With the last run sent, the buf is dropped and its share arrives.
pub struct MapRead {
    part: Part,
    level: usize,
    walk: Walk,
}

/// Pages to promise a caller of VOP_BMAP that must not wait for the block
/// map. `None` when it need not wait, or not for long, or is not sendfile(2)
/// about to call the pager: it gets the true answer.
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
    // sendfile has busied and wired the page that it asks about; no other caller
    // of this form has.
    let locked = place.object.read();
    if !(first..first.saturating_add(per_block)).any(|pindex| locked.is_wanted(pindex)) {
        return None;
    }
    // Which of the block's pages it asks about is not known: at worst the
    // last. It does not matter where the file ends with this indirect block,
    // since sendfile asks for nothing behind that.
    let end = map.end.saturating_mul(per_block);
    let at = if end >= place.file.pages { first } else { first.saturating_add(per_block) - 1 };
    let most = u64::from(place.geometry.max_pages).saturating_sub(1);
    Some(end.saturating_sub(at.saturating_add(1)).min(most) as u32)
}

fn place(vnode: Vnode<'_>) -> Option<Place<'_>> {
    let place = Place::new(vnode, vnode.object()?, vnode.device().ok()?)?;
    (place.is_served() && !place.geometry.small_blocks()).then_some(place)
}

/// Send the first buf of a request whose run was promised. Gives the call
/// back, untouched, when its blocks can be looked up without waiting after
/// all, or there is no buf or page at hand.
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

/// A buf that reads the first piece of the block map that is not in memory, and
/// its level.
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

/// A buf that reads pointers is back. Does not sleep.
pub fn map_read(mut buf: Buf) {
    match buf.outcome() {
        Ok(()) => worker::push(buf),
        Err(error) => end(buf, Err(error)),
    }
}

/// Go on with a request whose pointers have been read. Gives the buf back when
/// there is no other one to go on with. May sleep for a bio.
pub fn go_on(mut buf: Buf) -> Option<Buf> {
    match next(&mut buf) {
        Ok(Next::Read) => bufs::send(buf),
        Ok(Next::Done) => end(buf, Ok(())),
        Ok(Next::Starved) => return Some(buf),
        Err(error) => end(buf, Err(error)),
    }
    None
}

/// Nothing is left to do with the map: the rest of the request is with its other bufs.
fn end(mut buf: Buf, outcome: Result<(), Errno>) {
    if let Job::Map(read) = core::mem::replace(&mut buf.job, Job::Idle) {
        drop(buf);
        read.part.arrive(outcome);
    }
}

/// What is to be done after a look at the pointers.
enum Next {
    /// Read more of them.
    Read,
    /// Nothing: all bufs of the request are on their way.
    Done,
    /// Wait for a buf.
    Starved,
}

/// Do what the pointers say: aim at the next level, or send the request's bufs.
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
        // All pieces of a filesystem's maps are of the same length.
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
