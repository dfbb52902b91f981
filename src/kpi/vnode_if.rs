// SPDX-License-Identifier: BSD-2-Clause
//! The VOPs that the module implements: their arguments, their replies and
//! their slots in a vop_vector (kern/vnode_if.src, VOP_GETPAGES(9)).

use core::{
    ffi::{c_int, c_void},
    mem,
    ptr::NonNull,
    slice,
    sync::atomic::{AtomicPtr, Ordering},
};

use super::{errno::Errno, sys, vm_page::BusiedPage, vnode::Vnode};

/// C's type of a getpages completion callback.
pub type IodoneFn = unsafe extern "C" fn(*mut c_void, *mut sys::vm_page_t, c_int, c_int);
/// C's type of an implementation of VOP_GETPAGES_ASYNC.
pub type GetpagesAsyncFn = unsafe extern "C" fn(*mut sys::vop_getpages_async_args) -> c_int;
/// C's type of an implementation of VOP_GETPAGES.
pub type GetpagesFn = unsafe extern "C" fn(*mut sys::vop_getpages_args) -> c_int;
/// C's type of an implementation of VOP_BMAP.
pub type BmapFn = unsafe extern "C" fn(*mut sys::vop_bmap_args) -> c_int;

/// The caller's right to hear of its request's end, exactly once.
///
/// Sending it consumes it. One that is dropped unsent tells EIO: no path can
/// forget its caller.
///
/// # Invariants
///
/// `pages` and `count` are the request's, and `iodone` has not been called
/// for it yet.
pub struct Reply {
    iodone: Option<IodoneFn>,
    arg: *mut c_void,
    pages: *mut sys::vm_page_t,
    count: c_int,
}

impl Reply {
    /// # Safety
    ///
    /// `pages[..count]` are the pages of a request that waits for `iodone`,
    /// and stay readable and writable until the reply is sent.
    pub(super) unsafe fn new(
        iodone: Option<IodoneFn>,
        arg: *mut c_void,
        pages: *mut sys::vm_page_t,
        count: c_int,
    ) -> Self {
        Self { iodone, arg, pages, count }
    }

    /// Whether somebody is to be called back.
    pub fn is_async(&self) -> bool {
        self.iodone.is_some()
    }

    pub(super) fn parts(&self) -> (Option<IodoneFn>, *mut c_void) {
        (self.iodone, self.arg)
    }

    /// Tell the caller. Its pages are its own from here on.
    pub fn send(self, outcome: Result<(), Errno>) {
        self.call(outcome);
        mem::forget(self);
    }

    /// Give the duty to call back to somebody else: the original VOP, or a
    /// lead buf that has noted all of it.
    pub fn pass_on(self) {
        mem::forget(self);
    }

    fn call(&self, outcome: Result<(), Errno>) {
        if let Some(iodone) = self.iodone {
            let error = outcome.map_or_else(Errno::code, |()| 0);
            // SAFETY: by the invariant this is the one call that the
            // request's owner waits for, with its own pages.
            unsafe { iodone(self.arg, self.pages, self.count, error) };
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.call(Err(Errno::EIO));
    }
}

/// A caller's `rbehind` or `rahead`: a wish that becomes a report. May be absent.
pub struct Extra<'a>(Option<&'a mut c_int>);

impl Extra<'_> {
    /// Pages wished for.
    pub fn wish(&self) -> u32 {
        self.0.as_ref().map_or(0, |n| (**n).max(0) as u32)
    }

    /// Report the pages really read.
    pub fn report(&mut self, pages: u32) {
        if let Some(n) = &mut self.0 {
            **n = c_int::try_from(pages).unwrap_or(c_int::MAX);
        }
    }
}

/// One call of VOP_GETPAGES or VOP_GETPAGES_ASYNC.
pub struct Getpages<'a> {
    /// The file; locked by the caller.
    pub vnode: Vnode<'a>,
    /// The pages asked for; at least one.
    pub pages: &'a [BusiedPage],
    /// Read-behind, wished and reported.
    pub behind: Extra<'a>,
    /// Read-ahead, wished and reported.
    pub ahead: Extra<'a>,
    /// The caller's callback; without one in the sync form.
    pub reply: Reply,
}

