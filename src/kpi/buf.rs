// SPDX-License-Identifier: BSD-2-Clause
//! Buf headers for paging I/O (buf(9), sys/buf.h, vm/vm_pager.c).
//!
//! A [`Pool`] holds bufs that are like the kernel's pbufs, each with a context
//! of the module's own behind it. A [`Pbuf`] is owned from [`Pool::alloc`]
//! until it is dropped or sent. A sent buf belongs to the disk until its
//! `b_iodone`, where [`Completion::completed`] owns it again. Dropping a buf
//! undoes all that it holds: pages that nobody asked for are freed, the mapping
//! is removed, the credentials are released and the buf goes back to its pool.

mod pool;

use core::{
    ffi::c_int,
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::{Deref, DerefMut},
    ptr::{self, NonNull},
    slice,
};

use self::pool::tail;
pub use self::pool::{Fifo, Pool, Room};
use super::{
    errno::Errno,
    sync::{Back, Handover},
    sys,
    vm_object::{Object, WriteLocked},
    vm_page::BusiedPage,
    vnode::{Device, Vnode},
};

/// Pages that one buf can hold (maxphys).
pub fn max_pages() -> u32 {
    // SAFETY: set at boot, never changed.
    let bytes = unsafe { sys::maxphys };
    u32::try_from(bytes / u64::from(sys::PAGE)).unwrap_or(u32::MAX)
}

/// Bufs that the kernel means each user of pbufs to have: nswbuf times eight,
/// as the vnode pager's zone has.
pub fn pager_bufs() -> u32 {
    // SAFETY: set at boot, never changed.
    unsafe { sys::nswbuf }.max(0) as u32 * 8
}

/// Where on the device a buf reads, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// First block, in units of DEV_BSIZE.
    pub blkno: i64,
    /// Bytes, a multiple of the device's sector.
    pub bytes: u32,
    /// Offset of the first byte in the first page; 0 but for blocks smaller than a page.
    pub page_offset: u32,
}

/// What becomes of a buf whose asynchronous I/O is over.
pub trait Completion: Send + Sized + 'static {
    /// Called in the disk's completion thread, once for each [`Pbuf::send`].
    /// Must not sleep.
    fn completed(buf: Pbuf<Self>);

    /// Called in the thread that has dropped a [`Claim`], when the buf is back.
    fn abandoned(buf: Pbuf<Self>);
}

/// An owned buf that is not in flight. It dereferences to its context.
///
/// # Invariants
///
/// The buf is out of a live [`Pool`] and nobody else uses it, but for the
/// `claim` of a buf that was sent with [`Pbuf::send_claimable`]. Its lock
/// belongs to the kernel (BUF_KERNPROC). `b_pages[..b_npages]` are busied pages:
/// the first `b_pgbefore` and the last `b_pgafter` of them were allocated here,
/// the ones between belong to the request that the buf reads for. With
/// `b_pgbefore` < 0 all of them are wired pages without an object.
#[repr(transparent)]
pub struct Pbuf<C: 'static>(NonNull<sys::buf>, PhantomData<C>);

// SAFETY: a buf is not tied to a thread, since its lock belongs to the kernel.
unsafe impl<C: Send> Send for Pbuf<C> {}

impl<C> Deref for Pbuf<C> {
    type Target = C;

    fn deref(&self) -> &C {
        // SAFETY: a context is initialized while its buf is owned.
        unsafe { (*(*tail::<C>(self.0).as_ptr()).context.get()).assume_init_ref() }
    }
}

impl<C> DerefMut for Pbuf<C> {
    fn deref_mut(&mut self) -> &mut C {
        // SAFETY: as for `deref`; the buf's owner has the context alone.
        unsafe { (*(*tail::<C>(self.0).as_ptr()).context.get()).assume_init_mut() }
    }
}

/// Marks pages without an object in `b_pgbefore`.
const UNMANAGED: c_int = -1;

impl<C> Pbuf<C> {
    fn new(bp: NonNull<sys::buf>, context: C) -> Self {
        // SAFETY: just taken from the pool, so nobody else knows it.
        unsafe {
            sys::shim_buf_reset(bp.as_ptr());
            let tail = tail::<C>(bp);
            (*tail.as_ptr()).claim.begin();
            (*(*tail.as_ptr()).context.get()).write(context);
        }
        let mut buf = Self(bp, PhantomData);
        buf.set_counts(0, 0, 0);
        buf
    }

    fn buf(&self) -> &sys::buf {
        // SAFETY: live and ours by the invariant.
        unsafe { self.0.as_ref() }
    }

