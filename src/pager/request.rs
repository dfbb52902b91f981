// SPDX-License-Identifier: BSD-2-Clause
//! A call of the VOP: its pages, and whether the module or the original VOP
//! serves it.

use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use super::{
    complete,
    plan::{self, Extent, File, PAGE, Step, Wishes},
};
use crate::{
    fs::{self, FileSystem},
    kpi::{
        buf,
        errno::Errno,
        getpages::{Answer, Getpages, Pending, PendingZone, Reply},
        proc, sys,
        vm_object::Object,
        vm_page::BusiedPage,
        vm_pager::PagerError,
        vnode::{Device, Identity, Vnode},
    },
    stats,
};

/// Memory for the requests whose I/O is in progress.
pub static REQUESTS: PendingZone<Request> = PendingZone::new();

/// An asynchronous request, from its first buf to its reply.
///
/// 1. The thread in the VOP [pends](Request::pend) the request, which takes
///    over the reply and the pages.
/// 2. Each buf that reads for the request has a [`Part`]. Until all bufs are
///    sent, the sending thread has a reference too; with a deferred map, the
///    buf that reads the map has it.
/// 3. Each part arrives once, with its outcome. The request keeps the first
///    error.
/// 4. The last part to arrive answers the request ([`complete`]).
pub struct Request {
    last_partly_valid: bool,
    /// Whether any of the request's data is read while the vnode may be
    /// unlocked.
    unlocked: AtomicBool,
    /// The first errno; 0 for none.
    error: AtomicI32,
}

impl Request {
    /// Makes a call pending. `unlocked`: the block map is yet to be read. Gives
    /// the reply back when the call has more pages than a buf can hold.
    pub fn pend(target: &Target<'_>, reply: Reply, unlocked: bool) -> Result<Pending<Self>, Reply> {
        let last_partly_valid = target.last_partly_valid();
        let (unlocked, error) = (AtomicBool::new(unlocked), AtomicI32::new(0));
        let request = Self { last_partly_valid, unlocked, error };
        REQUESTS.pend(target.place.vnode, reply, request)
    }

    /// Whether the request's last page was valid in part before the read.
    pub fn last_partly_valid(&self) -> bool {
        self.last_partly_valid
    }

    /// Whether any of the data was read while the vnode may have been unlocked.
    pub fn was_unlocked(&self) -> bool {
        self.unlocked.load(Ordering::Relaxed)
    }

    /// Records that a part of the data is about to be read while the vnode may
    /// be unlocked.
    pub fn unlocked(&self) {
        self.unlocked.store(true, Ordering::Relaxed);
    }

    /// Records an error. The first one is kept.
    pub fn fail(&self, error: Errno) {
        let kept = Ordering::Relaxed;
        let _ = self.error.compare_exchange(0, error.code(), kept, kept);
    }

    /// The outcome: the first error.
    pub fn outcome(&self) -> Result<(), Errno> {
        Errno::check(self.error.load(Ordering::Relaxed))
    }
}

/// One buf's part of a request. Dropping it fails the request with EIO, since
/// its data have not been read.
pub struct Part(Option<Pending<Request>>);

impl Part {
    /// Adds a part to a request.
    pub fn new(request: &Pending<Request>) -> Self {
        Self(Some(request.clone()))
    }

    /// The request.
    pub fn request(&self) -> Option<&Pending<Request>> {
        self.0.as_ref()
    }

    /// Ends the part with the outcome of its I/O.
    pub fn arrive(mut self, outcome: Result<(), Errno>) {
        if let Some(request) = self.0.take() {
            complete::arrive(request, outcome);
        }
    }
}

impl From<Pending<Request>> for Part {
    /// Turns a reference into a part.
    fn from(request: Pending<Request>) -> Self {
        Self(Some(request))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(request) = self.0.take() {
            complete::arrive(request, Err(Errno::EIO));
        }
    }
}

/// A call of the VOP that the module serves.
pub struct Call<'a> {
    /// The call itself.
    pub vop: Getpages<'a>,
    /// The file and pages of the call.
    pub target: Target<'a>,
}

/// A file, as a request or a read-ahead window sees it.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// The file.
    pub vnode: Vnode<'a>,
    /// Its filesystem.
    pub fs: &'static dyn FileSystem,
    /// Its VM object.
    pub object: Object<'a>,
    /// The device below.
    pub device: Device<'a>,
    /// The file's size.
    pub file: File,
    /// The geometry of the filesystem and the device.
    pub geometry: plan::Device,
}

/// The data that all steps of one request share.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The file.
    pub place: Place<'a>,
    /// The requested pages.
    pub pages: &'a [BusiedPage],
    /// The index of the first page.
    pub first: u64,
    /// Pages to read: all, or all but a last page that is valid in part.
    pub wanted: usize,
}

/// The pages of a cache miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Index of the first requested page.
    pub first: u64,
    /// Requested pages.
    pub count: u32,
    /// Pages that the caller wishes for next (`a_rahead`).
    pub wish: u32,
    /// Pages that the request itself reads ahead.
    pub ahead: u32,
    /// The block map of these pages was not in memory.
    pub unmapped: bool,
}

impl Ask {
    /// The index behind the last requested page.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }

    /// The index behind the last page that the request reads.
    pub fn read_end(&self) -> u64 {
        self.end().saturating_add(u64::from(self.ahead))
    }

    /// The index behind the last page that the caller wishes for.
    pub fn wish_end(&self) -> u64 {
        self.end().saturating_add(u64::from(self.wish))
    }
}

/// A cache miss of an async request: the input of read-ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The file.
    pub identity: Identity,
    /// The device, see [`Device::id`].
    pub device: usize,
    /// The mounting of the filesystem, see [`Vnode::mounting`].
    pub mounting: usize,
    /// The calling thread's real uid.
    pub uid: u32,
    /// Pages of the file.
    pub file: u64,
    /// The missing pages.
    pub ask: Ask,
}

