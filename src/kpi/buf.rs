// SPDX-License-Identifier: BSD-2-Clause
//! pbufs: the buf headers of paging I/O (buf(9), vm/vm_pager.c, sys/buf.h).
//!
//! A [`Pbuf`] is owned from the zone until it is dropped or submitted; a
//! submitted one belongs to the disk until its `b_iodone`, where it is owned
//! again. Dropping one undoes all that it holds: pages that nobody asked for
//! are freed, the mapping is removed, the creds and the buf go back.

use core::{
    ffi::{c_int, c_void},
    mem::ManuallyDrop,
    ptr::{self, NonNull},
    slice,
    sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering},
};

use super::{
    errno::Errno,
    sys, systm,
    vm_object::{Object, WriteLocked},
    vm_page::BusiedPage,
    vnode::{Device, Vnode},
    vnode_if::Reply,
};

/// The module's own zone of pbufs; the vnode pager's is private to it.
///
/// # Invariants
///
/// The pointer is null or a live secondary zone of `pbuf_zone`.
pub struct PbufZone {
    zone: AtomicPtr<sys::uma_zone>,
    max: AtomicUsize,
}

impl Default for PbufZone {
    fn default() -> Self {
        Self::new()
    }
}

impl PbufZone {
    /// No zone yet.
    pub const fn new() -> Self {
        Self { zone: AtomicPtr::new(ptr::null_mut()), max: AtomicUsize::new(0) }
    }

    /// How many bufs there can be.
    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    /// Make the zone, as large as the vnode pager's. May sleep.
    ///
    /// pbuf_zsecond_create() would preallocate `max` bufs in a keg that never
    /// gives anything back, anew at each kldload; so it is told 0 and the
    /// limit is set afterwards. Allocating and freeing a first stock of bufs
    /// fills the keg only as far as an earlier load has not done it.
    pub fn create(&self) -> Result<(), Errno> {
        // SAFETY: called once from MOD_LOAD, which may sleep; nswbuf is set at boot.
        unsafe {
            let stock = sys::nswbuf.max(16);
            let zone = sys::pbuf_zsecond_create(c"asyncpager".as_ptr(), 0);
            if zone.is_null() {
                return Err(Errno::ENOMEM);
            }
            let max = stock.saturating_mul(8);
            sys::uma_zone_set_max(zone, max);
            self.max.store(max as usize, Ordering::Relaxed);
            self.zone.store(zone, Ordering::Release);
            // The freed ones are a list through b_fsprivate1, which is theirs.
            let mut list: *mut sys::buf = ptr::null_mut();
            for _ in 0..stock {
                let bp = sys::shim_pbuf_alloc(zone, sys::M_WAITOK);
                (*bp).b_fsprivate1 = list.cast();
                list = bp;
            }
            let known = sys::shim_buf_is_wide(list) && (*list).b_data == (*list).b_kvabase;
            while let Some(bp) = NonNull::new(list) {
                list = (*bp.as_ptr()).b_fsprivate1.cast();
                sys::shim_pbuf_free(zone, bp.as_ptr());
            }
            if !known {
                self.destroy();
                return Err(Errno::ENOEXEC);
            }
        }
        Ok(())
    }

    /// Take the zone down. The caller has made sure that every buf is back.
    pub fn destroy(&self) {
        let zone = self.zone.swap(ptr::null_mut(), Ordering::AcqRel);
        if !zone.is_null() {
            // SAFETY: ours by the invariant; the swap makes this the only call.
            unsafe { sys::uma_zdestroy(zone) };
        }
    }

    /// A pbuf, or `None` when there is none at hand. Never sleeps.
    pub fn alloc(&self) -> Option<Pbuf> {
        let zone = self.zone.load(Ordering::Acquire);
        if zone.is_null() {
            return None;
        }
        // SAFETY: a live zone by the invariant.
        let bp = NonNull::new(unsafe { sys::shim_pbuf_alloc(zone, sys::M_NOWAIT) })?;
        // SAFETY: freshly allocated, so nobody else knows it.
        unsafe {
            let buf = &mut *bp.as_ptr();
            buf.b_npages = 0;
            buf.b_fsprivate1 = bp.as_ptr().cast();
            buf.b_fsprivate2 = ptr::null_mut();
            buf.b_fsprivate3 = zone.cast();
            buf.b_dirtyend = 0;
            buf.b_ckhash = 0;
            buf.b_runningbufspace = 0;
            let run = &mut buf.__bindgen_anon_1.__bindgen_anon_1;
            run.b_pgiodone = None;
            run.b_pgbefore = 0;
            run.b_pgafter = 0;
        }
        Some(Pbuf(bp))
    }
}