    fn buf_mut(&mut self) -> &mut sys::buf {
        // SAFETY: live and ours by the invariant.
        unsafe { self.0.as_mut() }
    }

    fn is_unmanaged(&self) -> bool {
        // SAFETY: the union holds the paging fields since `new`.
        unsafe { self.buf().__bindgen_anon_1.__bindgen_anon_1.b_pgbefore == UNMANAGED }
    }

    fn counts(&self) -> (usize, usize, usize) {
        let buf = self.buf();
        // SAFETY: the union holds the paging fields since `new`.
        let run = unsafe { &buf.__bindgen_anon_1.__bindgen_anon_1 };
        let all = buf.b_npages.max(0) as usize;
        let before = (run.b_pgbefore.max(0) as usize).min(all);
        let after = (run.b_pgafter.max(0) as usize).min(all.saturating_sub(before));
        (before, after, all)
    }

    fn set_counts(&mut self, before: usize, after: usize, all: usize) {
        let buf = self.buf_mut();
        buf.b_npages = all as c_int;
        // SAFETY: paging I/O uses this variant of the union.
        let run = unsafe { &mut buf.__bindgen_anon_1.__bindgen_anon_1 };
        run.b_pgbefore = before as c_int;
        run.b_pgafter = after as c_int;
    }

    /// Pages read before those asked for.
    pub fn behind(&self) -> u32 {
        self.counts().0 as u32
    }

    /// Pages read after those asked for.
    pub fn ahead(&self) -> u32 {
        self.counts().1 as u32
    }

    /// Pages of this buf in all.
    pub fn npages(&self) -> u32 {
        self.counts().2 as u32
    }

    /// All pages of this buf, in the file's order.
    pub fn pages(&self) -> &[BusiedPage] {
        let (.., all) = self.counts();
        if self.is_unmanaged() {
            return &[];
        }
        // SAFETY: the first b_npages entries are busied pages by the
        // invariant; BusiedPage is a transparent non-null pointer.
        unsafe { slice::from_raw_parts(self.slot(0).cast(), all) }
    }

    /// The pages nobody asked for.
    pub fn extras(&self) -> impl Iterator<Item = &BusiedPage> {
        let (before, after, all) = self.counts();
        let pages = self.pages();
        let first = pages.get(..before).unwrap_or_default();
        let last = pages.get(all.saturating_sub(after)..).unwrap_or_default();
        first.iter().chain(last)
    }

    /// The index of the first page, which may be bogus. `None` if all are.
    pub fn first_pindex(&self) -> Option<u64> {
        let real = (0u64..).zip(self.pages()).find(|(_, page)| !page.is_bogus());
        real.map(|(i, page)| page.pindex().saturating_sub(i))
    }

    fn slot(&self, index: usize) -> *mut sys::vm_page_t {
        // SAFETY: the array lies behind the header and has room for
        // max_pages() entries and one; callers stay below that.
        unsafe { (&raw mut (*self.0.as_ptr()).b_pages).cast::<sys::vm_page_t>().add(index) }
    }

    fn push(&mut self, page: *mut sys::vm_page) -> bool {
        let (before, after, all) = self.counts();
        if all >= max_pages() as usize {
            return false;
        }
        // SAFETY: `all` is below the array's length.
        unsafe { self.slot(all).write(page) };
        self.set_counts(before, after, all + 1);
        true
    }

    /// Allocate up to `want` pages just before `pindex`, until the first one
    /// that exists or for which there is no memory. To be called first.
    pub fn fill_behind(&mut self, object: &WriteLocked<'_>, pindex: u64, want: u32) {
        let mut n = 0;
        while n < want as usize && self.counts().2 < max_pages() as usize {
            let Some(at) = pindex.checked_sub(n as u64 + 1) else { break };
            let Some(page) = object.alloc_absent(at) else { break };
            self.push(page.as_ptr());
            n += 1;
        }
        self.set_counts(n, 0, n);
        // They came in descending order.
        // SAFETY: the first n entries were just written.
        unsafe { slice::from_raw_parts_mut(self.slot(0), n) }.reverse();
    }

    /// Append pages of the request. False, and nothing done, when the buf has
    /// no room for them.
    pub fn fill_requested(&mut self, pages: &[BusiedPage]) -> bool {
        let (before, after, all) = self.counts();
        let end = all.saturating_add(pages.len());
        if end > max_pages() as usize {
            return false;
        }
        // SAFETY: `end` is within the array, which the caller's pages are not
        // in; BusiedPage is a transparent pointer.
        unsafe { self.slot(all).copy_from_nonoverlapping(pages.as_ptr().cast(), pages.len()) };
        self.set_counts(before, after, end);
        true
    }