impl Miss {
    /// The miss of a request, before the request reads anything ahead.
    pub fn new(target: &Target<'_>, wish: u32) -> Self {
        let Place { vnode, object, device, file, .. } = target.place;
        Self {
            identity: Identity::new(vnode, object),
            device: device.id(),
            mounting: vnode.mounting(),
            uid: proc::real_uid(),
            file: file.pages,
            ask: Ask {
                first: target.first,
                count: target.pages.len() as u32,
                wish,
                ahead: 0,
                unmapped: false,
            },
        }
    }
}

impl<'a> Place<'a> {
    /// The place of a vnode. The vnode is locked, or its object has busied
    /// pages of a request in flight. `None` for an unknown filesystem. Sleeps:
    /// no.
    pub fn new(vnode: Vnode<'a>, object: Object<'a>, device: Device<'a>) -> Option<Self> {
        let fs = fs::of(vnode)?;
        let geometry = plan::Device {
            block: u64::from(vnode.block_size()),
            sector: u64::from(device.sector()),
            max_pages: buf::max_pages(),
        };
        let file = File { pages: object.size(), bytes: object.vnp_size() };
        Some(Self { vnode, fs, object, device, file, geometry })
    }

    /// The logical block that holds a page's first byte.
    pub fn lbn(&self, pindex: u64) -> u64 {
        pindex.saturating_mul(PAGE) / self.geometry.block.max(1)
    }

    /// Looks up a block and its neighbours in the block map. Locks: vnode.
    /// Sleeps: to read an indirect block. Errors: those of VOP_BMAP(9).
    pub fn extent(&self, lbn: u64) -> Result<Extent, Errno> {
        self.vnode.bmap(lbn)
    }

    /// The step for the bytes from `position` on, up to `end`, without extra
    /// pages. Locks: vnode. Sleeps: to read an indirect block. Errors: those of
    /// VOP_BMAP(9).
    pub fn step(&self, position: u64, end: u64) -> Result<Step, Errno> {
        let extent = self.extent(position / self.geometry.block.max(1))?;
        let none = Wishes::default();
        Ok(plan::step(self.file, self.geometry, position, end, extent, false, none))
    }

    /// Whether the data path can serve this block and sector size.
    pub fn is_served(&self) -> bool {
        let geometry = &self.geometry;
        geometry.block.is_power_of_two()
            && geometry.block >= plan::DEV_BSIZE
            && geometry.sector.is_power_of_two()
            && geometry.sector <= PAGE
    }
}

impl<'a> Target<'a> {
    /// The target of a pending request. `device`: the file's device.
    pub fn of_pending(request: &'a Pending<Request>, device: Device<'a>) -> Option<Self> {
        let vnode = request.vnode();
        let place = Place::new(vnode, vnode.object()?, device)?;
        let pages = request.pages();
        let partly = request.value().last_partly_valid();
        let wanted = pages.len().saturating_sub(usize::from(partly));
        Some(Self { place, pages, first: pages.first()?.pindex(), wanted })
    }

    /// Whether the last page is valid in part and must not be read.
    pub fn last_partly_valid(&self) -> bool {
        self.wanted < self.pages.len()
    }
}

/// Checks whether the module can serve the call; otherwise returns the answer,
/// or hands the call to another VOP. Locks: vnode; object not. Sleeps: no.
pub fn prepare(vop: Getpages<'_>) -> Result<Call<'_>, Answer<'_>> {
    // A reclaimed vnode has neither mount nor device, so that not even the
    // original VOP may handle it.
    let Some(object) = (!vop.vnode.is_doomed()).then(|| vop.vnode.object()).flatten() else {
        return Err(failed(vop, PagerError::Bad, Errno::EIO));
    };
    let device = match vop.vnode.device() {
        Ok(device) => device,
        Err(Errno::EOPNOTSUPP) => return Err(Answer::Emulate(vop)),
        Err(error) => return Err(failed(vop, PagerError::Error, error)),
    };
    let Some(place) = Place::new(vop.vnode, object, device) else {
        return Err(Answer::Original(vop));
    };
    let (Some(first), Some(last)) = (vop.pages.first(), vop.pages.last()) else {
        return Err(failed(vop, PagerError::Fail, Errno::EINVAL));
    };
    if vop.pages.len() > place.geometry.max_pages as usize || first.is_bogus() || last.is_bogus() {
        // Such a call is invalid, and the original would overrun its buf.
        return Err(failed(vop, PagerError::Fail, Errno::EINVAL));
    }
    if !place.is_served() {
        return Err(Answer::Original(vop));
    }
    // A last page that is valid in part ends the file. Its valid part may be
    // newer than the disk, so it is not read. With small blocks each block is
    // checked by itself.
    let partly = !place.geometry.small_blocks() && !last.none_valid();
    let target = Target {
        place,
        pages: vop.pages,
        first: first.pindex(),
        wanted: vop.pages.len() - usize::from(partly),
    };
    Ok(Call { vop, target })
}

/// Fails a call before any I/O. The pages stay busied and untouched.
pub fn failed(mut vop: Getpages<'_>, answer: PagerError, error: Errno) -> Answer<'_> {
    stats::FAILED.add(1);
    vop.behind.report(0);
    vop.ahead.report(0);
    vop.reply.send(Err(error));
    Answer::Done(Err(answer))
}

// The plan's constants are the kernel's.
static_assertions::const_assert_eq!(PAGE, sys::PAGE_SIZE as u64);
static_assertions::const_assert_eq!(plan::DEV_BSIZE, sys::DEV_BSIZE as u64);
