// SPDX-License-Identifier: BSD-2-Clause
//! VOP_GETPAGES(9) and VOP_GETPAGES_ASYNC(9): the arguments of a call, and its
//! reply, which may outlive the call.

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

/// The C type of a getpages completion callback.
pub type IodoneFn = unsafe extern "C" fn(*mut c_void, *mut sys::vm_page_t, c_int, c_int);

/// The duty to call `a_iodone` exactly once for a request.
///
/// Sending a reply consumes it. Dropping an unsent reply sends EIO, so that no
/// path can forget the caller.
///
/// # Invariants
///
/// `pages` and `count` are the request's. `iodone` has not been called for it
/// yet.
pub struct Reply {
    iodone: Option<IodoneFn>,
    arg: *mut c_void,
    pages: *mut sys::vm_page_t,
    count: c_int,
}

impl Reply {
    /// # Safety
    ///
    /// `pages[..count]` are the pages of a request that waits for `iodone`.
    /// They stay readable and writable until the reply is sent.
    unsafe fn new(
        iodone: Option<IodoneFn>,
        arg: *mut c_void,
        pages: *mut sys::vm_page_t,
        count: c_int,
    ) -> Self {
        Self { iodone, arg, pages, count }
    }

    /// Whether the call has a completion callback.
    pub fn is_async(&self) -> bool {
        self.iodone.is_some()
    }

    /// Calls `a_iodone` with the outcome. From here on the caller owns its
    /// pages.
    pub fn send(self, outcome: Result<(), Errno>) {
        self.call(outcome);
        mem::forget(self);
    }

    /// Hands the duty to call `a_iodone` to the original VOP.
    pub fn pass_on(self) {
        mem::forget(self);
    }

    fn call(&self, outcome: Result<(), Errno>) {
        if let Some(iodone) = self.iodone {
            let error = outcome.map_or_else(Errno::code, |()| 0);
            // SAFETY: the request waits for this one call, with its own pages
            // (invariant).
            unsafe { iodone(self.arg, self.pages, self.count, error) };
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.call(Err(Errno::EIO));
    }
}

/// A caller's `rbehind` or `rahead`: the pages it wishes for on entry, and the
/// pages really read on return. May be absent.
pub struct Extra<'a>(Option<&'a mut c_int>);

impl Extra<'_> {
    /// The pages wished for.
    pub fn wish(&self) -> u32 {
        self.0.as_ref().map_or(0, |n| (**n).max(0) as u32)
    }

    /// Reports the pages really read.
    pub fn report(&mut self, pages: u32) {
        if let Some(n) = &mut self.0 {
            **n = c_int::try_from(pages).unwrap_or(c_int::MAX);
        }
    }
}

/// The outcome of a call.
pub enum Answer<'a> {
    /// The module has served the call: `VM_PAGER_OK`, or an error that the
    /// reply has reported already.
    Done(Result<(), PagerError>),
    /// The original VOP must serve the call. The pages are untouched and the
    /// reply is unsent.
    Original(Getpages<'a>),
    /// The sync VOP must serve the call, and waits for the data, since the
    /// filesystem has no block map. The reply is unsent.
    Emulate(Getpages<'a>),
}

/// One call of VOP_GETPAGES or VOP_GETPAGES_ASYNC.
pub struct Getpages<'a> {
    /// The file. The caller holds its lock.
    pub vnode: Vnode<'a>,
    /// The requested pages; at least one.
    pub pages: &'a [BusiedPage],
    /// Read-behind, wished and reported.
    pub behind: Extra<'a>,
    /// Read-ahead, wished and reported.
    pub ahead: Extra<'a>,
    /// The caller's callback. Empty in the sync form.
    pub reply: Reply,
}

impl<'a> Getpages<'a> {
    /// # Safety
    ///
    /// `ap` is the argument of a VOP_GETPAGES_ASYNC in progress. Only the reply
    /// of the returned value calls `a_iodone`.
    pub(super) unsafe fn from_async(ap: &'a mut sys::vop_getpages_async_args) -> Option<Self> {
        // SAFETY: see this function's contract.
        unsafe {
            Self::new(ap.a_vp, ap.a_m, ap.a_count, ap.a_rbehind, ap.a_rahead, ap.a_iodone, ap.a_arg)
        }
    }