    /// Allocate up to `want` pages from `pindex` on, until the first one that
    /// exists or for which there is no memory. To be called last.
    pub fn fill_ahead(&mut self, object: &WriteLocked<'_>, pindex: u64, want: u32) {
        let mut n = 0;
        while n < want && self.counts().2 < max_pages() as usize {
            let Some(page) = object.alloc_absent(pindex.saturating_add(u64::from(n))) else {
                break;
            };
            self.push(page.as_ptr());
            n += 1;
            let (before, _, all) = self.counts();
            self.set_counts(before, n as usize, all);
        }
    }

    /// Give an empty buf `count` wired pages of no object. False when there is
    /// no memory at hand.
    pub fn fill_unmanaged(&mut self, count: u32) -> bool {
        self.buf_mut().__bindgen_anon_1.__bindgen_anon_1.b_pgbefore = UNMANAGED;
        (0..count.min(max_pages())).all(|_| {
            // SAFETY: without VM_ALLOC_WAITOK this does not sleep.
            let page = unsafe { sys::vm_page_alloc_noobj(sys::VM_ALLOC_WIRED) };
            if page.is_null() {
                return false;
            }
            let (.., all) = self.counts();
            // SAFETY: `all` is below the array's length.
            unsafe { self.slot(all).write(page) };
            self.buf_mut().b_npages += 1;
            true
        })
    }

    /// What a completed buf has read into its [unmanaged](Self::fill_unmanaged) pages.
    pub fn bytes_read(&self) -> &[u8] {
        let (.., all) = self.counts();
        let buf = self.buf();
        if !self.is_unmanaged() || buf.b_bufobj.is_null() {
            return &[];
        }
        // SAFETY: `address` mapped all pages at b_kvabase; such a buf stays
        // mapped until it is dropped, and nobody reads into it now.
        unsafe { slice::from_raw_parts(buf.b_kvabase.cast(), all * sys::PAGE as usize) }
    }

    /// Make the buf read from another place of the device.
    pub fn aim(&mut self, blkno: i64) {
        let buf = self.buf_mut();
        buf.b_blkno = blkno;
        buf.b_iooffset = blkno.wrapping_mul(i64::from(sys::DEV_BSIZE));
    }

