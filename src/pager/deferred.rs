// SPDX-License-Identifier: BSD-2-Clause
//! Requests whose block map has to be read first, without anybody waiting.
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
//! answered. Who moves a block or fills a hole first needs the pages that lie
//! there, and these are busied; who truncates the file first tells its size.

use super::{
    blockmap::{self, Path, Table},
    bufs::{self, Buf, Job, Use},
    latency,
    plan::{Extent, PAGE, Wishes},
    request::{Call, Part, Place, Request, Target},
    submit::{self, Walk},
    worker,
};
use crate::{
    kpi::{
        buf::Transfer,
        errno::Errno,
        getpages::Answer,
        sys,
        vnode::{Pointers, Vnode},
        vnode_if::Bmap,
    },
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
    let (path, _) = missing(call.vnode, call.lbn)?;
    let place = place(call.vnode)?;
    if !bufs::available(Use::Map) {
        return None;
    }
    latency::mounted(place.device.id(), call.vnode.mounting());
    if !latency::may_be_long(place.device.id()) {
        return None;
    }
    let per_block = place.geometry.block / PAGE;
    let first = call.lbn.checked_mul(per_block)?;
    // sendfile has busied and wired the page that it asks about; nobody else
    // who asks in this way has.
    let locked = place.object.read();
    if !(first..first.saturating_add(per_block)).any(|pindex| locked.is_wanted(pindex)) {
        return None;
    }
    // Which of the block's pages it asks about is not known: at worst the
    // last. It does not matter where the file ends with this indirect block,
    // since sendfile asks for nothing behind that.
    let end = path.end().saturating_mul(per_block);
    let at = if end >= place.file.pages { first } else { first.saturating_add(per_block) - 1 };
    let most = u64::from(place.geometry.max_pages).saturating_sub(1);
    Some(end.saturating_sub(at.saturating_add(1)).min(most) as u32)
}

fn place(vnode: Vnode<'_>) -> Option<Place<'_>> {
    let place = Place::new(vnode, vnode.object()?, vnode.device().ok()?);
    (place.is_served() && !place.geometry.small_blocks()).then_some(place)
}

/// The way to a block, and the first stage of it that is not in memory, with
/// its place on the device.
pub type Missing = (Path, (usize, i64));

/// What of the way to a block is not in memory. `None` unless the disk would have to be
/// read to find the block, and everything from that stage down is on the disk
/// only.
pub fn missing(vnode: Vnode<'_>, lbn: u64) -> Option<Missing> {
    let path = Path::new(lbn, vnode.pointers()?.per_block)?;
    let stages = path.stages();
    let (level, stage) =
        stages.iter().enumerate().find(|(_, stage)| !vnode.in_memory(stage.lbn))?;
    if stages.iter().skip(level + 1).any(|stage| vnode.in_memory(stage.lbn)) {
        return None;
    }
    let blkno = vnode.bmap_indirect(stage.lbn).ok()??;
    Some((path, (level, blkno)))
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
    let block = place.geometry.block;
    let lbn = place.lbn(first);
    let (path, (level, blkno)) = missing(place.vnode, lbn)?;
    let last = place.lbn(first + wanted as u64 - 1);
    if !path.covers(last) {
        return None;
    }
    let range = piece(&path, level, place.vnode.pointers()?, block)?;
    let bytes = range.end.saturating_sub(range.start);
    let mut buf = bufs::alloc(Use::Map)?;
    if !buf.fill_unmanaged((bytes / PAGE) as u32) {
        return None;
    }
    let blkno = blkno.saturating_add((range.start / DEV_BSIZE) as i64);
    let transfer = Transfer { blkno, bytes: bytes as u32, page_offset: 0 };
    buf.address(place.vnode, place.device, transfer, false);
    Some((buf, level))
}

/// Which bytes of the indirect block at `level` to read.
fn piece(
    path: &Path,
    level: usize,
    pointers: Pointers,
    block: u64,
) -> Option<core::ops::Range<u64>> {
    let index = path.stages().get(level)?.index;
    Some(blockmap::piece(index, width(pointers), block, PAGE))
}

fn width(pointers: Pointers) -> u64 {
    if pointers.wide { 8 } else { 4 }
}

/// A buf that reads pointers is back. Does not sleep.
pub fn map_read(mut buf: Buf) {
    match buf.outcome() {
        Ok(()) => worker::push(buf),
        Err(error) => end(buf, Err(error)),
    }
}

/// Go on with a request whose pointers have been read. Gives the buf back when
/// there is no other one to go on with. May sleep for a bio, never for a disk.
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
    let block = place.geometry.block;
    let pointers = place.vnode.pointers().ok_or(Errno::EIO)?;
    let lbn = place.lbn(target.first);
    let path = Path::new(lbn, pointers.per_block).ok_or(Errno::EIO)?;
    let stage = path.stages().get(level).ok_or(Errno::EIO)?;
    let range = piece(&path, level, pointers, block).ok_or(Errno::EIO)?;
    // In terms of the stage's own pointers; the last stage's lead to blocks.
    let index = range.start / width(pointers).max(1);
    let mut table = Table {
        bytes: buf.bytes_read(),
        first: index,
        wide: pointers.wide,
        shift: pointers.shift,
        step: pointers.step,
        end: place.vnode.fs_blocks(),
        block: (block / DEV_BSIZE) as i64,
    };
    let mut hole = false;
    if let Some(below) = piece(&path, level.saturating_add(1), pointers, block) {
        if let Some(blkno) = table.pointer(stage.index).ok_or(Errno::EIO)? {
            let blkno = blkno.saturating_add((below.start / DEV_BSIZE) as i64);
            buf.aim(blkno);
            if let Job::Map(read) = &mut buf.job {
                read.level = level.saturating_add(1);
            }
            return Ok(Next::Read);
        }
        // Nothing hangs on this pointer.
        hole = true;
    }
    table.first = lbn.saturating_sub(stage.index).saturating_add(index);
    let most = place.geometry.max_pages;
    let extent = |lbn| {
        if hole {
            return Ok(Extent { blkno: None, before: 0, after: 0 });
        }
        table.extent(lbn, most).ok_or(Errno::EIO)
    };
    loop {
        let before = walk;
        let Some(run) = walk.next(&target, Wishes::default(), extent)? else {
            return Ok(Next::Done);
        };
        let Some(mut data) = bufs::alloc(Use::Deferred) else {
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

const DEV_BSIZE: u64 = super::plan::DEV_BSIZE;

static_assertions::const_assert_eq!(blockmap::DIRECT, sys::UFS_NDADDR as u64);
static_assertions::const_assert_eq!(blockmap::LEVELS, sys::UFS_NIADDR as usize);