    /// # Safety
    ///
    /// `ap` is the argument of a VOP_GETPAGES in progress.
    pub(super) unsafe fn from_sync(ap: &'a mut sys::vop_getpages_args) -> Option<Self> {
        // SAFETY: see this function's contract.
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
        // SAFETY: by the VOP's contract the vnode is locked, and m[..count] are
        // busied pages or bogus_page. The two ints are the caller's or NULL.
        // All of them last as long as the call.
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

/// The argument of the VOP_GETPAGES that emulates an async call.
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

/// Memory for the calls that outlive their VOP. `T`: the module's own part of a
/// call.
pub struct PendingZone<T: 'static>(Zone, PhantomData<T>);

impl<T> Default for PendingZone<T> {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: uma(9) zones are MP-safe. Values are reachable through `Pending`
// only, which has bounds of its own.
unsafe impl<T> Sync for PendingZone<T> {}

impl<T> PendingZone<T> {
    /// No zone yet.
    pub const fn new() -> Self {
        Self(Zone::new(), PhantomData)
    }
}

impl<T: Send + Sync> PendingZone<T> {
    /// Creates the zone. Called once, from MOD_LOAD. Sleeps: yes. Errors:
    /// ENOMEM.
    pub fn create(&self, name: &'static CStr) -> Result<(), Errno> {
        let pages = (buf::max_pages() as usize).saturating_mul(size_of::<BusiedPage>());
        self.0.create(name, size_of::<Item<T>>().saturating_add(pages))
    }

    /// Destroys the zone. The caller ensures that no call is pending.
    pub fn destroy(&self) {
        self.0.destroy();
    }

    /// Makes a call pending, so that it outlives its VOP. Gives the reply back
    /// when the call has more pages than a buf can hold, or when there is no
    /// zone. Sleeps: only when an M_NOWAIT allocation fails.
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
        // reply's pages are readable (invariant).
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

/// A pending call in memory. The pointers to its pages lie behind it.
struct Item<T: 'static> {
    shares: Shares,
    zone: &'static PendingZone<T>,
    vnode: NonNull<sys::vnode>,
    reply: Reply,
    value: T,
}

// The page pointers behind an item are aligned.
const _: () = assert!(align_of::<Item<()>>() >= align_of::<sys::vm_page_t>());

/// A reference to a pending call: one for each I/O in flight for it, and one
/// for the thread that starts them.
///
/// [`Pending::finish`] drops a reference. Dropping one in another way does not
/// fail the call, but when it is the last one the reply is EIO.
///
/// # Invariants
///
/// The item lives while there is a reference or a [`Last`]. `shares` counts the
/// references.
pub struct Pending<T: 'static>(NonNull<Item<T>>);

// SAFETY: each thread that accesses the value holds a reference.
unsafe impl<T: Send + Sync> Send for Pending<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Pending<T> {}

impl<T> Pending<T> {
    fn item(&self) -> &Item<T> {
        // SAFETY: the item lives (invariant).
        unsafe { self.0.as_ref() }
    }

    /// The module's own part.
    pub fn value(&self) -> &T {
        &self.item().value
    }

    /// The requested pages. They stay busied until the answer.
    pub fn pages(&self) -> &[BusiedPage] {
        pages(self.item())
    }

    /// The file. Its object waits for the busied pages, and so does the vnode.
    pub fn vnode(&self) -> Vnode<'_> {
        // SAFETY: the busied pages keep the vnode until the answer.
        unsafe { Vnode::new(self.item().vnode) }
    }

    /// Drops this reference. The last one returns the duty to answer.
    pub fn finish(self) -> Option<Last<T>> {
        ManuallyDrop::new(self).release()
    }

    fn release(&self) -> Option<Last<T>> {
        self.item().shares.release().then(|| Last(self.0))
    }
}

impl<T> Clone for Pending<T> {
    /// Adds a reference.
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

/// The last reference to a pending call, with the duty to answer it. Dropping
/// it answers EIO.
///
/// # Invariants
///
/// The item lives, and no other reference to it is left.
pub struct Last<T: 'static>(NonNull<Item<T>>);

// SAFETY: as for `Pending`.
unsafe impl<T: Send + Sync> Send for Last<T> {}

impl<T> Last<T> {
    fn item(&self) -> &Item<T> {
        // SAFETY: the item lives (invariant).
        unsafe { self.0.as_ref() }
    }

    /// The module's own part.
    pub fn value(&self) -> &T {
        &self.item().value
    }

    /// The requested pages.
    pub fn pages(&self) -> &[BusiedPage] {
        pages(self.item())
    }

    /// The file.
    pub fn vnode(&self) -> Vnode<'_> {
        // SAFETY: the busied pages keep the vnode until the answer.
        unsafe { Vnode::new(self.item().vnode) }
    }

    /// Answers the call. Pages, vnode and mount may go away from here on.
    pub fn answer(self, outcome: Result<(), Errno>) {
        ManuallyDrop::new(self).end(Some(outcome));
    }

    fn end(&self, outcome: Option<Result<(), Errno>>) {
        // SAFETY: no other reference is left. The item is moved out first; its
        // memory, which holds the reply's page pointers, is freed only after
        // the reply.
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
    // SAFETY: `pend` put the page pointers behind the item. The pages are
    // busied until the answer, and BusiedPage is a transparent pointer.
    unsafe { slice::from_raw_parts(item.reply.pages.cast(), item.reply.count.max(0) as usize) }
}
