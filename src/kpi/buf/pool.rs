// SPDX-License-Identifier: BSD-2-Clause
//! The free list of bufs, and queues of owned bufs.

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

/// The data behind a buf and its page array in memory.
///
/// # Invariants
///
/// `context` is initialized while the buf is out of its pool, and belongs to
/// the buf's owner. `next` belongs to the pool, or to the [`Fifo`] that the buf
/// is in. Any thread that knows the buf to be out of the pool may use `claim`.
#[repr(C)]
pub(super) struct Tail<C: 'static> {
    pub(super) claim: Handover,
    pub(super) pool: &'static Pool<C>,
    next: *mut sys::buf,
    pub(super) context: UnsafeCell<MaybeUninit<C>>,
}

/// The tail of a buf. `b_caller1` points to it from [`Pool::create`] on.
///
/// # Safety
///
/// `bp` is a buf of a live `Pool<C>`.
pub(super) unsafe fn tail<C>(bp: NonNull<sys::buf>) -> NonNull<Tail<C>> {
    // SAFETY: see this function's contract; the pointer is never null.
    unsafe { NonNull::new_unchecked((*bp.as_ptr()).b_caller1.cast()) }
}

/// A fixed number of bufs, allocated by MOD_LOAD.
///
/// The pool does not use the kernel's `pbuf_zone`. That zone's keg is filled at
/// boot for the pagers that exist then, and a buf taken from it may be the one
/// that the swap pager needs to free memory.
///
/// Nor does it use a limited uma(9) zone, which keeps up to half of its items
/// in the caches of other CPUs. Here an allocation succeeds whenever a buf is
/// free, and each buf that returns wakes a waiting thread.
///
/// # Invariants
///
/// `memory` is null, or holds `len` bufs of [`Pool::stride`] bytes each. The
/// list in `free` contains the bufs without an owner.
pub struct Pool<C: 'static> {
    memory: AtomicPtr<u8>,
    len: AtomicUsize,
    free: Mutex<Free>,
    available: Condvar,
    context: PhantomData<fn() -> C>,
}

/// The free bufs, and the threads that wait for one.
struct Free {
    first: *mut sys::buf,
    room: Room,
    /// Waiting threads that have not been woken yet for the buf that came back
    /// last.
    to_ask: usize,
}

/// The fill level of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Free bufs.
    pub free: usize,
    /// Threads that wait for a buf.
    pub waiting: usize,
}

// SAFETY: free bufs are not tied to a thread.
unsafe impl Send for Free {}

impl<C> Default for Pool<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> Pool<C> {
    /// A pool without bufs.
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

    /// The distance between two bufs, and the offset of a tail in its buf.
    /// Bytes.
    fn stride() -> (usize, usize) {
        let pages = (max_pages() as usize).saturating_add(1);
        let end = mem::offset_of!(sys::buf, b_pages)
            .saturating_add(pages.saturating_mul(size_of::<sys::vm_page_t>()))
            .max(size_of::<sys::buf>());
        let tail = end.next_multiple_of(align_of::<Tail<C>>());
        // Round up to a cache line: different CPUs use neighbouring bufs.
        (tail.saturating_add(size_of::<Tail<C>>()).next_multiple_of(64), tail)
    }

    /// Allocates `len` bufs. Called once, from MOD_LOAD. Sleeps: yes. Errors:
    /// EINVAL, ENOMEM.
    pub fn create(&'static self, name: &'static CStr, len: usize) -> Result<(), Errno> {
        let (stride, offset) = Self::stride();
        let bytes = stride.checked_mul(len).filter(|n| *n > 0).ok_or(Errno::EINVAL)?;
        self.free.init(name);
        self.available.init(name);
        // SAFETY: module events may sleep. malloc(9) zeroes the memory and
        // aligns it for a buf. Each buf is initialized before it enters the
        // list.
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

    /// Frees all memory. The caller ensures that every buf is in the pool.
    /// Sleeps: yes.
    pub fn destroy(&self) {
        let memory = self.memory.swap(ptr::null_mut(), Ordering::AcqRel);
        if memory.is_null() {
            return;
        }
        let (stride, _) = Self::stride();
        for i in 0..self.len.swap(0, Ordering::Relaxed) {
            // SAFETY: one of `len` bufs, all of which are free.
            unsafe { sys::shim_buf_fini(memory.add(i * stride).cast()) };
        }
        let mut free = self.free.lock();
        (free.first, free.room.free) = (ptr::null_mut(), 0);
        drop(free);
        self.available.destroy();
        self.free.destroy();
        // SAFETY: from shim_malloc_waitok(); the swap makes this the only free.
        unsafe { sys::shim_free(memory.cast()) };
    }

    /// The number of bufs, free or not.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// The free bufs and the waiting threads. A hint.
    pub fn room(&self) -> Room {
        self.free.lock().room
    }

    /// Whether the pool has no bufs at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a free buf and gives it `context`, if `admit` agrees. Otherwise
    /// gives the context back. Sleeps: no.
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

    /// Takes a buf and gives it `context`, as soon as one is free and `admit`
    /// agrees. Each buf that comes back makes the waiting threads ask `admit`
    /// again. The caller must own no unsent buf. Sleeps: until then.
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
        // SAFETY: a buf of the pool (invariant).
        free.first = unsafe { (*tail::<C>(bp).as_ptr()).next };
        free.room.free = free.room.free.saturating_sub(1);
        Some(bp)
    }

    /// Wakes the next waiting thread, if a buf is free for it. The threads wake
    /// each other in turn: the completion thread, which returns the buf, wakes
    /// the first only.
    fn ask_next(&self, free: &mut Free) {
        if free.to_ask > 0 && free.room.waiting > 0 && free.room.free > 0 {
            free.to_ask -= 1;
            self.available.signal();
        }
    }

    /// Returns a buf to the pool, and wakes a waiting thread. Sleeps: no.
    pub(super) fn put(&self, bp: *mut sys::buf) {
        let mut free = self.free.lock();
        if let Some(bp) = NonNull::new(bp) {
            // SAFETY: a buf of the pool that has no owner any more.
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
/// The tails' `next` links a list of owned bufs, which ends with `last`.
pub struct Fifo<C: 'static> {
    first: Option<NonNull<sys::buf>>,
    last: Option<NonNull<sys::buf>>,
    len: usize,
    context: PhantomData<C>,
}

// SAFETY: owned bufs are not tied to a thread.
unsafe impl<C: Send> Send for Fifo<C> {}

impl<C> Default for Fifo<C> {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> Fifo<C> {
    /// An empty queue.
    pub const fn new() -> Self {
        Self { first: None, last: None, len: 0, context: PhantomData }
    }

    /// The number of bufs in the queue.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the queue is empty.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Appends a buf.
    pub fn push(&mut self, buf: Pbuf<C>) {
        let bp = ManuallyDrop::new(buf).0;
        // SAFETY: the list owns the buf from here on, and owns the last one.
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

    /// Removes the first buf.
    pub fn pop(&mut self) -> Option<Pbuf<C>> {
        let bp = self.first?;
        // SAFETY: the list owns the buf.
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
