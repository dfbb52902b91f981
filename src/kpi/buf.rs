// SPDX-License-Identifier: BSD-2-Clause
//! Buf headers for paging I/O (buf(9), sys/buf.h, vm/vm_pager.c).
//!
//! A [`Pool`] holds bufs that resemble the kernel's pbufs, each with a context
//! of the module's own behind it. A thread owns a [`Pbuf`] from [`Pool::alloc`]
//! until it drops or sends it. A sent buf belongs to the disk until its
//! `b_iodone`, where [`Completion::completed`] owns it again.
//!
//! Dropping a buf releases all that it holds: it frees the extra pages, removes
//! the mapping, releases the credentials and returns the buf to its pool. Extra
//! pages are pages that the buf reads around the requested ones.

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
    // SAFETY: constant after boot.
    let bytes = unsafe { sys::maxphys };
    u32::try_from(bytes / u64::from(sys::PAGE)).unwrap_or(u32::MAX)
}

/// The kernel's number of pbufs for one user: nswbuf times eight, as in the
/// vnode pager's zone.
pub fn pager_bufs() -> u32 {
    // SAFETY: constant after boot.
    unsafe { sys::nswbuf }.max(0) as u32 * 8
}

/// The range of the device that a buf reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// First block, in units of DEV_BSIZE.
    pub blkno: i64,
    /// Bytes; a multiple of the device's sector.
    pub bytes: u32,
    /// Offset of the first byte in the first page. 0 unless blocks are smaller
    /// than a page.
    pub page_offset: u32,
}

/// The handlers of a completed asynchronous I/O.
pub trait Completion: Send + Sized + 'static {
    /// Called in the disk's completion thread: once for each [`Pbuf::send`],
    /// and for a [`Claim`] that was left to it in time. Sleeps: no.
    fn completed(buf: Pbuf<Self>);

    /// Called in the thread that dropped a [`Claim`], when the I/O is over.
    fn abandoned(buf: Pbuf<Self>);
}

/// An owned buf that is not in flight. It dereferences to its context.
///
/// # Invariants
///
/// The buf belongs to a live [`Pool`] and has no other user; only its `claim`
/// is shared, after [`Pbuf::send_claimable`]. Its lock belongs to the kernel
/// (BUF_KERNPROC).
///
/// `b_pages[..b_npages]` are busied pages. The first `b_pgbefore` and the last
/// `b_pgafter` of them are extra pages, allocated here; the pages between
/// belong to the request. With `b_pgbefore` < 0 all of them are wired pages
/// without an object.
#[repr(transparent)]
pub struct Pbuf<C: 'static>(NonNull<sys::buf>, PhantomData<C>);

// SAFETY: the buf's lock belongs to the kernel, so no thread is tied to the
// buf.
unsafe impl<C: Send> Send for Pbuf<C> {}

impl<C> Deref for Pbuf<C> {
    type Target = C;

    fn deref(&self) -> &C {
        // SAFETY: an owned buf has an initialized context.
        unsafe { (*(*tail::<C>(self.0).as_ptr()).context.get()).assume_init_ref() }
    }
}

impl<C> DerefMut for Pbuf<C> {
    fn deref_mut(&mut self) -> &mut C {
        // SAFETY: as for `deref`; only the buf's owner accesses the context.
        unsafe { (*(*tail::<C>(self.0).as_ptr()).context.get()).assume_init_mut() }
    }
}

/// The value of `b_pgbefore` for pages without an object.
const UNMANAGED: c_int = -1;

impl<C> Pbuf<C> {
    fn new(bp: NonNull<sys::buf>, context: C) -> Self {
        // SAFETY: just taken from the pool, so no other thread knows it.
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
        // SAFETY: live and ours (invariant).
        unsafe { self.0.as_ref() }
    }