/// Pages that one buf can hold (maxphys).
pub fn max_pages() -> u32 {
    // SAFETY: set at boot, never changed.
    let bytes = unsafe { sys::maxphys };
    u32::try_from(bytes / u64::from(sys::PAGE)).unwrap_or(u32::MAX)
}

bitflags::bitflags! {
    /// Of `b_flags`, what paging I/O touches.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct BufFlags: u32 {
        /// Nobody waits for the buf.
        const ASYNC = sys::B_ASYNC as u32;
        /// The I/O is over; bwait() returns.
        const DONE = sys::B_DONE as u32;
    }

    /// Of `b_ioflags`, what a completed read may have.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IoFlags: u16 {
        /// `b_error` tells why the transfer failed.
        const ERROR = sys::BIO_ERROR as u16;
    }
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

/// What somebody who waits for an I/O gets: nothing, it calls back; or the buf.
pub enum Form {
    /// B_ASYNC: `b_iodone` gets the buf in the disk's completion thread.
    Async(unsafe extern "C" fn(*mut sys::buf)),
    /// The calling thread waits in bwait().
    Sync,
}

/// An owned pbuf that is not in flight.
///
/// The fields that paging I/O leaves unused carry the request:
///
/// | field | on every part | on the lead |
/// |---|---|---|
/// | `b_fsprivate1` | its lead (itself if it is one) | itself |
/// | `b_fsprivate2` | the next part, until submitted | parts not yet arrived |
/// | `b_fsprivate3` | the zone | the zone |
/// | `b_dirtyoff` | when it was sent, in microseconds | |
/// | `b_dirtyend` | | first error of any part |
/// | `b_ckhash` | bit 63: read again already; bit 59: sent to a device with little to do; bits 52 to 58: entry of the latency table | low half: pages requested; bit 62: last was valid in part |
/// | `b_pgiodone`, `b_caller1` | | the reply |
///
/// Two kinds of buf have no request's pages. One that reads ahead on its own
/// (bit 60 of `b_ckhash`) keeps its object in `b_caller1`, a tag in
/// `b_fsprivate2`, and in `b_dirtyend` how it was judged. One that reads a part of an indirect block (bit 61) has
/// pages of its own, stays mapped, keeps the level in `b_dirtyend` and a tag in
/// `b_fsprivate2`, and is a part of the request that `b_fsprivate1` leads.
///
/// # Invariants
///
/// The buf came from a live [`PbufZone`] and nobody else uses it, but for a
/// lead's atomics and the one of a buf [on trial](OnTrial).
/// `b_pages[..b_npages]` are busied pages: the first `b_pgbefore` and the last
/// `b_pgafter` of them were allocated by us, the ones between belong to the
/// request. On a lead, `b_pages` from `b_pgbefore` on holds all pages of the
/// request, those behind `b_npages` included.
#[repr(transparent)]
pub struct Pbuf(NonNull<sys::buf>);

// SAFETY: a pbuf is not tied to a thread: BUF_KERNPROC() disowns its lock
// before another thread completes it.
unsafe impl Send for Pbuf {}

const AGAIN: u64 = 1 << 63;
const LAST_PARTLY_VALID: u64 = 1 << 62;
const INDIRECT: u64 = 1 << 61;
const HOLDS_OBJECT: u64 = 1 << 60;
const ALONE: u64 = 1 << 59;
const NUMBER: u64 = 0x7f << 52;

impl Pbuf {
    /// # Safety
    ///
    /// `bp` is a buf that [`Pbuf::send`] or [`Pbuf::send_on_trial`] has sent
    /// and that has completed.
    pub unsafe fn from_iodone(bp: NonNull<sys::buf>) -> Self {
        Self(bp)
    }

    fn buf(&self) -> &sys::buf {
        // SAFETY: live and ours by the invariant.
        unsafe { self.0.as_ref() }
    }

    fn buf_mut(&mut self) -> &mut sys::buf {
        // SAFETY: live and ours by the invariant.
        unsafe { self.0.as_mut() }
    }

