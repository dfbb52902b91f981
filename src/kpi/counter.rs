// SPDX-License-Identifier: BSD-2-Clause
//! counter(9): per-CPU statistics counters.

use core::{
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use super::sys;

/// A per-CPU statistics counter. Adding to it takes no lock.
///
/// # Invariants
///
/// The pointer is null, or came from counter_u64_alloc() and has not been
/// freed.
#[repr(transparent)]
pub struct Counter(AtomicPtr<u64>);

impl Counter {
    /// A counter without memory. Additions are lost until
    /// [`Counter::allocate`].
    pub const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Allocates the counter's memory; it starts at zero. Sleeps: yes.
    pub fn allocate(&self) {
        // SAFETY: module events may use M_WAITOK, with which the allocation
        // cannot fail.
        let counter = unsafe { sys::counter_u64_alloc(sys::M_WAITOK) };
        self.0.store(counter, Ordering::Release);
    }

    /// Frees the counter's memory. The caller ensures that no thread adds any
    /// more.
    pub fn release(&self) {
        let counter = self.0.swap(ptr::null_mut(), Ordering::AcqRel);
        if !counter.is_null() {
            // SAFETY: from counter_u64_alloc() (invariant); the swap makes this
            // the only free.
            unsafe { sys::counter_u64_free(counter) };
        }
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&self, n: u32) {
        let counter = self.0.load(Ordering::Relaxed);
        if !counter.is_null() {
            // SAFETY: a live counter(9) (invariant).
            unsafe { sys::shim_counter_u64_add(counter, i64::from(n)) };
        }
    }

    /// The sum over all CPUs. Concurrent additions may be missing from it.
    pub fn fetch(&self) -> u64 {
        let counter = self.0.load(Ordering::Relaxed);
        if counter.is_null() {
            return 0;
        }
        // SAFETY: a live counter(9) (invariant).
        unsafe { sys::counter_u64_fetch(counter) }
    }

    /// The address of the counter's pointer, as SYSCTL_COUNTER_U64 expects it.
    pub(super) fn location(&'static self) -> *mut core::ffi::c_void {
        self.0.as_ptr().cast()
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts the threads inside a section of code, without a cache line that all
/// CPUs share.
pub struct Passage {
    entered: Counter,
    left: Counter,
}

impl Default for Passage {
    fn default() -> Self {
        Self::new()
    }
}

impl Passage {
    /// An empty section. Threads are counted only after [`Passage::allocate`].
    pub const fn new() -> Self {
        Self { entered: Counter::new(), left: Counter::new() }
    }

    /// See [`Counter::allocate`]. Called before the first thread enters.
    pub fn allocate(&self) {
        self.entered.allocate();
        self.left.allocate();
    }

    /// See [`Counter::release`].
    pub fn release(&self) {
        self.entered.release();
        self.left.release();
    }

    /// The calling thread enters.
    #[inline]
    pub fn enter(&self) {
        self.entered.add(1);
    }

    /// The calling thread leaves.
    #[inline]
    pub fn leave(&self) {
        self.left.add(1);
    }

    /// An upper bound of the threads inside, since the departures are read
    /// first. Exact once no thread enters any more. 0 means that no thread was
    /// inside when this was called.
    pub fn now(&self) -> u64 {
        let left = self.left.fetch();
        self.entered.fetch().saturating_sub(left)
    }
}
