// SPDX-License-Identifier: BSD-2-Clause
//! Where bufs are while nobody owns them, and in which order they wait.

use core::{
    cell::UnsafeCell,
    ffi::CStr,
    marker::PhantomData,
    mem::{self, ManuallyDrop, MaybeUninit},
    ptr::{self, NonNull},
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

use super::{Pbuf, max_pages};
use crate::kpi::{condvar::Condvar, errno::Errno, mutex::Mutex, sync::Handover, sys};

/// What lies behind a buf and its pages in memory.
///
/// # Invariants
///
/// `context` is initialized while the buf is out of its pool, and belongs to
/// the buf's owner. `next` belongs to the pool or to the [`Fifo`] that the buf
/// is in. `claim` may be used by anybody who knows that the buf is out.
#[repr(C)]
pub(super) struct Tail<C: 'static> {
    pub(super) claim: Handover,
    pub(super) pool: &'static Pool<C>,
    next: *mut sys::buf,
    pub(super) context: UnsafeCell<MaybeUninit<C>>,
}

/// Where the tail of a buf is: `b_caller1` names it from [`Pool::create`] on.
///
/// # Safety
///
/// `bp` is a buf of a live `Pool<C>`.
pub(super) unsafe fn tail<C>(bp: NonNull<sys::buf>) -> NonNull<Tail<C>> {
    // SAFETY: by the caller's promise; the pointer is never null.
    unsafe { NonNull::new_unchecked((*bp.as_ptr()).b_caller1.cast()) }
}

/// A fixed number of bufs, made when the module is loaded.
///
/// The bufs are the module's own and not those of `pbuf_zone`: that zone's keg
/// is filled at boot for the pagers that exist then, and a buf taken from it may
/// be the one that the swap pager needs to free memory. No allocation fails
/// while a buf is free, and a buf that comes back wakes a thread that waits; a
/// limited uma(9) zone keeps up to half of its items in other CPUs' caches.
///
/// # Invariants
///
/// `memory` is null or holds `len` bufs of [`Pool::stride`] bytes each. The
/// list in `free` consists of those that nobody owns.
pub struct Pool<C: 'static> {
    memory: AtomicPtr<u8>,
    len: AtomicUsize,
    free: Mutex<Free>,
    available: Condvar,
    context: PhantomData<fn() -> C>,
}

/// The bufs that are in the pool, and the threads that wait for one.
struct Free {
    first: *mut sys::buf,
    room: Room,
    /// Threads that are still to be asked whether they may have what has come back.
    to_ask: usize,
}

/// What there is of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bufs that are free.
    pub free: usize,
    /// Threads that wait for one.
    pub waiting: usize,
}

// SAFETY: bufs in the pool, which are not tied to a thread.
unsafe impl Send for Free {}

impl<C> Default for Pool<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> Pool<C> {
    /// No bufs yet.
    pub const fn new() -> Self {
        Self {
            memory: AtomicPtr::new(ptr::null_mut()),
            len: AtomicUsize::new(0),
            free: Mutex::new(Free {
                first: ptr::null_mut(),
                room: Room { free: 0, waiting: 0 },
                to_ask: 0,
            }),
            available: Condvar::new(),
            context: PhantomData,
        }
    }

    /// Bytes from one buf to the next, and where its tail begins.
    fn stride() -> (usize, usize) {
        let pages = (max_pages() as usize).saturating_add(1);
        let end = mem::offset_of!(sys::buf, b_pages)
            .saturating_add(pages.saturating_mul(size_of::<sys::vm_page_t>()))
            .max(size_of::<sys::buf>());
        let tail = end.next_multiple_of(align_of::<Tail<C>>());
        // A cache line each: neighbours are used by different CPUs.
        (tail.saturating_add(size_of::<Tail<C>>()).next_multiple_of(64), tail)
    }

    /// Make `len` bufs. May sleep; called once from MOD_LOAD.
    pub fn create(&'static self, name: &'static CStr, len: usize) -> Result<(), Errno> {
        let (stride, offset) = Self::stride();
        let bytes = stride.checked_mul(len).filter(|n| *n > 0).ok_or(Errno::EINVAL)?;
        self.free.init(name);
        self.available.init(name);
        // SAFETY: module events may sleep. malloc(9) zeroes the memory and
        // aligns it for a buf; each buf is initialized before it is in the list.
        unsafe {
            let memory: *mut u8 = sys::shim_malloc_waitok(bytes).cast();
            self.memory.store(memory, Ordering::Relaxed);
            for i in 0..len {
                let bp: *mut sys::buf = memory.add(i * stride).cast();
                let tail: *mut Tail<C> = memory.add(i * stride + offset).cast();
                tail.write(Tail {
                    claim: Handover::new(),
                    pool: self,
                    next: ptr::null_mut(),
                    context: UnsafeCell::new(MaybeUninit::uninit()),
                });
                (*bp).b_caller1 = tail.cast();
                if !sys::shim_buf_init(bp) {
                    self.destroy();
                    return Err(Errno::ENOMEM);
                }
                self.len.store(i + 1, Ordering::Relaxed);
                self.put(bp);
            }
        }
        Ok(())
    }