    fn counts(&self) -> (usize, usize, usize) {
        let buf = self.buf();
        // SAFETY: the union holds the paging fields since `alloc`.
        let run = unsafe { &buf.__bindgen_anon_1.__bindgen_anon_1 };
        let all = buf.b_npages.max(0) as usize;
        let before = (run.b_pgbefore.max(0) as usize).min(all);
        let after = (run.b_pgafter.max(0) as usize).min(all.saturating_sub(before));
        (before, after, all)
    }

    fn set_counts(&mut self, before: usize, after: usize, all: usize) {
        let buf = self.buf_mut();
        buf.b_npages = all as c_int;
        // SAFETY: the union holds the paging fields since `alloc`.
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

    /// Give an empty buf `count` pages of its own, for a part of an indirect
    /// block. False when there is no memory at hand.
    pub fn fill_indirect(&mut self, count: u32) -> bool {
        self.buf_mut().b_ckhash |= INDIRECT;
        (0..count).all(|_| {
            // SAFETY: without VM_ALLOC_WAITOK this does not sleep.
            let page = unsafe { sys::vm_page_alloc_noobj(sys::VM_ALLOC_WIRED) };
            !page.is_null() && self.push(page)
        })
    }

    /// Whether this buf reads a part of an indirect block.
    fn is_indirect(&self) -> bool {
        self.buf().b_ckhash & INDIRECT != 0
    }

    /// What a buf with pages of its own has read.
    pub fn indirect_bytes(&self) -> &[u8] {
        let (.., all) = self.counts();
        let buf = self.buf();
        if !self.is_indirect() || buf.b_bufobj.is_null() {
            return &[];
        }
        // SAFETY: `address` mapped all pages at b_kvabase; such a buf stays
        // mapped until it is dropped, and nobody reads into it now.
        unsafe { slice::from_raw_parts(buf.b_kvabase.cast(), all * sys::PAGE as usize) }
    }

    /// Let a buf that reads a request's block map be the first part of the
    /// request that `lead` carries; more come with [`Parts::join`].
    pub fn join(&mut self, lead: Self) {
        lead.give_up();
        let lead = ManuallyDrop::new(lead).0;
        Self::outstanding(lead).store(1, Ordering::Release);
        self.buf_mut().b_fsprivate1 = lead.as_ptr().cast();
    }

    /// The lead of the request that this part belongs to.
    pub fn of_lead(&self) -> Option<&Self> {
        let lead = &raw const self.buf().b_fsprivate1;
        // SAFETY: not null, this names a lead, which lives until its last
        // part has arrived; and a Pbuf is nothing but such a pointer.
        (!self.buf().b_fsprivate1.is_null()).then(|| unsafe { &*lead.cast() })
    }

    /// Which level of the block map this buf reads; 0 at first.
    pub fn level(&self) -> usize {
        self.buf().b_dirtyend.max(0) as usize
    }

    /// Make a completed buf read another part of the device: the block map's
    /// next level.
    pub fn aim(&mut self, level: usize, blkno: i64) {
        let buf = self.buf_mut();
        buf.b_dirtyend = level as c_int;
        buf.b_blkno = blkno;
        buf.b_iooffset = blkno.wrapping_mul(i64::from(sys::DEV_BSIZE));
    }

    /// Keep the object of a buf that reads ahead on its own until the buf is
    /// dropped, and note a `tag` for its completion.
    pub fn hold_object(&mut self, object: &Object<'_>, tag: usize) {
        // SAFETY: a live object; given back by `drop`.
        unsafe { sys::vm_object_pip_add(object.as_ptr(), 1) };
        let buf = self.buf_mut();
        buf.b_caller1 = object.as_ptr().cast();
        buf.b_fsprivate2 = tag as *mut c_void;
        buf.b_ckhash |= HOLDS_OBJECT;
    }

    /// What [`Pbuf::hold_object`] or [`Pbuf::set_tag`] was told.
    pub fn tag(&self) -> usize {
        self.buf().b_fsprivate2 as usize
    }

    /// Note a number on a buf without a request's pages.
    pub fn set_tag(&mut self, tag: usize) {
        self.buf_mut().b_fsprivate2 = tag as *mut c_void;
    }

    /// The device that the buf reads from.
    pub fn device(&self) -> Option<Device<'_>> {
        // SAFETY: the pages or the object that the buf keeps keep the mount.
        NonNull::new(self.buf().b_bufobj).map(|bo| unsafe { Device::new(bo) })
    }

