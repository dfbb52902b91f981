// SPDX-License-Identifier: BSD-2-Clause
//! A call of the VOP: what it asks for, and whether it is ours to serve.

use super::plan::{self, File, PAGE};
use crate::{
    kpi::{
        buf, errno::Errno, sys, vm_object::Object, vm_pager::PagerError, vnode::Device,
        vnode_if::Getpages,
    },
    stats,
};

/// What became of a call.
pub enum Answer<'a> {
    /// `VM_PAGER_OK`, or the error that the reply has told already.
    Done(Result<(), PagerError>),
    /// The original VOP is to serve it: nothing has been touched or told.
    Original(Getpages<'a>),
    /// The sync VOP is to serve it, which waits for the data: the filesystem
    /// has no block map, or bufs have run out. Nothing has been told.
    Emulate(Getpages<'a>),
}

/// What all steps of one call share.
pub struct Call<'a> {
    /// The call itself.
    pub vop: Getpages<'a>,
    /// The file's VM object.
    pub object: Object<'a>,
    /// The device below.
    pub device: Device<'a>,
    /// The file's size, as the locked vnode has it.
    pub file: File,
    /// The filesystem's numbers.
    pub geometry: plan::Device,
    /// The request's first page.
    pub first: u64,
    /// Pages to read: all, or all but a last one that is valid in part.
    pub wanted: usize,
}

/// Whether the call can be served, and by whom. The vnode is locked and the
/// object is not. Does not sleep.
pub fn prepare(vop: Getpages<'_>) -> Result<Call<'_>, Answer<'_>> {
    // A reclaimed vnode has neither mount nor device: not even the original
    // may look at it.
    let Some(object) = (!vop.vnode.is_doomed()).then(|| vop.vnode.object()).flatten() else {
        return Err(failed(vop, PagerError::Bad, Errno::EIO));
    };
    let device = match vop.vnode.device() {
        Ok(device) => device,
        Err(Errno::EOPNOTSUPP) => return Err(Answer::Emulate(vop)),
        Err(error) => return Err(failed(vop, PagerError::Error, error)),
    };
    let geometry = plan::Device {
        block: u64::from(vop.vnode.block_size()),
        sector: u64::from(device.sector()),
        max_pages: buf::max_pages(),
    };
    let (Some(first), Some(last)) = (vop.pages.first(), vop.pages.last()) else {
        return Err(failed(vop, PagerError::Fail, Errno::EINVAL));
    };
    if !geometry.block.is_power_of_two()
        || geometry.block < plan::DEV_BSIZE
        || !geometry.sector.is_power_of_two()
        || geometry.sector > PAGE
        || vop.pages.len() > geometry.max_pages as usize
        || first.is_bogus()
        || last.is_bogus()
    {
        return Err(Answer::Original(vop));
    }
    // A last page that is valid in part ends the file: its valid part may be
    // newer than the disk, so it is not read. With small blocks each block
    // is looked at on its own.
    let partly = !geometry.small_blocks() && !last.none_valid();
    Ok(Call {
        object,
        device,
        file: File { pages: object.size(), bytes: object.vnp_size() },
        geometry,
        first: first.pindex(),
        wanted: vop.pages.len() - usize::from(partly),
        vop,
    })
}

/// No I/O was started; the pages stay busied and untouched.
pub fn failed(mut vop: Getpages<'_>, answer: PagerError, error: Errno) -> Answer<'_> {
    stats::FAILED.add(1);
    vop.behind.report(0);
    vop.ahead.report(0);
    vop.reply.send(Err(error));
    Answer::Done(Err(answer))
}

// The plan's numbers are the kernel's.
static_assertions::const_assert_eq!(PAGE, sys::PAGE_SIZE as u64);
static_assertions::const_assert_eq!(plan::DEV_BSIZE, sys::DEV_BSIZE as u64);