    /// The device that the buf reads from.
    pub fn device(&self) -> Option<Device<'_>> {
        // SAFETY: the buf's pages, or what its context holds, keep the mount.
        NonNull::new(self.buf().b_bufobj).map(|bo| unsafe { Device::new(bo) })
    }

    /// Build the rest of the header: what to read, from where, on whose behalf.
    /// Takes references to the calling thread's credential.
    pub fn address(
        &mut self,
        vnode: Vnode<'_>,
        device: Device<'_>,
        transfer: Transfer,
        unmapped: bool,
    ) {
        let bp = self.0.as_ptr();
        let unmapped = unmapped && !self.is_unmanaged();
        let buf = self.buf_mut();
        buf.b_iocmd = sys::BIO_READ as u16;
        buf.b_bcount = i64::from(transfer.bytes);
        buf.b_bufsize = i64::from(transfer.bytes);
        buf.b_offset = i64::from(transfer.page_offset);
        self.aim(transfer.blkno);
        self.map(unmapped, transfer.page_offset);
        // SAFETY: a new buf without credentials and without a bufobj.
        unsafe {
            sys::shim_hold_creds(bp);
            sys::pbgetbo(device.as_ptr(), bp);
        }
        self.buf_mut().b_vp = vnode.as_ptr();
    }

    fn map(&mut self, unmapped: bool, page_offset: u32) {
        let (slot, npages) = (self.slot(0), self.counts().2 as c_int);
        let buf = self.buf_mut();
        // SAFETY: the pages are in place, and b_kvabase spans max_pages() of
        // kernel address space; unmapped_buf is set at boot.
        unsafe {
            if unmapped {
                buf.b_data = sys::unmapped_buf;
            } else {
                sys::pmap_qenter(buf.b_kvabase as u64, slot, npages);
                buf.b_data = buf.b_kvabase.add(page_offset as usize);
            }
        }
    }

    fn unmap(&mut self) {
        let npages = self.counts().2 as c_int;
        // SAFETY: unmapped_buf is set at boot. A buf with a bufobj that is
        // not unmapped was mapped by `map`, at b_kvabase, all its pages.
        unsafe {
            let buf = self.0.as_mut();
            if !buf.b_bufobj.is_null() && buf.b_data != sys::unmapped_buf {
                sys::pmap_qremove(buf.b_kvabase as u64, npages);
                buf.b_data = sys::unmapped_buf;
            }
        }
    }

    /// Send the buf to its device, and sleep until the I/O is over.
    pub fn read(self) -> Self {
        let bp = self.start(sys::bdone);
        // SAFETY: bdone() says when the I/O is over; then the buf is ours again.
        unsafe { sys::bwait(bp.as_ptr(), sys::PVM as u8, WAIT.as_ptr()) };
        Self(bp, PhantomData)
    }

    /// Hand the buf to its device; it belongs to the disk until `iodone` is called.
    fn start(self, iodone: unsafe extern "C" fn(*mut sys::buf)) -> NonNull<sys::buf> {
        let this = ManuallyDrop::new(self);
        let bp = this.0.as_ptr();
        // SAFETY: the header is complete (`address`); from bstrategy() on the
        // buf is not ours, and nothing here touches it after. runningbufspace
        // is not claimed: it governs writers, and bread(9) does not claim it either.
        unsafe {
            sys::shim_VM_CNT_VNODE_IN((*bp).b_npages as u32);
            sys::shim_buf_begin(bp, Some(iodone));
            sys::shim_bstrategy(bp);
        }
        this.0
    }

    /// Take the mapping away and tell how the I/O went. A transfer that is
    /// shorter than asked for is an error, whatever the device says.
    pub fn outcome(&mut self) -> Result<(), Errno> {
        if !self.is_unmanaged() {
            self.unmap();
        }
        // SAFETY: reads fields of our own buf.
        Errno::check(unsafe { sys::shim_buf_error(self.0.as_ptr()) })?;
        if self.buf().b_resid != 0 { Err(Errno::EIO) } else { Ok(()) }
    }

    /// Whether the I/O of a completed buf has failed.
    pub fn has_failed(&self) -> bool {
        // SAFETY: reads fields of our own buf.
        unsafe { sys::shim_buf_error(self.0.as_ptr()) != 0 }
    }

    /// Put pages that nobody asked for on the queues: those of them that
    /// `keep` says are valid now. The rest is freed.
    pub fn finish_extras(&mut self, keep: impl Fn(&BusiedPage) -> bool) {
        let (before, after, all) = self.counts();
        // SAFETY: extras are busied pages of one object, which waits for them.
        let Some(object) = self.extras().next().and_then(|page| unsafe {
            NonNull::new((*page.as_ptr()).object).map(|object| Object::new(object))
        }) else {
            return;
        };
        let mut locked = None;
        for page in self.extras() {
            // SAFETY: extras were allocated by `fill_*`, invalid, and are let
            // go of exactly once: the counts are reset below. What is not
            // kept is still invalid, and freed under the write lock.
            unsafe {
                if keep(page) {
                    page.readahead_finish();
                } else {
                    locked.get_or_insert_with(|| object.write());
                    page.free_invalid();
                }
            }
        }
        drop(locked);
        let rest = all - before - after;
        if before > 0 {
            // SAFETY: moves entries within the array.
            unsafe { ptr::copy(self.slot(before), self.slot(0), rest) };
        }
        self.set_counts(0, 0, rest);
    }

    /// Make a failed buf, whose extras are gone, ask for the pages of the
    /// request only; `behind` of its pages had come before them.
    pub fn narrow(&mut self, behind: u32) {
        let npages = self.counts().2;
        let unmapped = self.vnode().is_some_and(|vnode| vnode.takes_unmapped());
        let buf = self.buf_mut();
        let skipped = i64::from(behind) * i64::from(sys::PAGE);
        let bytes = (buf.b_bcount - skipped).min(npages as i64 * i64::from(sys::PAGE));
        buf.b_bcount = bytes;
        buf.b_bufsize = bytes;
        let blkno = buf.b_blkno + skipped / i64::from(sys::DEV_BSIZE);
        self.aim(blkno);
        self.map(unmapped, 0);
    }

    /// Where on the device the buf reads from, in units of DEV_BSIZE.
    pub fn blkno(&self) -> i64 {
        self.buf().b_blkno
    }

    /// Bytes that the buf asks the device for.
    pub fn bytes(&self) -> u32 {
        self.buf().b_bcount.max(0) as u32
    }

    /// The vnode that the buf reads for.
    pub fn vnode(&self) -> Option<Vnode<'_>> {
        // SAFETY: while the buf's pages are busied the vnode's object, and
        // with it the vnode, waits for them.
        NonNull::new(self.buf().b_vp).map(|vp| unsafe { Vnode::new(vp) })
    }
}

