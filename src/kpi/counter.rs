// SPDX-License-Identifier: BSD-2-Clause
//! counter(9).

use core::{
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use super::sys;

/// A per-CPU statistics counter; adding is a single instruction without a lock.
///
/// # Invariants
///
/// The pointer is null, or what counter_u64_alloc() returned and nobody freed.
#[repr(transparent)]
pub struct Counter(AtomicPtr<u64>);

impl Counter {
    /// A counter without memory: additions vanish until [`Counter::allocate`].
    pub const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Get the counter its memory, at zero. May sleep.
    pub fn allocate(&self) {
        // SAFETY: called from a module event, where M_WAITOK is allowed; with
        // it the call cannot fail.
        let counter = unsafe { sys::counter_u64_alloc(sys::M_WAITOK) };
        self.0.store(counter, Ordering::Release);
    }

    /// Give the memory back. The caller has made sure that nobody adds any more.
    pub fn release(&self) {
        let counter = self.0.swap(ptr::null_mut(), Ordering::AcqRel);
        if !counter.is_null() {
            // SAFETY: by the invariant it came from counter_u64_alloc(), and
            // the swap makes this the only free.
            unsafe { sys::counter_u64_free(counter) };
        }
    }

    /// Add `n`.
    #[inline]
    pub fn add(&self, n: u32) {
        let counter = self.0.load(Ordering::Relaxed);
        if !counter.is_null() {
            // SAFETY: by the invariant it is a live counter(9).
            unsafe { sys::shim_counter_u64_add(counter, i64::from(n)) };
        }
    }

    /// The sum over all CPUs; additions under way may be in it or not.
    pub fn fetch(&self) -> u64 {
        let counter = self.0.load(Ordering::Relaxed);
        if counter.is_null() {
            return 0;
        }
        // SAFETY: by the invariant it is a live counter(9).
        unsafe { sys::counter_u64_fetch(counter) }
    }

    /// Where the kernel finds the counter: what SYSCTL_COUNTER_U64 points at.
    pub(super) fn location(&'static self) -> *mut core::ffi::c_void {
        self.0.as_ptr().cast()
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new()
    }
}

/// How many threads are somewhere, without a cache line that all CPUs share.
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
    /// Nobody; nobody is counted before [`Passage::allocate`].
    pub const fn new() -> Self {
        Self { entered: Counter::new(), left: Counter::new() }
    }

    /// See [`Counter::allocate`]. To be called before anybody enters.
    pub fn allocate(&self) {
        self.entered.allocate();
        self.left.allocate();
    }

    /// See [`Counter::release`].
    pub fn release(&self) {
        self.entered.release();
        self.left.release();
    }

    /// One more.
    #[inline]
    pub fn enter(&self) {
        self.entered.add(1);
    }

    /// One less.
    #[inline]
    pub fn leave(&self) {
        self.left.add(1);
    }

    /// How many, at most. Exact once nobody enters any more, and 0 only if
    /// nobody was there when this was called: who left is counted first.
    pub fn now(&self) -> u64 {
        let left = self.left.fetch();
        self.entered.fetch().saturating_sub(left)
    }
}
