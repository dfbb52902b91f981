// SPDX-License-Identifier: BSD-2-Clause
//! Slots of a vop_vector, and VOP_BMAP(9) (kern/vnode_if.src).

use core::{
    ffi::{c_int, c_void},
    mem,
    ptr::NonNull,
    sync::atomic::{AtomicPtr, Ordering},
};

use super::{
    errno::Errno,
    getpages::{self, Answer, Getpages},
    sys,
    vm_pager::PagerError,
    vnode::Vnode,
};

/// C's type of an implementation of VOP_GETPAGES_ASYNC.
pub type GetpagesAsyncFn = unsafe extern "C" fn(*mut sys::vop_getpages_async_args) -> c_int;
/// C's type of an implementation of VOP_GETPAGES.
pub type GetpagesFn = unsafe extern "C" fn(*mut sys::vop_getpages_args) -> c_int;
/// C's type of an implementation of VOP_BMAP.
pub type BmapFn = unsafe extern "C" fn(*mut sys::vop_bmap_args) -> c_int;

/// A vop_vector some of whose slots the module takes over.
///
/// Vectors are flat once registered, so that replacing the slot's pointer is
/// all. `originals`, in the order of [`Slot`], are null until a slot is taken.
pub struct Vector {
    vector: fn() -> *mut sys::vop_vector,
    originals: [AtomicPtr<c_void>; 3],
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
    /// A vector that is not taken over yet. It lives as long as its filesystem,
    /// which the module depends on.
    pub(super) const fn new(vector: fn() -> *mut sys::vop_vector) -> Self {
        Self { vector, originals: [const { AtomicPtr::new(core::ptr::null_mut()) }; 3] }
    }

