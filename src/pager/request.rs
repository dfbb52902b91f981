// SPDX-License-Identifier: BSD-2-Clause
//! A call of the VOP: what it asks for, and whether it is ours to serve.

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

/// Where requests are while their I/O is under way.
pub static REQUESTS: PendingZone<Request> = PendingZone::new();

/// An asynchronous request, from its first buf to its reply.
///
/// 1. The thread in the VOP [pends](Request::pend) it: the request has the reply
///    and its pages.
/// 2. Each buf that reads for it has a [`Part`]; the thread, or the read of the
///    block map that goes on for it, has one as well until all bufs are sent.
/// 3. Each part arrives once, with its outcome; the first error is kept.
/// 4. The last one to arrive answers the request (`complete`).
pub struct Request {
    last_partly_valid: bool,
    /// Whether any of its data is read while the vnode may be unlocked.
    unlocked: AtomicBool,
    /// The first error; 0 for none.
    error: AtomicI32,
}

impl Request {
    /// Pend the request that a call is; `unlocked` says that its block map is yet
    /// to be read. The reply comes back when the call has too many pages.
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

    /// Whether any of its data was read while the vnode may have been unlocked.
    pub fn was_unlocked(&self) -> bool {
        self.unlocked.load(Ordering::Relaxed)
    }

    /// A part of its data is about to be read while the vnode may be unlocked.
    pub fn unlocked(&self) {
        self.unlocked.store(true, Ordering::Relaxed);
    }

    /// Keep an error, if it is the first one.
    pub fn fail(&self, error: Errno) {
        let kept = Ordering::Relaxed;
        let _ = self.error.compare_exchange(0, error.code(), kept, kept);
    }

    /// The first error.
    pub fn outcome(&self) -> Result<(), Errno> {
        Errno::check(self.error.load(Ordering::Relaxed))
    }
}

/// One buf's share of a request. A part that is dropped fails the request: what
/// it was to read is not there.
pub struct Part(Option<Pending<Request>>);

impl Part {
    /// One more part of a request.
    pub fn new(request: &Pending<Request>) -> Self {
        Self(Some(request.clone()))
    }

    /// The request.
    pub fn request(&self) -> Option<&Pending<Request>> {
        self.0.as_ref()
    }

    /// The part's I/O is over, with this outcome.
    pub fn arrive(mut self, outcome: Result<(), Errno>) {
        if let Some(request) = self.0.take() {
            complete::arrive(request, outcome);
        }
    }
}

impl From<Pending<Request>> for Part {
    /// Make a share of a request a part of it.
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

/// A call of the VOP that is ours to serve.
pub struct Call<'a> {
    /// The call itself.
    pub vop: Getpages<'a>,
    /// What it is about.
    pub target: Target<'a>,
}

/// A file, as the steps of a request or of a window of read-ahead see it.
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
    /// The filesystem's numbers.
    pub geometry: plan::Device,
}

/// What all steps of one request share.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// The file.
    pub place: Place<'a>,
    /// The pages asked for.
    pub pages: &'a [BusiedPage],
    /// The first one's index.
    pub first: u64,
    /// Pages to read: all, or all but a last one that is valid in part.
    pub wanted: usize,
}

/// Pages that an async request lacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Index of the first page asked for.
    pub first: u64,
    /// Pages asked for.
    pub count: u32,
    /// Pages that the caller said it will want next.
    pub wish: u32,
    /// Pages that are read ahead with the request.
    pub ahead: u32,
    /// The block map of these pages was not in memory.
    pub unmapped: bool,
}

impl Ask {
    /// Behind the last page asked for.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }

    /// Behind the last page that is read with the request.
    pub fn read_end(&self) -> u64 {
        self.end().saturating_add(u64::from(self.ahead))
    }

    /// Behind the last page that the caller said it will want.
    pub fn wish_end(&self) -> u64 {
        self.end().saturating_add(u64::from(self.wish))
    }
}

/// What an async request lacked, and of which file: what read-ahead learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The file.
    pub identity: Identity,
    /// The device below, see [`Device::id`].
    pub device: usize,
    /// The filesystem's, see [`Vnode::mounting`].
    pub mounting: usize,
    /// The calling thread's real uid.
    pub uid: u32,
    /// Pages of the file.
    pub file: u64,
    /// The pages.
    pub ask: Ask,
}

impl Miss {
    /// The miss that a request is; nothing is read ahead yet.
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
    /// The place of a vnode that is locked, or whose object has pages of a
    /// request in flight. `None` for one of an unknown filesystem. Does not sleep.
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

    /// Where a block and its neighbours are. May read an indirect block.
    pub fn extent(&self, lbn: u64) -> Result<Extent, Errno> {
        self.vnode.bmap(lbn)
    }

    /// What the block map says to do for the bytes from `position` on, up to
    /// `end`, and nothing around them. May read an indirect block.
    pub fn step(&self, position: u64, end: u64) -> Result<Step, Errno> {
        let extent = self.extent(position / self.geometry.block.max(1))?;
        let none = Wishes::default();
        Ok(plan::step(self.file, self.geometry, position, end, extent, false, none))
    }

    /// Whether the data path can serve such a filesystem and device.
    pub fn is_served(&self) -> bool {
        let geometry = &self.geometry;
        geometry.block.is_power_of_two()
            && geometry.block >= plan::DEV_BSIZE
            && geometry.sector.is_power_of_two()
            && geometry.sector <= PAGE
    }
}

impl<'a> Target<'a> {
    /// The target of a pending request, whose file is on `device`.
    pub fn of_pending(request: &'a Pending<Request>, device: Device<'a>) -> Option<Self> {
        let vnode = request.vnode();
        let place = Place::new(vnode, vnode.object()?, device)?;
        let pages = request.pages();
        let partly = request.value().last_partly_valid();
        let wanted = pages.len().saturating_sub(usize::from(partly));
        Some(Self { place, pages, first: pages.first()?.pindex(), wanted })
    }

    /// Whether the last page is valid in part and not to be read.
    pub fn last_partly_valid(&self) -> bool {
        self.wanted < self.pages.len()
    }
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
    let Some(place) = Place::new(vop.vnode, object, device) else {
        return Err(Answer::Original(vop));
    };
    let (Some(first), Some(last)) = (vop.pages.first(), vop.pages.last()) else {
        return Err(failed(vop, PagerError::Fail, Errno::EINVAL));
    };
    if vop.pages.len() > place.geometry.max_pages as usize || first.is_bogus() || last.is_bogus() {
        // No caller may ask so, and the original would overrun its buf.
        return Err(failed(vop, PagerError::Fail, Errno::EINVAL));
    }
    if !place.is_served() {
        return Err(Answer::Original(vop));
    }
    // A last page that is valid in part ends the file: its valid part may be
    // newer than the disk, so it is not read. With small blocks each block
    // is looked at on its own.
    let partly = !place.geometry.small_blocks() && !last.none_valid();
    let target = Target {
        place,
        pages: vop.pages,
        first: first.pindex(),
        wanted: vop.pages.len() - usize::from(partly),
    };
    Ok(Call { vop, target })
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