    /// Note which entry of the latency table counts the transfer, and whether
    /// the device had next to nothing to do.
    pub fn set_sent(&mut self, number: u8, alone: bool) {
        let kept = self.buf().b_ckhash & !(ALONE | NUMBER);
        let number = (u64::from(number) << NUMBER.trailing_zeros()) & NUMBER;
        self.buf_mut().b_ckhash = kept | number | if alone { ALONE } else { 0 };
    }

    /// What [`Pbuf::set_sent`] was told.
    pub fn how_sent(&self) -> (u8, bool) {
        let kept = self.buf().b_ckhash;
        (((kept & NUMBER) >> NUMBER.trailing_zeros()) as u8, kept & ALONE != 0)
    }

    /// Microseconds since the buf was sent.
    pub fn took_us(&self) -> u32 {
        (systm::uptime_us() as u32).wrapping_sub(self.buf().b_dirtyoff as u32)
    }

    /// Build the rest of the header: what to read, from where, on whose behalf.
    /// Takes references to the calling thread's creds.
    pub fn address(
        &mut self,
        vnode: Vnode<'_>,
        device: Device<'_>,
        transfer: Transfer,
        unmapped: bool,
    ) {
        let npages = self.counts().2 as c_int;
        let bp = self.0.as_ptr();
        let buf = self.buf_mut();
        buf.b_iocmd = sys::BIO_READ as u16;
        buf.b_blkno = transfer.blkno;
        buf.b_iooffset = transfer.blkno.wrapping_mul(i64::from(sys::DEV_BSIZE));
        buf.b_bcount = i64::from(transfer.bytes);
        buf.b_bufsize = i64::from(transfer.bytes);
        buf.b_offset = i64::from(transfer.page_offset);
        // SAFETY: a new buf without creds and without a bufobj; the pages are
        // in place, and b_kvabase spans max_pages() of kernel address space.
        unsafe {
            if unmapped {
                buf.b_data = sys::unmapped_buf;
            } else {
                sys::pmap_qenter(buf.b_kvabase as u64, self.slot(0), npages);
                let buf = self.buf_mut();
                buf.b_data = buf.b_kvabase.add(transfer.page_offset as usize);
            }
            sys::shim_hold_creds(bp);
            sys::pbgetbo(device.as_ptr(), bp);
        }
        self.buf_mut().b_vp = vnode.as_ptr();
    }

    /// Make this buf the one that carries the request, all of its pages and
    /// its reply, and that is freed last. False, and nothing done, when it
    /// has no room.
    pub fn lead(
        &mut self,
        reply: &Reply,
        vnode: Vnode<'_>,
        pages: &[BusiedPage],
        last_partly_valid: bool,
    ) -> bool {
        let (before, after, all) = self.counts();
        let end = before.saturating_add(pages.len());
        if end > max_pages() as usize + 1 || (end > all && after > 0) {
            return false;
        }
        // SAFETY: `end` is within the array, which the caller's pages are not
        // in; BusiedPage is a transparent pointer.
        unsafe { self.slot(before).copy_from_nonoverlapping(pages.as_ptr().cast(), pages.len()) };
        let (iodone, arg) = reply.parts();
        let buf = self.buf_mut();
        buf.b_vp = vnode.as_ptr();
        buf.b_caller1 = arg;
        buf.b_ckhash = pages.len() as u64 | if last_partly_valid { LAST_PARTLY_VALID } else { 0 };
        buf.__bindgen_anon_1.__bindgen_anon_1.b_pgiodone = iodone;
        true
    }

    /// Pages of the request, on the lead.
    pub fn requested(&self) -> &[BusiedPage] {
        let (before, ..) = self.counts();
        let count = (self.buf().b_ckhash & 0xffff_ffff) as usize;
        // SAFETY: `lead` wrote them; they stay busied until the reply.
        unsafe { slice::from_raw_parts(self.slot(before).cast(), count) }
    }

    /// Whether the request's last page was valid in part before the read.
    pub fn last_partly_valid(&self) -> bool {
        self.buf().b_ckhash & LAST_PARTLY_VALID != 0
    }