impl<C: Completion> Pbuf<C> {
    /// Send the buf to its device. [`Completion::completed`] gets it, possibly
    /// before this returns.
    pub fn send(self) {
        self.start(iodone::<C>);
    }

    /// Send the buf to its device, whose completion may be [claimed](Claim).
    pub fn send_claimable(self) -> Claim<C> {
        Claim(self.start(iodone_claimable::<C>), PhantomData)
    }
}

/// What is displayed by ps(1) while a thread waits for an I/O.
const WAIT: &core::ffi::CStr = c"appgin";

/// `b_iodone` of every buf that was sent with [`Pbuf::send`].
unsafe extern "C" fn iodone<C: Completion>(bp: *mut sys::buf) {
    if let Some(bp) = NonNull::new(bp) {
        // SAFETY: called once for each `send`, with its buf, which the disk
        // has no use for any more.
        C::completed(Pbuf(bp, PhantomData));
    }
}

/// `b_iodone` of every buf that was sent with [`Pbuf::send_claimable`].
unsafe extern "C" fn iodone_claimable<C: Completion>(bp: *mut sys::buf) {
    let Some(bp) = NonNull::new(bp) else { return };
    // SAFETY: as in `iodone`. The buf is out until both sides have come to it,
    // so that its claim can be used; what that says decides who owns it.
    unsafe {
        match (*tail::<C>(bp).as_ptr()).claim.back() {
            Back::Left => C::completed(Pbuf(bp, PhantomData)),
            Back::Wanted => sys::bdone(bp.as_ptr()),
            Back::Unclaimed => {}
        }
    }
}

/// The right to say what becomes of a buf in flight: the thread that sent it
/// takes it back, or leaves it to [`Completion::completed`].
///
/// Whichever comes second, claim or I/O, owns the buf. A claim that is dropped
/// waits for the buf and drops it.
///
/// # Invariants
///
/// The buf was sent by [`Pbuf::send_claimable`], and this is its only claim.
pub struct Claim<C: Completion>(NonNull<sys::buf>, PhantomData<C>);

impl<C: Completion> Claim<C> {
    fn state(&self) -> &Handover {
        // SAFETY: the buf is out until both sides have come to it.
        unsafe { &(*tail::<C>(self.0).as_ptr()).claim }
    }

    /// Leave the buf to its completion; gives it back if its I/O is over already.
    /// Never sleeps.
    pub fn leave(self) -> Option<Pbuf<C>> {
        let this = ManuallyDrop::new(self);
        // A Pbuf that is made is owned: only of a buf that is back.
        this.state().leave().then(|| Pbuf(this.0, PhantomData))
    }

    /// Take the buf back. Sleeps until its I/O is over.
    pub fn wait(self) -> Pbuf<C> {
        ManuallyDrop::new(self).take_back()
    }

    fn take_back(&self) -> Pbuf<C> {
        if !self.state().want() {
            // SAFETY: alive until it is claimed; `iodone_claimable` says when
            // the I/O is over.
            unsafe { sys::bwait(self.0.as_ptr(), sys::PVM as u8, WAIT.as_ptr()) };
        }
        Pbuf(self.0, PhantomData)
    }
}

impl<C: Completion> Drop for Claim<C> {
    fn drop(&mut self) {
        C::abandoned(self.take_back());
    }
}

impl<C> Drop for Pbuf<C> {
    fn drop(&mut self) {
        self.unmap();
        self.finish_extras(|_| false);
        let (.., all) = self.counts();
        let (bp, unmanaged) = (self.0.as_ptr(), self.is_unmanaged());
        // SAFETY: ours; this is its last use. pbrelbo() wants a buf that has
        // a bufobj and no vnode. Pages without an object were allocated wired
        // by `fill_unmanaged`. The context is taken out before the pool has
        // the buf, and is the last to go: what it holds keeps the mount.
        unsafe {
            for i in 0..if unmanaged { all } else { 0 } {
                let page = *self.slot(i);
                sys::vm_page_unwire_noq(page);
                sys::vm_page_free(page);
            }
            self.slot(0).write_bytes(0, all);
            (*bp).b_npages = 0;
            (*bp).b_vp = ptr::null_mut();
            if !(*bp).b_bufobj.is_null() {
                sys::pbrelbo(bp);
            }
            sys::shim_drop_creds(bp);
            let tail = tail::<C>(self.0).as_ptr();
            let context = (*(*tail).context.get()).assume_init_read();
            (*tail).pool.put(bp);
            drop(context);
        }
    }
}
