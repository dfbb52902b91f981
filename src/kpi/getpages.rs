// SPDX-License-Identifier: BSD-2-Clause
//! VOP_GETPAGES(9) and VOP_GETPAGES_ASYNC(9): a call's arguments, and its reply,
//! which may outlive the call.

use core::{
    ffi::{CStr, c_int, c_void},
    marker::PhantomData,
    mem::{self, ManuallyDrop},
    ptr::NonNull,
    slice,
};

use super::{
    buf, errno::Errno, sync::Shares, sys, uma::Zone, vm_page::BusiedPage, vm_pager::PagerError,
    vnode::Vnode,
};

/// C's type of a getpages completion callback.
pub type IodoneFn = unsafe extern "C" fn(*mut c_void, *mut sys::vm_page_t, c_int, c_int);

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
    unsafe fn new(
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

    /// Tell the caller. Its pages are its own from here on.
    pub fn send(self, outcome: Result<(), Errno>) {
        self.call(outcome);
        mem::forget(self);
    }

    /// Give the duty to call back to the original VOP.
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

/// What becomes of a call.
pub enum Answer<'a> {
    /// `VM_PAGER_OK`, or the error that the reply has told already.
    Done(Result<(), PagerError>),
    /// The original VOP is to serve it: nothing has been touched or told.
    Original(Getpages<'a>),
    /// The sync VOP is to serve it, which waits for the data: the filesystem
    /// has no block map. Nothing has been told.
    Emulate(Getpages<'a>),
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
    pub(super) unsafe fn from_async(ap: &'a mut sys::vop_getpages_async_args) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe {
            Self::new(ap.a_vp, ap.a_m, ap.a_count, ap.a_rbehind, ap.a_rahead, ap.a_iodone, ap.a_arg)
        }
    }

    /// # Safety
    ///
    /// `ap` is the argument of a VOP_GETPAGES in progress.
    pub(super) unsafe fn from_sync(ap: &'a mut sys::vop_getpages_args) -> Option<Self> {
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

/// The argument of the VOP_GETPAGES that stands for an async call.
pub(super) fn sync_args(ap: &sys::vop_getpages_async_args) -> sys::vop_getpages_args {
    sys::vop_getpages_args {
        a_gen: sys::vop_generic_args { a_desc: &raw mut sys::vop_getpages_desc },
        a_vp: ap.a_vp,
        a_m: ap.a_m,
        a_count: ap.a_count,
        a_rbehind: ap.a_rbehind,
        a_rahead: ap.a_rahead,
    }
}

/// Where the calls live that go on after their VOP has returned; `T` is the
/// module's own part of each.
pub struct PendingZone<T: 'static>(Zone, PhantomData<T>);

impl<T> Default for PendingZone<T> {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: the zone may be used by all threads; values are reached through
// `Pending` only, which has bounds of its own.
unsafe impl<T> Sync for PendingZone<T> {}

impl<T> PendingZone<T> {
    /// No zone yet.
    pub const fn new() -> Self {
        Self(Zone::new(), PhantomData)
    }
}

impl<T: Send + Sync> PendingZone<T> {
    /// Make the zone. May sleep; called once from MOD_LOAD.
    pub fn create(&self, name: &'static CStr) -> Result<(), Errno> {
        let pages = (buf::max_pages() as usize).saturating_mul(size_of::<BusiedPage>());
        self.0.create(name, size_of::<Item<T>>().saturating_add(pages))
    }

    /// Take the zone down. The caller has made sure that nothing is pending.
    pub fn destroy(&self) {
        self.0.destroy();
    }

    /// Let a call go on after its VOP has returned. The reply comes back when
    /// it has more pages than a buf can hold, or there is no zone. Sleeps only
    /// while memory is too short for one item.
    pub fn pend(
        &'static self,
        vnode: Vnode<'_>,
        reply: Reply,
        value: T,
    ) -> Result<Pending<T>, Reply> {
        let count = reply.count.max(0) as usize;
        if count > buf::max_pages() as usize {
            return Err(reply);
        }
        let Some(item) = self.0.alloc().map(NonNull::cast::<Item<T>>) else { return Err(reply) };
        // SAFETY: a new item, with room for max_pages() pages behind it. The
        // pages are the reply's, and readable by its invariant.
        unsafe {
            let pages = item.add(1).cast::<sys::vm_page_t>().as_ptr();
            pages.copy_from_nonoverlapping(reply.pages, count);
            let reply = ManuallyDrop::new(reply);
            let reply = Reply { iodone: reply.iodone, arg: reply.arg, pages, count: reply.count };
            item.write(Item {
                shares: Shares::one(),
                zone: self,
                vnode: vnode.address(),
                reply,
                value,
            });
        }
        Ok(Pending(item))
    }
}

/// A pending call in memory; its pages lie behind it.
struct Item<T: 'static> {
    shares: Shares,
    zone: &'static PendingZone<T>,
    vnode: NonNull<sys::vnode>,
    reply: Reply,
    value: T,
}

// The pages behind an item are aligned.
const _: () = assert!(align_of::<Item<()>>() >= align_of::<sys::vm_page_t>());

/// A share of a call that has not been answered yet: one for each I/O that is
/// under way for it, and one for the thread that starts them.
///
/// [`Pending::finish`] gives a share up. A share that is dropped instead fails
/// nothing by itself, but when it is the last one the caller is told EIO.
///
/// # Invariants
///
/// The item is alive while there is a share, or its [`Last`]. `shares`
/// counts them.
pub struct Pending<T: 'static>(NonNull<Item<T>>);

// SAFETY: the value is shared by threads that each have a share.
unsafe impl<T: Send + Sync> Send for Pending<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Pending<T> {}

impl<T> Pending<T> {
    fn item(&self) -> &Item<T> {
        // SAFETY: alive by the invariant.
        unsafe { self.0.as_ref() }
    }

    /// The module's own part.
    pub fn value(&self) -> &T {
        &self.item().value
    }

    /// The pages that were asked for; they are busied until the answer.
    pub fn pages(&self) -> &[BusiedPage] {
        pages(self.item())
    }

    /// The file. Its object waits for the busied pages, and the vnode with it.
    pub fn vnode(&self) -> Vnode<'_> {
        // SAFETY: kept by the busied pages until the answer.
        unsafe { Vnode::new(self.item().vnode) }
    }

    /// Give this share up. The last one gets the duty to answer.
    pub fn finish(self) -> Option<Last<T>> {
        ManuallyDrop::new(self).release()
    }

    fn release(&self) -> Option<Last<T>> {
        self.item().shares.release().then(|| Last(self.0))
    }
}

impl<T> Clone for Pending<T> {
    /// One more share.
    fn clone(&self) -> Self {
        self.item().shares.add();
        Self(self.0)
    }
}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        drop(self.release());
    }
}