    /// The reply of the request that this lead carries.
    pub fn reply(&mut self) -> Reply {
        let (before, ..) = self.counts();
        let count = (self.buf().b_ckhash & 0xffff_ffff) as c_int;
        let pages = self.slot(before);
        let buf = self.buf_mut();
        let arg = buf.b_caller1;
        // SAFETY: the union holds the paging fields; taken, so that the reply
        // cannot be had twice.
        let iodone = unsafe { buf.__bindgen_anon_1.__bindgen_anon_1.b_pgiodone.take() };
        // SAFETY: the pages lie in this buf, which outlives the reply in complete().
        unsafe { Reply::new(iodone, arg, pages, count) }
    }

    /// Where in `b_fsprivate2` of the lead the parts are counted.
    fn outstanding(lead: NonNull<sys::buf>) -> &'static AtomicUsize {
        // SAFETY: a lead lives until its last part has arrived, and nobody
        // keeps the reference beyond that; a pointer-sized, aligned field
        // that is used as an atomic only, once a part is in flight.
        unsafe { AtomicUsize::from_ptr((&raw mut (*lead.as_ptr()).b_fsprivate2).cast()) }
    }

    fn first_error(lead: NonNull<sys::buf>) -> &'static AtomicI32 {
        // SAFETY: as for `outstanding`.
        unsafe { AtomicI32::from_ptr(&raw mut (*lead.as_ptr()).b_dirtyend) }
    }

    /// This part's I/O is over and so is its share of the request. Gives the
    /// lead to whoever arrives last, with the first error that any part met.
    pub fn arrive(self, outcome: Result<(), Errno>) -> Option<(Self, Result<(), Errno>)> {
        let lead: NonNull<sys::buf> = NonNull::new(self.buf().b_fsprivate1.cast())?;
        if let Err(error) = outcome {
            let _ = Self::first_error(lead).compare_exchange(
                0,
                error.code(),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
        }
        if lead == self.0 {
            // The last to arrive frees the lead.
            let _ = ManuallyDrop::new(self);
        } else {
            drop(self);
        }
        if Self::outstanding(lead).fetch_sub(1, Ordering::AcqRel) != 1 {
            return None;
        }
        let outcome = Errno::check(Self::first_error(lead).load(Ordering::Relaxed));
        Some((Self(lead), outcome))
    }

    /// Send the buf to its device. In the sync form this waits and gives the
    /// buf back; in the async form the buf now belongs to the disk, and may
    /// be gone already.
    pub fn send(self, form: &Form) -> Option<Self> {
        match form {
            Form::Async(iodone) => {
                self.give_up();
                self.start(*iodone);
                None
            }
            Form::Sync => {
                let bp = self.start(sys::bdone);
                // SAFETY: bdone() says when the I/O is over; then the buf is ours again.
                unsafe { sys::bwait(bp.as_ptr(), sys::PVM as u8, c"appgin".as_ptr()) };
                Some(Self(bp))
            }
        }
    }

    /// Send the buf to its device before it is known whether what it reads is
    /// right. `iodone` is called with it as in the async form, and passes it
    /// on to [`Pbuf::back_from_trial`].
    pub fn send_on_trial(self, iodone: unsafe extern "C" fn(*mut sys::buf)) -> OnTrial {
        self.give_up();
        OnTrial(self.start(iodone))
    }

    /// The I/O of a buf that was sent on trial is over. Gives it back if it
    /// was accepted; else it is up to who judges it.
    pub fn back_from_trial(self) -> Option<Self> {
        let this = ManuallyDrop::new(self);
        match OnTrial::state(this.0).swap(BACK, Ordering::AcqRel) {
            ACCEPTED => Some(Self(this.0)),
            REJECTED => {
                // SAFETY: completed; its judge waits in bwait() and has it then.
                unsafe { sys::bdone(this.0.as_ptr()) };
                None
            }
            _ => None,
        }
    }

    /// Send the buf, which belongs to the disk until `iodone` has been called.
    fn start(self, iodone: unsafe extern "C" fn(*mut sys::buf)) -> NonNull<sys::buf> {
        let this = ManuallyDrop::new(self);
        let bp = this.0.as_ptr();
        // SAFETY: the header is complete (`address`); from bstrategy() on the
        // buf is not ours, and nothing here touches it after.
        unsafe {
            let bytes = (*bp).b_bcount as c_int;
            (*bp).b_flags &= !BufFlags::DONE.bits();
            (*bp).b_ioflags = IoFlags::empty().bits();
            (*bp).b_error = 0;
            (*bp).b_resid = 0;
            (*bp).b_dirtyoff = systm::uptime_us() as u32 as c_int;
            sys::shim_runningbuf_claim(bp, bytes);
            sys::shim_VM_CNT_VNODE_IN((*bp).b_npages as u32);
            (*bp).b_iodone = Some(iodone);
            sys::shim_bstrategy(bp);
        }
        this.0
    }

    /// Let the buf's lock belong to no thread: this one goes on without it.
    fn give_up(&self) {
        let bp = self.0.as_ptr();
        // SAFETY: ours, and locked by this thread unless B_ASYNC says that it
        // has been given up before.
        unsafe {
            if !BufFlags::from_bits_retain((*bp).b_flags).contains(BufFlags::ASYNC) {
                (*bp).b_flags |= BufFlags::ASYNC.bits();
                sys::shim_BUF_KERNPROC(bp);
            }
        }
    }

    /// Whether a completed transfer failed or fell short.
    pub fn has_failed(&self) -> bool {
        let buf = self.buf();
        IoFlags::from_bits_retain(buf.b_ioflags).contains(IoFlags::ERROR) || buf.b_resid != 0
    }

    /// Take the I/O's traces away and tell how it went. A transfer that is
    /// shorter than asked for is an error, whatever the device thinks.
    pub fn settle(&mut self) -> Result<(), Errno> {
        let bp = self.0.as_ptr();
        // SAFETY: a completed buf is ours.
        unsafe { sys::runningbufwakeup(bp) };
        if !self.is_indirect() {
            self.unmap();
        }
        let buf = self.buf();
        if IoFlags::from_bits_retain(buf.b_ioflags).contains(IoFlags::ERROR) {
            Errno::check(buf.b_error)?;
            return Err(Errno::EIO);
        }
        if buf.b_resid != 0 { Err(Errno::EIO) } else { Ok(()) }
    }

    fn unmap(&mut self) {
        let npages = self.counts().2 as c_int;
        // SAFETY: unmapped_buf is set at boot. A buf with a bufobj that is
        // not unmapped was mapped by `address`, at b_kvabase, all its pages.
        unsafe {
            let buf = self.0.as_mut();
            if !buf.b_bufobj.is_null() && buf.b_data != sys::unmapped_buf {
                sys::pmap_qremove(buf.b_kvabase as u64, npages);
                buf.b_data = sys::unmapped_buf;
            }
        }
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
        // What is left is the request's, and begins where it did.
        if before > 0 {
            // SAFETY: moves entries within the array: the pages of the
            // request, and on a lead those behind b_npages.
            unsafe {
                let rest = (all - before - after).max((self.buf().b_ckhash & 0xffff_ffff) as usize);
                ptr::copy(self.slot(before), self.slot(0), rest);
            }
        }
        self.set_counts(0, 0, all - before - after);
    }

    /// Make a failed buf, whose extras are gone, ask for the pages of the
    /// request only; `behind` of its pages had come before them. False, and
    /// nothing done, the second time.
    pub fn narrow(&mut self, behind: u32) -> bool {
        let npages = self.counts().2;
        let unmapped = self.vnode().is_some_and(|vnode| vnode.takes_unmapped());
        let slot = self.slot(0);
        let buf = self.buf_mut();
        if buf.b_ckhash & AGAIN != 0 {
            return false;
        }
        buf.b_ckhash |= AGAIN;
        let skipped = i64::from(behind) * i64::from(sys::PAGE);
        let bytes = (buf.b_bcount - skipped).min(npages as i64 * i64::from(sys::PAGE));
        buf.b_blkno += skipped / i64::from(sys::DEV_BSIZE);
        buf.b_iooffset = buf.b_blkno.wrapping_mul(i64::from(sys::DEV_BSIZE));
        buf.b_bcount = bytes;
        buf.b_bufsize = bytes;
        if !unmapped {
            // SAFETY: `settle` removed the old mapping; see `address`.
            unsafe { sys::pmap_qenter(buf.b_kvabase as u64, slot, npages as c_int) };
            buf.b_data = buf.b_kvabase;
        }
        true
    }

    /// Where on the device the buf reads from, in units of DEV_BSIZE.
    pub fn blkno(&self) -> i64 {
        self.buf().b_blkno
    }

    /// Bytes that the buf asked the device for.
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

/// A buf that the disk has and that is yet to be judged. Who comes second,
/// the judge or its I/O, has it; dropped, it is rejected.
///
/// # Invariants
///
/// The buf was sent by [`Pbuf::send_on_trial`] and has not been judged.
pub struct OnTrial(NonNull<sys::buf>);

/// What a buf on trial has come to; at first nothing.
const BACK: i32 = 1;
const ACCEPTED: i32 = 2;
const REJECTED: i32 = 3;

impl OnTrial {
    /// What it reads is right: its completion gets it, or the caller if it is
    /// back already. Never sleeps.
    pub fn accept(self) -> Option<Pbuf> {
        let this = ManuallyDrop::new(self);
        let before = Self::state(this.0).swap(ACCEPTED, Ordering::AcqRel);
        (before == BACK).then(|| Pbuf(this.0))
    }

    /// What it reads is wrong. Sleeps until the I/O is over.
    pub fn reject(self) -> Pbuf {
        ManuallyDrop::new(self).take_back()
    }

    fn take_back(&self) -> Pbuf {
        if Self::state(self.0).swap(REJECTED, Ordering::AcqRel) != BACK {
            // SAFETY: alive until it is judged, and `back_from_trial` says
            // when the I/O is over.
            unsafe { sys::bwait(self.0.as_ptr(), sys::PVM as u8, c"appgin".as_ptr()) };
        }
        Pbuf(self.0)
    }

    fn state(bp: NonNull<sys::buf>) -> &'static AtomicI32 {
        // SAFETY: an aligned field that is used as an atomic only while the
        // buf is on trial; it lives until both have come, and nobody keeps
        // the reference beyond that.
        unsafe { AtomicI32::from_ptr(&raw mut (*bp.as_ptr()).b_dirtyend) }
    }
}

