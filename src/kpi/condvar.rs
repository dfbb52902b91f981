// SPDX-License-Identifier: BSD-2-Clause
//! condvar(9): sleeping until another thread changes what a mutex protects.

use core::{cell::UnsafeCell, ffi::CStr, mem::MaybeUninit};

use super::{mutex::Guard, sys};

/// A condition variable, used with one [`Mutex`](super::mutex::Mutex).
///
/// # Invariants
///
/// Between [`Condvar::init`] and [`Condvar::destroy`] it is initialized and
/// does not move; the mutex protects its fields.
pub struct Condvar(UnsafeCell<MaybeUninit<sys::cv>>);

// SAFETY: see the invariant.
unsafe impl Sync for Condvar {}
// SAFETY: as above.
unsafe impl Send for Condvar {}

impl Default for Condvar {
    fn default() -> Self {
        Self::new()
    }
}

impl Condvar {
    /// A condition variable that is yet to be initialized, in its place.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::zeroed()))
    }

    fn raw(&self) -> *mut sys::cv {
        self.0.get().cast()
    }

    /// cv_init(9). `name` is what ps(1) shows of a thread that waits.
    pub fn init(&self, name: &'static CStr) {
        // SAFETY: zeroed memory that stays in place; called once, before use.
        unsafe { sys::shim_cv_init(self.raw(), name.as_ptr()) };
    }

    /// cv_destroy(9). The caller has made sure that nobody waits any more.
    pub fn destroy(&self) {
        // SAFETY: initialized by `init`.
        unsafe { sys::shim_cv_destroy(self.raw()) };
    }

    /// Release the mutex, sleep until a [`Condvar::signal`], and lock it
    /// again. Wakes up without cause at times.
    pub fn wait<'a, T>(&self, guard: Guard<'a, T>) -> Guard<'a, T> {
        // SAFETY: initialized by the invariant; the guard's thread holds the mutex.
        unsafe { sys::shim_cv_wait(self.raw(), guard.raw()) };
        guard
    }

    /// Wake the thread that has waited longest. The caller holds the mutex.
    pub fn signal(&self) {
        // SAFETY: initialized by the invariant.
        unsafe { sys::shim_cv_signal(self.raw()) };
    }
}