/// The last share of a pending call, with the duty to answer it. One that is
/// dropped answers EIO.
///
/// # Invariants
///
/// The item is alive, and this is all that is left of its shares.
pub struct Last<T: 'static>(NonNull<Item<T>>);

// SAFETY: as for `Pending`.
unsafe impl<T: Send + Sync> Send for Last<T> {}

impl<T> Last<T> {
    fn item(&self) -> &Item<T> {
        // SAFETY: alive by the invariant.
        unsafe { self.0.as_ref() }
    }

    /// The module's own part.
    pub fn value(&self) -> &T {
        &self.item().value
    }

    /// The pages that were asked for.
    pub fn pages(&self) -> &[BusiedPage] {
        pages(self.item())
    }

    /// The file.
    pub fn vnode(&self) -> Vnode<'_> {
        // SAFETY: kept by the busied pages until the answer.
        unsafe { Vnode::new(self.item().vnode) }
    }

    /// Tell the caller. Pages, vnode and mount may go away with this.
    pub fn answer(self, outcome: Result<(), Errno>) {
        ManuallyDrop::new(self).end(Some(outcome));
    }

    fn end(&self, outcome: Option<Result<(), Errno>>) {
        // SAFETY: nobody else has the item any more. It is moved out, but its
        // memory, where the reply's pages are, goes back only after the reply.
        unsafe {
            let Item { zone, reply, value, .. } = self.0.read();
            match outcome {
                Some(outcome) => reply.send(outcome),
                None => drop(reply),
            }
            drop(value);
            zone.0.free(self.0.cast());
        }
    }
}

impl<T> Drop for Last<T> {
    fn drop(&mut self) {
        self.end(None);
    }
}

fn pages<T>(item: &Item<T>) -> &[BusiedPage] {
    // SAFETY: `pend` put the reply's pages behind the item; they are busied
    // until the answer, and BusiedPage is a transparent pointer.
    unsafe { slice::from_raw_parts(item.reply.pages.cast(), item.reply.count.max(0) as usize) }
}