impl Drop for OnTrial {
    fn drop(&mut self) {
        drop(self.take_back());
    }
}

impl Drop for Pbuf {
    fn drop(&mut self) {
        self.unmap();
        self.finish_extras(|_| false);
        let (.., all) = self.counts();
        let bp = self.0.as_ptr();
        let kind = self.buf().b_ckhash;
        let object: *mut sys::vm_object = self.buf().b_caller1.cast();
        if kind & INDIRECT != 0 {
            for i in 0..all {
                // SAFETY: allocated wired by `fill_indirect`, and nobody else's.
                unsafe {
                    let page = *self.slot(i);
                    sys::vm_page_unwire_noq(page);
                    sys::vm_page_free(page);
                }
            }
        }
        // SAFETY: ours; this is its last use. pbrelbo() wants a buf that has
        // a bufobj and no vnode.
        unsafe {
            self.slot(0).write_bytes(0, all.max((*bp).b_ckhash as u32 as usize));
            (*bp).b_vp = ptr::null_mut();
            (*bp).b_ckhash = 0;
            if !(*bp).b_bufobj.is_null() {
                sys::pbrelbo(bp);
            }
            let zone: *mut c_void = (*bp).b_fsprivate3;
            sys::shim_pbuf_free(zone.cast(), bp);
            if kind & HOLDS_OBJECT != 0 {
                // Vnode and mount may go away with this.
                sys::vm_object_pip_wakeup(object);
            }
        }
    }
}