    fn raw(&self) -> *mut sys::vop_vector {
        (self.vector)()
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
    pub fn take(&self, slot: Slot, Entry(ours): Entry) {
        let (place, original) = self.slot(slot);
        let before = place.load(Ordering::Acquire);
        if before != ours {
            // The original must be there before the first call comes in.
            original.store(before, Ordering::Release);
            place.store(ours, Ordering::Release);
        }
    }

    /// Put `ours` into the slot if the known original is there.
    pub fn take_if_original(&self, slot: Slot, Entry(ours): Entry) {
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
    pub fn restore(&self, slot: Slot, Entry(ours): Entry) -> bool {
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
    unsafe fn original_async(&self, ap: *mut sys::vop_getpages_async_args) -> c_int {
        let (_, original) = self.slot(Slot::Async);
        let original = original.load(Ordering::Acquire);
        // SAFETY: `take` found a GetpagesAsyncFn in this slot, or null; `ap`
        // by the caller's promise.
        let vop = unsafe { mem::transmute::<*mut c_void, Option<GetpagesAsyncFn>>(original) };
        // SAFETY: as above.
        vop.map_or(sys::VM_PAGER_ERROR, |vop| unsafe { vop(ap) })
    }

    /// Call the original VOP_BMAP.
    ///
    /// # Safety
    ///
    /// `ap` is the argument of a VOP_BMAP in progress.
    unsafe fn original_bmap(&self, ap: *mut sys::vop_bmap_args) -> c_int {
        let (_, original) = self.slot(Slot::Bmap);
        let original = original.load(Ordering::Acquire);
        // SAFETY: `take` found a BmapFn in this slot, or null; `ap` by the
        // caller's promise.
        let vop = unsafe { mem::transmute::<*mut c_void, Option<BmapFn>>(original) };
        // SAFETY: as above.
        vop.map_or(sys::EOPNOTSUPP, |vop| unsafe { vop(ap) })
    }

    /// Call the original VOP_GETPAGES.
    ///
    /// # Safety
    ///
    /// `ap` is a VOP_GETPAGES's argument, and its pages are untouched.
    unsafe fn original_sync(&self, ap: *mut sys::vop_getpages_args) -> c_int {
        let (place, original) = self.slot(Slot::Sync);
        let taken = original.load(Ordering::Acquire);
        let vop = if taken.is_null() { place.load(Ordering::Acquire) } else { taken };
        // SAFETY: either what `take` found in this slot or what is there:
        // a GetpagesFn, or null; `ap` by the caller's promise.
        let vop = unsafe { mem::transmute::<*mut c_void, Option<GetpagesFn>>(vop) };
        // SAFETY: as above.
        vop.map_or(sys::VM_PAGER_ERROR, |vop| unsafe { vop(ap) })
    }
}

/// VOPs that a module implements, for the vectors whose slots it takes.
pub trait Operations: 'static {
    /// Held while a thread is in one of the module's VOPs, the original's code
    /// included when that is called.
    type Inside;

    /// A thread enters one of the module's VOPs.
    fn enter() -> Self::Inside;

    /// The vectors whose slots may be taken; at least one.
    fn vectors() -> &'static [&'static Vector];

    /// VOP_GETPAGES_ASYNC(9). Locks: vnode shared or exclusive, object not.
    fn getpages_async(call: Getpages<'_>) -> Answer<'_>;

    /// VOP_GETPAGES(9). Locks: vnode shared or exclusive, object not.
    fn getpages(call: Getpages<'_>) -> Answer<'_>;

    /// VOP_BMAP(9), for a call that asks where a block is and how many follow:
    /// the answer, or `None` for the original to give. Locks: vnode.
    fn bmap(call: Bmap<'_>) -> Option<Errno>;

    /// The vnode of a call is of none of the vectors. Another vector, whose
    /// default these are, may lead here.
    fn vector_of(vnode: Vnode<'_>) -> Option<&'static Vector> {
        Self::vectors().iter().find(|vector| vector.is_of(vnode)).copied()
    }
}

/// A function as a slot has it.
#[derive(Clone, Copy)]
pub struct Entry(*mut c_void);

/// What to put into a slot so that `O` is called.
pub fn entry<O: Operations>(slot: Slot) -> Entry {
    Entry(match slot {
        Slot::Async => getpages_async::<O> as GetpagesAsyncFn as *mut c_void,
        Slot::Sync => getpages::<O> as GetpagesFn as *mut c_void,
        Slot::Bmap => bmap::<O> as BmapFn as *mut c_void,
    })
}

/// The vector whose originals serve a vnode: its own, or, when the call came
/// through one that inherits from another, the last one.
fn original_of<O: Operations>(vp: *mut sys::vnode) -> Option<&'static Vector> {
    // SAFETY: locked by the VOP's caller for as long as the call lasts.
    let vnode = NonNull::new(vp).map(|vp| unsafe { Vnode::new(vp) });
    vnode.and_then(O::vector_of).or_else(|| O::vectors().last().copied())
}

fn code(result: Result<(), PagerError>) -> c_int {
    result.map_or_else(PagerError::code, |()| sys::VM_PAGER_OK)
}

/// VOP_GETPAGES_ASYNC(9), through a vop_vector.
unsafe extern "C" fn getpages_async<O: Operations>(ap: *mut sys::vop_getpages_async_args) -> c_int {
    let _inside = O::enter();
    if ap.is_null() {
        return sys::VM_PAGER_ERROR;
    }
    // SAFETY: the kernel's argument block, ours for the call. Nobody else has
    // the duty to call a_iodone until it is passed on below.
    let (call, original) =
        unsafe { (Getpages::from_async(&mut *ap), original_of::<O>((*ap).a_vp)) };
    let (Some(call), Some(original)) = (call, original) else { return sys::VM_PAGER_ERROR };
    match O::getpages_async(call) {
        Answer::Done(result) => code(result),
        Answer::Original(call) => {
            call.reply.pass_on();
            // SAFETY: unanswered; the reply's duty has just been passed on.
            unsafe { original.original_async(ap) }
        }
        Answer::Emulate(call) => {
            // SAFETY: unanswered; the sync VOP does not know of iodone.
            let answer = unsafe { original.original_sync(&mut getpages::sync_args(&*ap)) };
            let result = PagerError::check(answer);
            call.reply.send(result.map_err(PagerError::errno));
            code(result)
        }
    }
}

/// VOP_GETPAGES(9), through a vop_vector.
unsafe extern "C" fn getpages<O: Operations>(ap: *mut sys::vop_getpages_args) -> c_int {
    let _inside = O::enter();
    if ap.is_null() {
        return sys::VM_PAGER_ERROR;
    }
    // SAFETY: the kernel's argument block, ours for the call.
    let (call, original) = unsafe { (Getpages::from_sync(&mut *ap), original_of::<O>((*ap).a_vp)) };
    let (Some(call), Some(original)) = (call, original) else { return sys::VM_PAGER_ERROR };
    match O::getpages(call) {
        Answer::Done(result) => code(result),
        // SAFETY: unanswered.
        Answer::Original(_) | Answer::Emulate(_) => unsafe { original.original_sync(ap) },
    }
}

/// VOP_BMAP(9), through a vop_vector.
unsafe extern "C" fn bmap<O: Operations>(ap: *mut sys::vop_bmap_args) -> c_int {
    let _inside = O::enter();
    if ap.is_null() {
        return sys::EINVAL;
    }
    // SAFETY: the kernel's argument block, ours for the call.
    if let Some(call) = unsafe { Bmap::from_args(&mut *ap) }
        && let Some(answer) = O::bmap(call)
    {
        return answer.code();
    }
    // SAFETY: unanswered.
    unsafe { original_of::<O>((*ap).a_vp).map_or(sys::EOPNOTSUPP, |v| v.original_bmap(ap)) }
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
    unsafe fn from_args(ap: &'a mut sys::vop_bmap_args) -> Option<Self> {
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