impl<'a> Getpages<'a> {
    /// # Safety
    ///
    /// `ap` is the argument of a VOP_GETPAGES_ASYNC in progress. The reply of
    /// what this returns must be the only one to call `a_iodone`.
    pub unsafe fn from_async(ap: &'a mut sys::vop_getpages_async_args) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe {
            Self::new(ap.a_vp, ap.a_m, ap.a_count, ap.a_rbehind, ap.a_rahead, ap.a_iodone, ap.a_arg)
        }
    }

    /// # Safety
    ///
    /// `ap` is the argument of a VOP_GETPAGES in progress.
    pub unsafe fn from_sync(ap: &'a mut sys::vop_getpages_args) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe {
            Self::new(
                ap.a_vp,
                ap.a_m,
                ap.a_count,
                ap.a_rbehind,
                ap.a_rahead,
                None,
                core::ptr::null_mut(),
            )
        }
    }

    unsafe fn new(
        vp: *mut sys::vnode,
        m: *mut sys::vm_page_t,
        count: c_int,
        behind: *mut c_int,
        ahead: *mut c_int,
        iodone: sys::vop_getpages_iodone_t,
        arg: *mut c_void,
    ) -> Option<Self> {
        let pages = NonNull::new(m)?;
        let length = usize::try_from(count).ok().filter(|n| *n > 0)?;
        // SAFETY: by the VOP's contract the vnode is locked, m[..count] are
        // busied pages (bogus_page among them), and the two ints are the
        // caller's or NULL, all for as long as the call lasts.
        unsafe {
            Some(Self {
                vnode: Vnode::new(NonNull::new(vp)?),
                pages: slice::from_raw_parts(pages.as_ptr().cast(), length),
                behind: Extra(behind.as_mut()),
                ahead: Extra(ahead.as_mut()),
                reply: Reply::new(iodone, arg, m, count),
            })
        }
    }
}

/// A vop_vector some of whose slots the module takes over.
///
/// Vectors are flat once registered, so that replacing the slot's pointer is
/// all. `originals`, in the order of [`Slot`], are null until a slot is taken.
pub struct Vector {
    which: Which,
    originals: [AtomicPtr<c_void>; 3],
}

/// The vectors that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// `ffs_vnodeops1`: UFS1.
    Ffs1,
    /// `ffs_vnodeops2`: UFS2.
    Ffs2,
}

/// The slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// `vop_getpages_async`.
    Async,
    /// `vop_getpages`.
    Sync,
    /// `vop_bmap`.
    Bmap,
}

impl Vector {
    /// A vector that is not taken over yet.
    pub const fn new(which: Which) -> Self {
        Self { which, originals: [const { AtomicPtr::new(core::ptr::null_mut()) }; 3] }
    }

    fn raw(&self) -> *mut sys::vop_vector {
        match self.which {
            Which::Ffs1 => &raw mut sys::ffs_vnodeops1,
            Which::Ffs2 => &raw mut sys::ffs_vnodeops2,
        }
    }

    /// Whether the vnode's operations are this vector's.
    pub fn is_of(&self, vnode: Vnode<'_>) -> bool {
        core::ptr::eq(vnode.v_op(), self.raw())
    }

    fn slot(&self, slot: Slot) -> (&'static AtomicPtr<c_void>, &AtomicPtr<c_void>) {
        let vector = self.raw();
        let [of_async, of_sync, of_bmap] = &self.originals;
        // SAFETY: a vop_vector lives as long as its filesystem, which this
        // module depends on; a slot is an aligned function pointer, and other
        // CPUs only load it.
        unsafe {
            let (place, original): (*mut c_void, _) = match slot {
                Slot::Async => ((&raw mut (*vector).vop_getpages_async).cast(), of_async),
                Slot::Sync => ((&raw mut (*vector).vop_getpages).cast(), of_sync),
                Slot::Bmap => ((&raw mut (*vector).vop_bmap).cast(), of_bmap),
            };
            (AtomicPtr::from_ptr(place.cast()), original)
        }
    }

    /// Put `ours` into the slot; what was there is the original from now on.
    /// Does nothing when the slot is ours already.
    pub fn take(&self, slot: Slot, ours: *mut c_void) {
        let (place, original) = self.slot(slot);
        let before = place.load(Ordering::Acquire);
        if before != ours {
            // The original must be there before the first call comes in.
            original.store(before, Ordering::Release);
            place.store(ours, Ordering::Release);
        }
    }