    /// Give all memory back. May sleep. The caller has made sure that every
    /// buf is in the pool.
    pub fn destroy(&self) {
        let memory = self.memory.swap(ptr::null_mut(), Ordering::AcqRel);
        if memory.is_null() {
            return;
        }
        let (stride, _) = Self::stride();
        for i in 0..self.len.swap(0, Ordering::Relaxed) {
            // SAFETY: one of `len` bufs, which nobody uses any more.
            unsafe { sys::shim_buf_fini(memory.add(i * stride).cast()) };
        }
        let mut free = self.free.lock();
        (free.first, free.room.free) = (ptr::null_mut(), 0);
        drop(free);
        self.available.destroy();
        self.free.destroy();
        // SAFETY: from shim_malloc_waitok(), and the swap makes this the only free.
        unsafe { sys::shim_free(memory.cast()) };
    }

    /// How many bufs there are, free or not.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// How many bufs are free. A hint.
    pub fn room(&self) -> Room {
        self.free.lock().room
    }

    /// Whether there is no buf at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A buf with `context`, if one is free and `admit` agrees; else the context
    /// comes back. Never sleeps.
    pub fn alloc(&self, admit: impl Fn(Room) -> bool, context: C) -> Result<Pbuf<C>, C> {
        let mut free = self.free.lock();
        match Self::take(&mut free, &admit) {
            Some(bp) => {
                drop(free);
                Ok(Pbuf::new(bp, context))
            }
            None => Err(context),
        }
    }

    /// A buf with `context`, as soon as one is free and `admit` agrees, which is
    /// asked again with each buf that comes back. Sleeps until then; the caller
    /// owns no buf that it has not sent.
    pub fn wait(&self, admit: impl Fn(Room) -> bool, context: C) -> Pbuf<C> {
        let mut free = self.free.lock();
        let bp = loop {
            if let Some(bp) = Self::take(&mut free, &admit) {
                break bp;
            }
            self.ask_next(&mut free);
            free.room.waiting += 1;
            free = self.available.wait(free);
            free.room.waiting = free.room.waiting.saturating_sub(1);
        };
        self.ask_next(&mut free);
        drop(free);
        Pbuf::new(bp, context)
    }

    fn take(free: &mut Free, admit: &impl Fn(Room) -> bool) -> Option<NonNull<sys::buf>> {
        let bp = NonNull::new(free.first).filter(|_| admit(free.room))?;
        // SAFETY: a buf of the pool by the invariant.
        free.first = unsafe { (*tail::<C>(bp).as_ptr()).next };
        free.room.free = free.room.free.saturating_sub(1);
        Some(bp)
    }

    /// Wake the next of the threads that wait, if there are bufs for it. One after
    /// the other is asked, each by the one before it: the completion thread, which
    /// brings the buf, wakes the first only.
    fn ask_next(&self, free: &mut Free) {
        if free.to_ask > 0 && free.room.waiting > 0 && free.room.free > 0 {
            free.to_ask -= 1;
            self.available.signal();
        }
    }

    /// Put a buf into the pool.
    pub(super) fn put(&self, bp: *mut sys::buf) {
        let mut free = self.free.lock();
        if let Some(bp) = NonNull::new(bp) {
            // SAFETY: a buf of the pool that nobody owns any more.
            unsafe { (*tail::<C>(bp).as_ptr()).next = free.first };
            free.first = bp.as_ptr();
            free.room.free += 1;
        }
        free.to_ask = free.room.waiting;
        self.ask_next(&mut free);
    }
}

/// Owned bufs that wait for a thread, first in first out.
///
/// # Invariants
///
/// A list, through the tails' `next`, of owned bufs; `last` is its last one.
pub struct Fifo<C: 'static> {
    first: Option<NonNull<sys::buf>>,
    last: Option<NonNull<sys::buf>>,
    len: usize,
    context: PhantomData<C>,
}

// SAFETY: owned bufs, which are not tied to a thread.
unsafe impl<C: Send> Send for Fifo<C> {}

impl<C> Default for Fifo<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> Fifo<C> {
    /// Nothing waits.
    pub const fn new() -> Self {
        Self { first: None, last: None, len: 0, context: PhantomData }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Append a buf.
    pub fn push(&mut self, buf: Pbuf<C>) {
        let bp = ManuallyDrop::new(buf).0;
        // SAFETY: owned by the list from here on, as is the last one.
        unsafe {
            (*tail::<C>(bp).as_ptr()).next = ptr::null_mut();
            match self.last {
                Some(last) => (*tail::<C>(last).as_ptr()).next = bp.as_ptr(),
                None => self.first = Some(bp),
            }
        }
        self.last = Some(bp);
        self.len += 1;
    }

    /// Take the first buf off.
    pub fn pop(&mut self) -> Option<Pbuf<C>> {
        let bp = self.first?;
        // SAFETY: owned by the list.
        self.first = NonNull::new(unsafe { (*tail::<C>(bp).as_ptr()).next });
        if self.first.is_none() {
            self.last = None;
        }
        self.len = self.len.saturating_sub(1);
        Some(Pbuf(bp, PhantomData))
    }
}

impl<C> Drop for Fifo<C> {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}
