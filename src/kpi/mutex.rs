// SPDX-License-Identifier: BSD-2-Clause
//! mtx(9): a lock around the value that it protects.

use core::{
    cell::UnsafeCell,
    ffi::CStr,
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
};

use super::sys;

/// A value behind an mtx(9) of type MTX_DEF. A thread does not sleep while it
/// holds the lock, except in [`Condvar::wait`](super::condvar::Condvar::wait),
/// which releases it.
///
/// # Invariants
///
/// Only the thread that holds the lock accesses `value`. Between
/// [`Mutex::init`] and [`Mutex::destroy`] the lock is initialized and does not
/// move.
pub struct Mutex<T> {
    lock: UnsafeCell<MaybeUninit<sys::mtx>>,
    value: UnsafeCell<T>,
}

// SAFETY: the lock serializes access to the value.
unsafe impl<T: Send> Sync for Mutex<T> {}
// SAFETY: as above; an unheld mtx is not tied to a thread.
unsafe impl<T: Send> Send for Mutex<T> {}

impl<T> Mutex<T> {
    /// A lock that [`Mutex::init`] has not initialized yet.
    pub const fn new(value: T) -> Self {
        Self { lock: UnsafeCell::new(MaybeUninit::zeroed()), value: UnsafeCell::new(value) }
    }

    fn raw(&self) -> *mut sys::mtx {
        self.lock.get().cast()
    }

    /// mtx_init(9). `name`: the lock's name in WITNESS.
    pub fn init(&self, name: &'static CStr) {
        // SAFETY: zeroed memory that does not move; initialized once, before
        // use.
        unsafe { sys::shim_mtx_init(self.raw(), name.as_ptr()) };
    }

    /// mtx_destroy(9). The caller ensures that no thread uses the lock any
    /// more.
    pub fn destroy(&self) {
        // SAFETY: `init` initialized the lock, and no thread holds it.
        unsafe { sys::shim_mtx_destroy(self.raw()) };
    }

    /// mtx_lock(9). Dropping the guard unlocks. Sleeps: no; may block.
    pub fn lock(&self) -> Guard<'_, T> {
        // SAFETY: initialized (invariant). WITNESS checks the lock order.
        unsafe { sys::shim_mtx_lock(self.raw()) };
        Guard(self)
    }
}

/// Access to the value, while the lock is held.
pub struct Guard<'a, T>(&'a Mutex<T>);

impl<T> Guard<'_, T> {
    /// The lock, for condvar(9).
    pub(super) fn raw(&self) -> *mut sys::mtx {
        self.0.raw()
    }
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this guard holds the lock.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: this guard holds the lock.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: this thread locked it in `lock`.
        unsafe { sys::shim_mtx_unlock(self.0.raw()) };
    }
}