    fn buf_mut(&mut self) -> &mut sys::buf {
        // SAFETY: live and ours (invariant).
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

    /// Extra pages before the requested ones.
    pub fn behind(&self) -> u32 {
        self.counts().0 as u32
    }

    /// Extra pages after the requested ones.
    pub fn ahead(&self) -> u32 {
        self.counts().1 as u32
    }

    /// All pages of this buf, extra pages included.
    pub fn npages(&self) -> u32 {
        self.counts().2 as u32
    }

    /// All pages of this buf, in file order. Empty for unmanaged pages.
    pub fn pages(&self) -> &[BusiedPage] {
        let (.., all) = self.counts();
        if self.is_unmanaged() {
            return &[];
        }
        // SAFETY: the first b_npages entries are busied pages (invariant).
        // BusiedPage is a transparent non-null pointer.
        unsafe { slice::from_raw_parts(self.slot(0).cast(), all) }
    }

    /// The extra pages.
    pub fn extras(&self) -> impl Iterator<Item = &BusiedPage> {
        let (before, after, all) = self.counts();
        let pages = self.pages();
        let first = pages.get(..before).unwrap_or_default();
        let last = pages.get(all.saturating_sub(after)..).unwrap_or_default();
        first.iter().chain(last)
    }

    /// The index of the first page, even when that one is bogus. `None` when
    /// all are bogus.
    pub fn first_pindex(&self) -> Option<u64> {
        let real = (0u64..).zip(self.pages()).find(|(_, page)| !page.is_bogus());
        real.map(|(i, page)| page.pindex().saturating_sub(i))
    }

    fn slot(&self, index: usize) -> *mut sys::vm_page_t {
        // SAFETY: the array lies behind the header and has room for max_pages()
        // + 1 entries; callers stay below that.
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

    /// Allocates up to `want` extra pages just before `pindex`. Stops at the
    /// first page that exists or cannot be allocated. Called first. Locks:
    /// object write. Sleeps: no.
    pub fn fill_behind(&mut self, object: &WriteLocked<'_>, pindex: u64, want: u32) {
        let mut n = 0;
        while n < want as usize && self.counts().2 < max_pages() as usize {
            let Some(at) = pindex.checked_sub(n as u64 + 1) else { break };
            let Some(page) = object.alloc_absent(at) else { break };
            self.push(page.as_ptr());
            n += 1;
        }
        self.set_counts(n, 0, n);
        // The pages were pushed in descending order.
        // SAFETY: the first n entries were just written.
        unsafe { slice::from_raw_parts_mut(self.slot(0), n) }.reverse();
    }

    /// Appends pages of the request. False, without a change, when the buf has
    /// no room for them.
    pub fn fill_requested(&mut self, pages: &[BusiedPage]) -> bool {
        let (before, after, all) = self.counts();
        let end = all.saturating_add(pages.len());
        if end > max_pages() as usize {
            return false;
        }
        // SAFETY: `end` is within the array, and the caller's pages lie
        // elsewhere. BusiedPage is a transparent pointer.
        unsafe { self.slot(all).copy_from_nonoverlapping(pages.as_ptr().cast(), pages.len()) };
        self.set_counts(before, after, end);
        true
    }

    /// Allocates up to `want` extra pages from `pindex` on. Stops at the first
    /// page that exists or cannot be allocated. Called last. Locks: object
    /// write. Sleeps: no.
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

    /// Allocates `count` wired pages without an object, for an empty buf. False
    /// when memory is short. Sleeps: no.
    pub fn fill_unmanaged(&mut self, count: u32) -> bool {
        self.buf_mut().__bindgen_anon_1.__bindgen_anon_1.b_pgbefore = UNMANAGED;
        (0..count.min(max_pages())).all(|_| {
            // SAFETY: without VM_ALLOC_WAITOK the allocation does not sleep.
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

    /// The bytes that a completed buf has read into its
    /// [unmanaged](Self::fill_unmanaged) pages.
    pub fn bytes_read(&self) -> &[u8] {
        let (.., all) = self.counts();
        let buf = self.buf();
        if !self.is_unmanaged() || buf.b_bufobj.is_null() {
            return &[];
        }
        // SAFETY: `address` mapped all pages at b_kvabase. The mapping of such
        // a buf lasts until its drop, and the buf is not in flight.
        unsafe { slice::from_raw_parts(buf.b_kvabase.cast(), all * sys::PAGE as usize) }
    }

    /// Makes the buf read from another block. `blkno`: units of DEV_BSIZE.
    pub fn aim(&mut self, blkno: i64) {
        let buf = self.buf_mut();
        buf.b_blkno = blkno;
        buf.b_iooffset = blkno.wrapping_mul(i64::from(sys::DEV_BSIZE));
    }

    /// The device that the buf reads.
    pub fn device(&self) -> Option<Device<'_>> {
        // SAFETY: the buf's pages, or its context, keep the mount.
        NonNull::new(self.buf().b_bufobj).map(|bo| unsafe { Device::new(bo) })
    }

    /// Completes the header: device, transfer, mapping, vnode. `unmapped`: the
    /// mount accepts unmapped bufs. Takes references to the calling thread's
    /// credential.
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
        // SAFETY: a new buf, without credentials and without a bufobj.
        unsafe {
            sys::shim_hold_creds(bp);
            sys::pbgetbo(device.as_ptr(), bp);
        }
        self.buf_mut().b_vp = vnode.as_ptr();
    }

    fn map(&mut self, unmapped: bool, page_offset: u32) {
        let (slot, npages) = (self.slot(0), self.counts().2 as c_int);
        let buf = self.buf_mut();
        // SAFETY: the pages are in place, and b_kvabase spans max_pages() and
        // one more page of address space. unmapped_buf is constant after boot.
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
        // SAFETY: unmapped_buf is constant after boot. In any other buf that
        // has a bufobj, `map` mapped all pages at b_kvabase.
        unsafe {
            let buf = self.0.as_mut();
            if !buf.b_bufobj.is_null() && buf.b_data != sys::unmapped_buf {
                sys::pmap_qremove(buf.b_kvabase as u64, npages);
                buf.b_data = sys::unmapped_buf;
            }
        }
    }

    /// Sends the buf to its device, and waits for the I/O. Sleeps: yes.
    pub fn read(self) -> Self {
        let bp = self.start(sys::bdone);
        // SAFETY: bdone() wakes this thread when the I/O is over; then the buf
        // is ours.
        unsafe { sys::bwait(bp.as_ptr(), sys::PVM as u8, WAIT.as_ptr()) };
        Self(bp, PhantomData)
    }

    /// Hands the buf to its device. It belongs to the disk until `iodone` is
    /// called.
    fn start(self, iodone: unsafe extern "C" fn(*mut sys::buf)) -> NonNull<sys::buf> {
        let this = ManuallyDrop::new(self);
        let bp = this.0.as_ptr();
        // SAFETY: `address` has completed the header. From bstrategy() on the
        // buf is not ours, and nothing here accesses it. It claims no
        // runningbufspace, which governs writers; nor does bread(9).
        unsafe {
            sys::shim_VM_CNT_VNODE_IN((*bp).b_npages as u32);
            sys::shim_buf_begin(bp, Some(iodone));
            sys::shim_bstrategy(bp);
        }
        this.0
    }

    /// Removes the mapping and returns the outcome of the I/O. Errors: the
    /// device's; EIO for a short transfer, even when the device reports none.
    pub fn outcome(&mut self) -> Result<(), Errno> {
        if !self.is_unmanaged() {
            self.unmap();
        }
        // SAFETY: reads fields of a buf that we own.
        Errno::check(unsafe { sys::shim_buf_error(self.0.as_ptr()) })?;
        if self.buf().b_resid != 0 { Err(Errno::EIO) } else { Ok(()) }
    }

    /// Whether the I/O of a completed buf has failed.
    pub fn has_failed(&self) -> bool {
        // SAFETY: reads fields of a buf that we own.
        unsafe { sys::shim_buf_error(self.0.as_ptr()) != 0 }
    }

    /// Releases the extra pages. Puts those that `keep` reports as valid on the
    /// page queues, and frees the others under the object's write lock.
    pub fn finish_extras(&mut self, keep: impl Fn(&BusiedPage) -> bool) {
        let (before, after, all) = self.counts();
        // SAFETY: extra pages are busied pages of one object, which waits for
        // them.
        let Some(object) = self.extras().next().and_then(|page| unsafe {
            NonNull::new((*page.as_ptr()).object).map(|object| Object::new(object))
        }) else {
            return;
        };
        let mut locked = None;
        for page in self.extras() {
            // SAFETY: `fill_*` allocated the extra pages, invalid. Each is
            // released exactly once, since the counts are reset below. A page
            // that is not kept is still invalid, and freed under the write
            // lock.
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

    /// Restricts a failed buf to the pages of the request, for a retry. Its
    /// extra pages are released already; `behind`: those that lay before the
    /// request.
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

    /// The first block that the buf reads, in units of DEV_BSIZE.
    pub fn blkno(&self) -> i64 {
        self.buf().b_blkno
    }

    /// The length of the transfer, in bytes.
    pub fn bytes(&self) -> u32 {
        self.buf().b_bcount.max(0) as u32
    }

    /// The vnode that the buf reads for.
    pub fn vnode(&self) -> Option<Vnode<'_>> {
        // SAFETY: the object, and with it the vnode, waits for the buf's busied
        // pages.
        NonNull::new(self.buf().b_vp).map(|vp| unsafe { Vnode::new(vp) })
    }
}

impl<C: Completion> Pbuf<C> {
    /// Sends the buf to its device. [`Completion::completed`] gets it back,
    /// possibly before this returns. May sleep for a bio.
    pub fn send(self) {
        self.start(iodone::<C>);
    }

    /// Sends the buf to its device. The sender may [claim](Claim) it.
    pub fn send_claimable(self) -> Claim<C> {
        Claim(self.start(iodone_claimable::<C>), PhantomData)
    }
}

/// The wait channel that ps(1) shows while a thread waits for an I/O.
const WAIT: &core::ffi::CStr = c"appgin";

/// `b_iodone` of every buf that was sent with [`Pbuf::send`].
unsafe extern "C" fn iodone<C: Completion>(bp: *mut sys::buf) {
    if let Some(bp) = NonNull::new(bp) {
        // SAFETY: called once for each `send`, with its buf, which the disk has
        // released.
        C::completed(Pbuf(bp, PhantomData));
    }
}

/// `b_iodone` of every buf that was sent with [`Pbuf::send_claimable`].
unsafe extern "C" fn iodone_claimable<C: Completion>(bp: *mut sys::buf) {
    let Some(bp) = NonNull::new(bp) else { return };
    // SAFETY: as in `iodone`. The buf stays out of the pool until both sides
    // have arrived, so its claim can be used. The claim's state decides the
    // owner.
    unsafe {
        match (*tail::<C>(bp).as_ptr()).claim.back() {
            Back::Left => C::completed(Pbuf(bp, PhantomData)),
            Back::Wanted => sys::bdone(bp.as_ptr()),
            Back::Unclaimed => {}
        }
    }
}

/// A claim on a buf in flight. The sending thread takes the buf back, or leaves
/// it to [`Completion::completed`].
///
/// The second of the two events, claim and end of I/O, decides the owner.
/// Dropping a claim waits for the I/O and calls [`Completion::abandoned`].
///
/// # Invariants
///
/// [`Pbuf::send_claimable`] sent the buf, and this is its only claim.
pub struct Claim<C: Completion>(NonNull<sys::buf>, PhantomData<C>);

impl<C: Completion> Claim<C> {
    fn state(&self) -> &Handover {
        // SAFETY: the buf stays out of the pool until both sides have arrived.
        unsafe { &(*tail::<C>(self.0).as_ptr()).claim }
    }

    /// Leaves the buf to its completion. Gives it back when the I/O is over
    /// already. Sleeps: no.
    pub fn leave(self) -> Option<Pbuf<C>> {
        let this = ManuallyDrop::new(self);
        // Make a Pbuf, which owns its buf, only of a buf whose I/O is over.
        this.state().leave().then(|| Pbuf(this.0, PhantomData))
    }

    /// Takes the buf back. Sleeps: until the I/O is over.
    pub fn wait(self) -> Pbuf<C> {
        ManuallyDrop::new(self).take_back()
    }

    fn take_back(&self) -> Pbuf<C> {
        if !self.state().want() {
            // SAFETY: the buf lives until it is claimed. `iodone_claimable`
            // wakes this thread when the I/O is over.
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
        // SAFETY: we own the buf, and this is its last use. pbrelbo() requires
        // a bufobj and no vnode. `fill_unmanaged` allocated the pages without
        // an object, wired. The context is taken out before the buf goes to the
        // pool and dropped last: it keeps the mount.
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