    /// Put `ours` into the slot if the known original is there.
    pub fn take_if_original(&self, slot: Slot, ours: *mut c_void) {
        let (place, original) = self.slot(slot);
        let original = original.load(Ordering::Acquire);
        if !original.is_null() {
            // Failure means that it is somebody else's, and stays so.
            let _ = place.compare_exchange(original, ours, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Put the original back. False when the slot is not ours: somebody else
    /// has replaced it since.
    ///
    /// The original stays known: calls may still be inside.
    pub fn restore(&self, slot: Slot, ours: *mut c_void) -> bool {
        let (place, original) = self.slot(slot);
        let original = original.load(Ordering::Acquire);
        original.is_null()
            || place.load(Ordering::Acquire) == original
            || place.compare_exchange(ours, original, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Call the original VOP_GETPAGES_ASYNC, with the duty to call iodone.
    ///
    /// # Safety
    ///
    /// `ap` is the argument of a VOP_GETPAGES_ASYNC in progress that this
    /// module has not answered.
    pub unsafe fn original_async(&self, ap: *mut sys::vop_getpages_async_args) -> Option<c_int> {
        let (_, original) = self.slot(Slot::Async);
        let original = original.load(Ordering::Acquire);
        // SAFETY: `take` found a GetpagesAsyncFn in this slot, or null; `ap`
        // by the caller's promise.
        unsafe {
            mem::transmute::<*mut c_void, Option<GetpagesAsyncFn>>(original).map(|vop| vop(ap))
        }
    }

    /// Call the original VOP_BMAP.
    ///
    /// # Safety
    ///
    /// `ap` is the argument of a VOP_BMAP in progress.
    pub unsafe fn original_bmap(&self, ap: *mut sys::vop_bmap_args) -> Option<c_int> {
        let (_, original) = self.slot(Slot::Bmap);
        let original = original.load(Ordering::Acquire);
        // SAFETY: `take` found a BmapFn in this slot, or null; `ap` by the
        // caller's promise.
        unsafe { mem::transmute::<*mut c_void, Option<BmapFn>>(original).map(|vop| vop(ap)) }
    }

    /// Call the original VOP_GETPAGES.
    ///
    /// # Safety
    ///
    /// `ap` is a VOP_GETPAGES's argument, and its pages are untouched.
    pub unsafe fn original_sync(&self, ap: *mut sys::vop_getpages_args) -> Option<c_int> {
        let (place, original) = self.slot(Slot::Sync);
        let taken = original.load(Ordering::Acquire);
        let vop = if taken.is_null() { place.load(Ordering::Acquire) } else { taken };
        // SAFETY: either what `take` found in this slot or what is there:
        // a GetpagesFn, or null; `ap` by the caller's promise.
        unsafe { mem::transmute::<*mut c_void, Option<GetpagesFn>>(vop).map(|vop| vop(ap)) }
    }
}

/// One call of VOP_BMAP that asks where a block is and how many follow it,
/// as vnode_pager_haspage() does for sendfile(2).
pub struct Bmap<'a> {
    /// The file; locked by the caller.
    pub vnode: Vnode<'a>,
    /// The logical block.
    pub lbn: u64,
    run: &'a mut c_int,
}

impl<'a> Bmap<'a> {
    /// `None` for a call that asks for anything else.
    ///
    /// # Safety
    ///
    /// `ap` is the argument of a VOP_BMAP in progress.
    pub unsafe fn from_args(ap: &'a mut sys::vop_bmap_args) -> Option<Self> {
        if !ap.a_bop.is_null() || ap.a_bnp.is_null() || !ap.a_runb.is_null() {
            return None;
        }
        let lbn = u64::try_from(ap.a_bn).ok()?;
        // SAFETY: by the VOP's contract the vnode is locked, and the int is
        // the caller's or NULL.
        unsafe {
            let vnode = Vnode::new(NonNull::new(ap.a_vp)?);
            Some(Self { vnode, lbn, run: ap.a_runp.as_mut()? })
        }
    }

    /// Answer that it cannot be told, which haspage takes for "yes, and so
    /// many pages follow"; any other caller takes it for an error.
    pub fn promise(self, pages: u32) -> Errno {
        *self.run = c_int::try_from(pages).unwrap_or(c_int::MAX);
        Errno::EAGAIN
    }
}

/// Whether a vnode's operations are FFS's.
pub fn is_ffs(vnode: Vnode<'_>) -> bool {
    [Which::Ffs1, Which::Ffs2].iter().any(|which| Vector::new(*which).is_of(vnode))
}

/// The vnode of a VOP_BMAP.
///
/// # Safety
///
/// `ap` is the argument of a VOP_BMAP in progress.
pub unsafe fn vnode_of(ap: &sys::vop_bmap_args) -> Option<Vnode<'_>> {
    // SAFETY: locked by the VOP's caller for as long as the call lasts.
    NonNull::new(ap.a_vp).map(|vp| unsafe { Vnode::new(vp) })
}

/// The argument of the VOP_GETPAGES that stands for an async call.
pub fn sync_args(ap: &sys::vop_getpages_async_args) -> sys::vop_getpages_args {
    sys::vop_getpages_args {
        a_gen: sys::vop_generic_args { a_desc: &raw mut sys::vop_getpages_desc },
        a_vp: ap.a_vp,
        a_m: ap.a_m,
        a_count: ap.a_count,
        a_rbehind: ap.a_rbehind,
        a_rahead: ap.a_rahead,
    }
}

/// Whether the slots are where the headers say, as the kernel's own
/// vnodeop_desc have it.
pub(super) fn layout_is_known() -> bool {
    // SAFETY: plain ints of the kernel, set at build time.
    unsafe {
        let offset = |desc: *const sys::vnodeop_desc| (*desc).vdesc_vop_offset as usize;
        offset(&raw const sys::vop_getpages_desc) == mem::offset_of!(sys::vop_vector, vop_getpages)
            && offset(&raw const sys::vop_getpages_async_desc)
                == mem::offset_of!(sys::vop_vector, vop_getpages_async)
            && offset(&raw const sys::vop_bmap_desc) == mem::offset_of!(sys::vop_vector, vop_bmap)
    }
}
