// SPDX-License-Identifier: BSD-2-Clause
//! The slots of a vop_vector, and VOP_BMAP(9) (kern/vnode_if.src).

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

/// The C type of an implementation of VOP_GETPAGES_ASYNC.
pub type GetpagesAsyncFn = unsafe extern "C" fn(*mut sys::vop_getpages_async_args) -> c_int;
/// The C type of an implementation of VOP_GETPAGES.
pub type GetpagesFn = unsafe extern "C" fn(*mut sys::vop_getpages_args) -> c_int;
/// The C type of an implementation of VOP_BMAP.
pub type BmapFn = unsafe extern "C" fn(*mut sys::vop_bmap_args) -> c_int;

/// A vop_vector; the module replaces some of its slots.
///
/// The kernel flattens a vector when it registers it, so replacing the pointer
/// in the slot suffices. `originals` has the order of [`Slot`]; each entry is
/// null until its slot is taken.
pub struct Vector {
    vector: fn() -> *mut sys::vop_vector,
    originals: [AtomicPtr<c_void>; 3],
}

/// The slots that the module can replace.
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
    /// A vector without replaced slots. It lives as long as its filesystem,
    /// which the module depends on.
    pub(super) const fn new(vector: fn() -> *mut sys::vop_vector) -> Self {
        Self { vector, originals: [const { AtomicPtr::new(core::ptr::null_mut()) }; 3] }
    }

    fn raw(&self) -> *mut sys::vop_vector {
        (self.vector)()
    }

    /// Whether this is the vnode's vector of operations.
    pub fn is_of(&self, vnode: Vnode<'_>) -> bool {
        core::ptr::eq(vnode.v_op(), self.raw())
    }

    fn slot(&self, slot: Slot) -> (&'static AtomicPtr<c_void>, &AtomicPtr<c_void>) {
        let vector = self.raw();
        let [of_async, of_sync, of_bmap] = &self.originals;
        // SAFETY: a vop_vector lives as long as its filesystem, which this
        // module depends on. A slot is an aligned function pointer, which other
        // CPUs only load.
        unsafe {
            let (place, original): (*mut c_void, _) = match slot {
                Slot::Async => ((&raw mut (*vector).vop_getpages_async).cast(), of_async),
                Slot::Sync => ((&raw mut (*vector).vop_getpages).cast(), of_sync),
                Slot::Bmap => ((&raw mut (*vector).vop_bmap).cast(), of_bmap),
            };
            (AtomicPtr::from_ptr(place.cast()), original)
        }
    }

    /// Stores `ours` in the slot, and keeps the previous pointer as the
    /// original. No effect when the slot has `ours` already.
    pub fn take(&self, slot: Slot, Entry(ours): Entry) {
        let (place, original) = self.slot(slot);
        let before = place.load(Ordering::Acquire);
        if before != ours {
            // Store the original before the first call can come in.
            original.store(before, Ordering::Release);
            place.store(ours, Ordering::Release);
        }
    }

    /// Stores `ours` in the slot, if the slot has the known original.
    pub fn take_if_original(&self, slot: Slot, Entry(ours): Entry) {
        let (place, original) = self.slot(slot);
        let original = original.load(Ordering::Acquire);
        if !original.is_null() {
            // On failure another module has the slot, and keeps it.
            let _ = place.compare_exchange(original, ours, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Stores the original in the slot. False when another module has replaced
    /// `ours` since.
    ///
    /// The original stays known, since calls may still be inside.
    pub fn restore(&self, slot: Slot, Entry(ours): Entry) -> bool {
        let (place, original) = self.slot(slot);
        let original = original.load(Ordering::Acquire);
        original.is_null()
            || place.load(Ordering::Acquire) == original
            || place.compare_exchange(ours, original, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Calls the original VOP_GETPAGES_ASYNC, which takes over the duty to call
    /// iodone.
    ///
    /// # Safety
    ///
    /// `ap` is the argument of a VOP_GETPAGES_ASYNC in progress that this
    /// module has not answered.
    unsafe fn original_async(&self, ap: *mut sys::vop_getpages_async_args) -> c_int {
        let (_, original) = self.slot(Slot::Async);
        let original = original.load(Ordering::Acquire);
        // SAFETY: `take` found a GetpagesAsyncFn or null in this slot; `ap`:
        // see this function's contract.
        let vop = unsafe { mem::transmute::<*mut c_void, Option<GetpagesAsyncFn>>(original) };
        // SAFETY: as above.
        vop.map_or(sys::VM_PAGER_ERROR, |vop| unsafe { vop(ap) })
    }

    /// Calls the original VOP_BMAP.
    ///
    /// # Safety
    ///
    /// `ap` is the argument of a VOP_BMAP in progress.
    unsafe fn original_bmap(&self, ap: *mut sys::vop_bmap_args) -> c_int {
        let (_, original) = self.slot(Slot::Bmap);
        let original = original.load(Ordering::Acquire);
        // SAFETY: `take` found a BmapFn or null in this slot; `ap`: see this
        // function's contract.
        let vop = unsafe { mem::transmute::<*mut c_void, Option<BmapFn>>(original) };
        // SAFETY: as above.
        vop.map_or(sys::EOPNOTSUPP, |vop| unsafe { vop(ap) })
    }

    /// Calls the original VOP_GETPAGES.
    ///
    /// # Safety
    ///
    /// `ap` is the argument of a VOP_GETPAGES, and its pages are untouched.
    unsafe fn original_sync(&self, ap: *mut sys::vop_getpages_args) -> c_int {
        let (place, original) = self.slot(Slot::Sync);
        let taken = original.load(Ordering::Acquire);
        let vop = if taken.is_null() { place.load(Ordering::Acquire) } else { taken };
        // SAFETY: the pointer is the one that `take` found in this slot, or the
        // one that is there: a GetpagesFn or null. `ap`: see this function's
        // contract.
        let vop = unsafe { mem::transmute::<*mut c_void, Option<GetpagesFn>>(vop) };
        // SAFETY: as above.
        vop.map_or(sys::VM_PAGER_ERROR, |vop| unsafe { vop(ap) })
    }
}

/// The VOPs that a module implements, and the vectors whose slots it takes.
pub trait Operations: 'static {
    /// A guard for a thread inside one of the module's VOPs. It covers a call
    /// of the original too.
    type Inside;

    /// Called when a thread enters one of the module's VOPs.
    fn enter() -> Self::Inside;

    /// The vectors whose slots may be taken; at least one.
    fn vectors() -> &'static [&'static Vector];

    /// VOP_GETPAGES_ASYNC(9). Locks: vnode shared or exclusive, object not.
    fn getpages_async(call: Getpages<'_>) -> Answer<'_>;

    /// VOP_GETPAGES(9). Locks: vnode shared or exclusive, object not.
    fn getpages(call: Getpages<'_>) -> Answer<'_>;

    /// VOP_BMAP(9), for a call that asks for a block's place and the run behind
    /// it. Returns an errno, or `None` to leave the call to the original.
    /// Locks: vnode.
    fn bmap(call: Bmap<'_>) -> Option<Errno>;

    /// The vnode's vector. `None` when the call came through another vector
    /// that inherited the slot from one of these (vop_default).
    fn vector_of(vnode: Vnode<'_>) -> Option<&'static Vector> {
        Self::vectors().iter().find(|vector| vector.is_of(vnode)).copied()
    }
}

/// A function pointer, as a slot stores it.
#[derive(Clone, Copy)]
pub struct Entry(*mut c_void);

/// The pointer to store in a slot so that the kernel calls `O`.
pub fn entry<O: Operations>(slot: Slot) -> Entry {
    Entry(match slot {
        Slot::Async => getpages_async::<O> as GetpagesAsyncFn as *mut c_void,
        Slot::Sync => getpages::<O> as GetpagesFn as *mut c_void,
        Slot::Bmap => bmap::<O> as BmapFn as *mut c_void,
    })
}

/// The vector whose originals serve a vnode: its own. When the call came
/// through a vector that inherited the slot, the last one.
fn original_of<O: Operations>(vp: *mut sys::vnode) -> Option<&'static Vector> {
    // SAFETY: the VOP's caller holds the vnode's lock during the call.
    let vnode = NonNull::new(vp).map(|vp| unsafe { Vnode::new(vp) });
    vnode.and_then(O::vector_of).or_else(|| O::vectors().last().copied())
}

fn code(result: Result<(), PagerError>) -> c_int {
    result.map_or_else(PagerError::code, |()| sys::VM_PAGER_OK)
}

/// VOP_GETPAGES_ASYNC(9), called through a vop_vector.
unsafe extern "C" fn getpages_async<O: Operations>(ap: *mut sys::vop_getpages_async_args) -> c_int {
    let _inside = O::enter();
    if ap.is_null() {
        return sys::VM_PAGER_ERROR;
    }
    // SAFETY: the kernel's argument block, ours during the call. Only this
    // reply calls a_iodone, until it is passed on below.
    let (call, original) =
        unsafe { (Getpages::from_async(&mut *ap), original_of::<O>((*ap).a_vp)) };
    let (Some(call), Some(original)) = (call, original) else { return sys::VM_PAGER_ERROR };
    match O::getpages_async(call) {
        Answer::Done(result) => code(result),
        Answer::Original(call) => {
            call.reply.pass_on();
            // SAFETY: unanswered; the reply has just been passed on.
            unsafe { original.original_async(ap) }
        }
        Answer::Emulate(call) => {
            // SAFETY: unanswered; the sync VOP does not know a_iodone.
            let answer = unsafe { original.original_sync(&mut getpages::sync_args(&*ap)) };
            let result = PagerError::check(answer);
            call.reply.send(result.map_err(PagerError::errno));
            code(result)
        }
    }
}

/// VOP_GETPAGES(9), called through a vop_vector.
unsafe extern "C" fn getpages<O: Operations>(ap: *mut sys::vop_getpages_args) -> c_int {
    let _inside = O::enter();
    if ap.is_null() {
        return sys::VM_PAGER_ERROR;
    }
    // SAFETY: the kernel's argument block, ours during the call.
    let (call, original) = unsafe { (Getpages::from_sync(&mut *ap), original_of::<O>((*ap).a_vp)) };
    let (Some(call), Some(original)) = (call, original) else { return sys::VM_PAGER_ERROR };
    match O::getpages(call) {
        Answer::Done(result) => code(result),
        // SAFETY: unanswered.
        Answer::Original(_) | Answer::Emulate(_) => unsafe { original.original_sync(ap) },
    }
}

/// VOP_BMAP(9), called through a vop_vector.
unsafe extern "C" fn bmap<O: Operations>(ap: *mut sys::vop_bmap_args) -> c_int {
    let _inside = O::enter();
    if ap.is_null() {
        return sys::EINVAL;
    }
    // SAFETY: the kernel's argument block, ours during the call.
    if let Some(call) = unsafe { Bmap::from_args(&mut *ap) }
        && let Some(answer) = O::bmap(call)
    {
        return answer.code();
    }
    // SAFETY: unanswered.
    unsafe { original_of::<O>((*ap).a_vp).map_or(sys::EOPNOTSUPP, |v| v.original_bmap(ap)) }
}

/// One call of VOP_BMAP that asks for a block's place and the length of the run
/// behind it, as vnode_pager_haspage() does for sendfile(2).
pub struct Bmap<'a> {
    /// The file. The caller holds its lock.
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
        // SAFETY: by the VOP's contract the vnode is locked, and the int is the
        // caller's or NULL.
        unsafe {
            let vnode = Vnode::new(NonNull::new(ap.a_vp)?);
            Some(Self { vnode, lbn, run: ap.a_runp.as_mut()? })
        }
    }

    /// Answers with a promised run: EAGAIN, and `pages` as the length of the
    /// run. vnode_pager_haspage() reads this as "the page exists, and so many
    /// pages follow". Any other caller reads it as an error.
    pub fn promise(self, pages: u32) -> Errno {
        *self.run = c_int::try_from(pages).unwrap_or(c_int::MAX);
        Errno::EAGAIN
    }
}

/// Whether the offsets of the slots match the headers, by the kernel's own
/// vnodeop_desc.
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