/// The bufs of one request, before any of them is sent.
///
/// # Invariants
///
/// A list through `b_fsprivate2` of `len` owned pbufs.
pub struct Parts {
    first: Option<NonNull<sys::buf>>,
    last: Option<NonNull<sys::buf>>,
    len: usize,
}

impl Default for Parts {
    fn default() -> Self {
        Self::new()
    }
}

impl Parts {
    /// No bufs.
    pub const fn new() -> Self {
        Self { first: None, last: None, len: 0 }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Append a part.
    pub fn push(&mut self, part: Pbuf) {
        let bp = ManuallyDrop::new(part).0;
        match self.last {
            // SAFETY: owned by the list.
            Some(last) => unsafe { (*last.as_ptr()).b_fsprivate2 = bp.as_ptr().cast() },
            None => self.first = Some(bp),
        }
        self.last = Some(bp);
        self.len += 1;
    }

    /// Take the first part off the list.
    pub fn pop(&mut self) -> Option<Pbuf> {
        let bp = self.first?;
        // SAFETY: owned by the list.
        self.first = unsafe { NonNull::new((*bp.as_ptr()).b_fsprivate2.cast()) };
        if self.first.is_none() {
            self.last = None;
        }
        self.len -= 1;
        // SAFETY: as above.
        unsafe { (*bp.as_ptr()).b_fsprivate2 = ptr::null_mut() };
        Some(Pbuf(bp))
    }

    /// Send all parts of a request to the device; `lead` carries it, and is
    /// one of the parts itself when `parts` is empty. Gives nothing back in
    /// the async form; in the sync form `arrived` gets each part in turn.
    /// `sending` sees each before it goes.
    pub fn send(
        mut self,
        lead: Pbuf,
        form: &Form,
        sending: impl Fn(&mut Pbuf),
        mut arrived: impl FnMut(Pbuf),
    ) {
        let own = self.is_empty();
        if !own && matches!(form, Form::Async(_)) {
            lead.give_up();
        }
        let lead = ManuallyDrop::new(lead).0;
        Pbuf::outstanding(lead).store(if own { 1 } else { self.len }, Ordering::Release);
        if own {
            let mut part = Pbuf(lead);
            sending(&mut part);
            if let Some(part) = part.send(form) {
                arrived(part);
            }
            return;
        }
        while let Some(mut part) = self.pop() {
            part.buf_mut().b_fsprivate1 = lead.as_ptr().cast();
            sending(&mut part);
            if let Some(part) = part.send(form) {
                arrived(part);
            }
        }
    }
}

impl Parts {
    /// Send more parts of the request that `part` belongs to, and which has
    /// not arrived yet itself.
    pub fn join(mut self, part: &Pbuf, form: &Form, sending: impl Fn(&mut Pbuf)) {
        let lead = part.buf().b_fsprivate1;
        let Some(counted) = NonNull::new(lead.cast()) else { return };
        Pbuf::outstanding(counted).fetch_add(self.len, Ordering::AcqRel);
        while let Some(mut part) = self.pop() {
            part.buf_mut().b_fsprivate1 = lead;
            sending(&mut part);
            let _async = part.send(form);
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

/// Completed bufs that wait for a thread, each with what is to be done with it.
///
/// # Invariants
///
/// A list, through `b_bobufs`, of owned pbufs: a buf of a device's bufobj is
/// on none of the bufobj's own lists. `tqe_prev` holds a `fn(Pbuf)`.
pub struct Line {
    first: Option<NonNull<sys::buf>>,
    last: Option<NonNull<sys::buf>>,
}

// SAFETY: owned pbufs, which are not tied to a thread.
unsafe impl Send for Line {}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl Line {
    /// Nobody waits.
    pub const fn new() -> Self {
        Self { first: None, last: None }
    }

    /// Append a buf.
    pub fn push(&mut self, part: Pbuf, go_on: fn(Pbuf)) {
        let bp = ManuallyDrop::new(part).0;
        // SAFETY: owned by the list from here on, as is the last one.
        unsafe {
            (*bp.as_ptr()).b_bobufs.tqe_next = ptr::null_mut();
            (*bp.as_ptr()).b_bobufs.tqe_prev = go_on as *mut *mut sys::buf;
            match self.last {
                Some(last) => (*last.as_ptr()).b_bobufs.tqe_next = bp.as_ptr(),
                None => self.first = Some(bp),
            }
        }
        self.last = Some(bp);
    }

    /// Take the first buf off.
    pub fn pop(&mut self) -> Option<(Pbuf, fn(Pbuf))> {
        let bp = self.first?;
        // SAFETY: owned by the list; `push` stored a fn(Pbuf).
        let (next, go_on) = unsafe {
            let link = (*bp.as_ptr()).b_bobufs;
            let go_on = core::mem::transmute::<*mut *mut sys::buf, fn(Pbuf)>(link.tqe_prev);
            (link.tqe_next, go_on)
        };
        self.first = NonNull::new(next);
        if self.first.is_none() {
            self.last = None;
        }
        Some((Pbuf(bp), go_on))
    }
}
