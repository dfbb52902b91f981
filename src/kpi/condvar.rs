// SPDX-License-Identifier: BSD-2-Clause
//! condvar(9): sleeps until another thread changes the state that a mutex
//! protects.

use core::{cell::UnsafeCell, ffi::CStr, mem::MaybeUninit};

use super::{mutex::Guard, sys};

/// A condition variable, used with one [`Mutex`](super::mutex::Mutex).
///
/// # Invariants
///
/// Between [`Condvar::init`] and [`Condvar::destroy`] the value is initialized
/// and does not move. The mutex protects its fields.
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
    /// A condition variable that [`Condvar::init`] has not initialized yet.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::zeroed()))
    }

    fn raw(&self) -> *mut sys::cv {
        self.0.get().cast()
    }

    /// cv_init(9). `name`: the wait channel that ps(1) shows.
    pub fn init(&self, name: &'static CStr) {
        // SAFETY: zeroed memory that does not move; initialized once, before
        // use.
        unsafe { sys::shim_cv_init(self.raw(), name.as_ptr()) };
    }

    /// cv_destroy(9). The caller ensures that no thread waits any more.
    pub fn destroy(&self) {
        // SAFETY: initialized by `init`.
        unsafe { sys::shim_cv_destroy(self.raw()) };
    }

    /// cv_wait(9): releases the mutex, sleeps until a [`Condvar::signal`], and
    /// locks the mutex again. Spurious wakeups are possible.
    pub fn wait<'a, T>(&self, guard: Guard<'a, T>) -> Guard<'a, T> {
        // SAFETY: initialized (invariant); the guard's thread holds the mutex.
        unsafe { sys::shim_cv_wait(self.raw(), guard.raw()) };
        guard
    }

    /// cv_signal(9): wakes the longest waiting thread. Locks: the mutex.
    pub fn signal(&self) {
        // SAFETY: initialized (invariant).
        unsafe { sys::shim_cv_signal(self.raw()) };
    }
}
