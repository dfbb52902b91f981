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

use core::ptr::NonNull;

use super::{
    PBUFS, Stop, complete, late, latency,
    map::{self, Path, Table},
    plan::{Extent, PAGE, Wishes},
    plan_from,
    request::{Answer, Call, Place, Target},
    submit,
};
use crate::{
    kpi::{
        buf::{Form, Pbuf, Transfer},
        errno::Errno,
        sys,
        vnode::{Pointers, Vnode},
        vnode_if::Bmap,
    },
    stats::{self, Tally},
};

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

/// Requests whose block map is being read. Each keeps two bufs while it may
/// need more, so there are only so many that all others could not be had.
static CHAINS: Tally = Tally::new();

/// Send the first buf of a request whose run was promised. Gives the call
/// back, untouched, when its blocks can be looked up without waiting after
/// all, or there is no buf or page at hand.
#[allow(clippy::result_large_err)] // the call itself, not an error
pub fn send(mut call: Call<'_>) -> Result<Answer<'_>, Call<'_>> {
    if CHAINS.now() >= PBUFS.max() / 8 {
        return Err(call);
    }
    let Some((lead, mut chain)) = begin(&call) else {
        return Err(call);
    };
    call.vop.behind.report(0);
    call.vop.ahead.report(0);
    call.vop.reply.pass_on();
    stats::MAPS_READ.add(1);
    CHAINS.enter(1);
    chain.join(lead);
    read_on(chain);
    Ok(Answer::Done(Ok(())))
}

fn begin(call: &Call<'_>) -> Option<(Pbuf, Pbuf)> {
    let Target { place, pages, first, wanted } = call.target;
    let block = place.geometry.block;
    let lbn = place.lbn(first);
    let (path, (level, blkno)) = missing(place.vnode, lbn)?;
    let last = place.lbn(first + wanted as u64 - 1);
    if !call.vop.reply.is_async() || !path.covers(last) {
        return None;
    }
    let mut lead = PBUFS.alloc()?;
    let mut chain = PBUFS.alloc()?;
    let range = piece(&path, level, place.vnode.pointers()?, block)?;
    let bytes = range.end.saturating_sub(range.start);
    if !chain.fill_indirect((bytes / PAGE) as u32) {
        return None;
    }
    let transfer = Transfer { blkno: 0, bytes: bytes as u32, page_offset: 0 };
    // The pointers are read through the mapping.
    chain.address(place.vnode, place.device, transfer, false);
    aim(&mut chain, level, blkno, range.start);
    let partly = call.target.last_partly_valid();
    lead.lead(&call.vop.reply, place.vnode, pages, partly).then_some((lead, chain))
}

/// Which bytes of the indirect block at `level` to read.
fn piece(
    path: &Path,
    level: usize,
    pointers: Pointers,
    block: u64,
) -> Option<core::ops::Range<u64>> {
    let index = path.stages().get(level)?.index;
    Some(map::piece(index, width(pointers), block, PAGE))
}

fn width(pointers: Pointers) -> u64 {
    if pointers.wide { 8 } else { 4 }
}

fn aim(chain: &mut Pbuf, level: usize, blkno: i64, offset: u64) {
    chain.aim(level, blkno.saturating_add((offset / u64::from(sys::DEV_BSIZE as u32)) as i64));
}

/// Send the buf that reads the map.
fn read_on(mut chain: Pbuf) {
    submit::sent(&mut chain);
    chain.send(&Form::Async(iodone));
}

/// `b_iodone` of a buf that reads the map.
///
/// # Safety
///
/// Called by the disk's completion thread with a buf that [`read_on`] has sent.
unsafe extern "C" fn iodone(bp: *mut sys::buf) {
    let Some(bp) = NonNull::new(bp) else { return };
    // SAFETY: the caller's promise.
    let mut chain = unsafe { Pbuf::from_iodone(bp) };
    latency::came_back(&chain);
    match chain.settle() {
        Ok(()) => late::later(chain, go_on),
        Err(error) => {
            end(chain, Err(error));
            stats::IN_FLIGHT.leave();
        }
    }
}

/// Pointers have been read. May sleep for a bio, never for a disk.
fn go_on(mut chain: Pbuf) {
    match next(&mut chain) {
        Ok(Next::Read) => read_on(chain),
        Ok(Next::Done) => end(chain, Ok(())),
        Err(error) => end(chain, Err(error)),
    }
    stats::IN_FLIGHT.leave();
}

/// The map says no more: the rest of the request is with its other parts.
fn end(chain: Pbuf, outcome: Result<(), Errno>) {
    CHAINS.leave();
    complete::arrive(chain, outcome);
}

/// What became of the pointers that have been read.
enum Next {
    /// More are to be read.
    Read,
    /// All bufs of the request are on their way.
    Done,
}

/// Do what the pointers say: aim at the next level, or send the request's bufs.
fn next(chain: &mut Pbuf) -> Result<Next, Errno> {
    let lead = chain.of_lead().ok_or(Errno::EIO)?;
    let target = Target::of_lead(lead, chain).ok_or(Errno::EIO)?;
    let block = target.place.geometry.block;
    let pointers = target.place.vnode.pointers().ok_or(Errno::EIO)?;
    // What a truncated file's indirect blocks were may be somebody else's by
    // now: soft updates free them before they wait for our pages, but not
    // before the inode has its new size.
    if target.place.vnode.inode_size() <= target.first.saturating_mul(PAGE) {
        return Err(Errno::EIO);
    }
    let lbn = target.place.lbn(target.first);
    let path = Path::new(lbn, pointers.per_block).ok_or(Errno::EIO)?;
    let level = chain.level();
    let stage = path.stages().get(level).ok_or(Errno::EIO)?;
    let range = piece(&path, level, pointers, block).ok_or(Errno::EIO)?;
    // In terms of the stage's own pointers; the last stage's lead to blocks.
    let index = range.start / width(pointers).max(1);
    let mut table = Table {
        bytes: chain.indirect_bytes(),
        first: index,
        wide: pointers.wide,
        shift: pointers.shift,
        step: pointers.step,
    };
    let mut hole = false;
    if let Some(below) = piece(&path, level.saturating_add(1), pointers, block) {
        if let Some(blkno) = table.pointer(stage.index).ok_or(Errno::EIO)? {
            aim(chain, level.saturating_add(1), blkno, below.start);
            return Ok(Next::Read);
        }
        // Nothing hangs on this pointer.
        hole = true;
    }
    table.first = lbn.saturating_sub(stage.index).saturating_add(index);
    let most = target.place.geometry.max_pages;
    let extent = |lbn| {
        if hole {
            return Ok(Extent { blkno: None, before: 0, after: 0 });
        }
        table.extent(lbn, most).ok_or(Errno::EIO)
    };
    let plan = plan_from(chain.tag() as u64, &target, Wishes::default(), extent);
    submit::join(chain, plan.batch);
    match plan.end {
        Ok(()) => Ok(Next::Done),
        Err(Stop::Error(error)) => Err(error),
        // Asking for the pointers again takes until there are more bufs: all
        // others come back without this one.
        Err(Stop::NoBuf) => {
            stats::NO_PBUF.add(1);
            chain.set_tag(plan.done as usize);
            Ok(Next::Read)
        }
    }
}

static_assertions::const_assert_eq!(map::DIRECT, sys::UFS_NDADDR as u64);
static_assertions::const_assert_eq!(map::LEVELS, sys::UFS_NIADDR as usize);
