// SPDX-License-Identifier: BSD-2-Clause
//! mtx(9): a lock around what it protects.

use core::{
    cell::UnsafeCell,
    ffi::CStr,
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
};

use super::sys;

/// A value behind an mtx(9) of type MTX_DEF. Nobody sleeps while holding one.
///
/// # Invariants
///
/// `value` is touched by the lock's owner only; between [`Mutex::init`] and
/// [`Mutex::destroy`] the lock is initialized and does not move.
pub struct Mutex<T> {
    lock: UnsafeCell<MaybeUninit<sys::mtx>>,
    value: UnsafeCell<T>,
}

// SAFETY: the lock serializes access to the value.
unsafe impl<T: Send> Sync for Mutex<T> {}
// SAFETY: as above; an mtx is not tied to a thread while nobody holds it.
unsafe impl<T: Send> Send for Mutex<T> {}

impl<T> Mutex<T> {
    /// A lock that is yet to be initialized, in its place.
    pub const fn new(value: T) -> Self {
        Self { lock: UnsafeCell::new(MaybeUninit::zeroed()), value: UnsafeCell::new(value) }
    }

    fn raw(&self) -> *mut sys::mtx {
        self.lock.get().cast()
    }

    /// mtx_init(9). `name` is what WITNESS knows the lock by.
    pub fn init(&self, name: &'static CStr) {
        // SAFETY: zeroed memory that stays in place; called once, before use.
        unsafe { sys::shim_mtx_init(self.raw(), name.as_ptr()) };
    }

    /// mtx_destroy(9). The caller has made sure that nobody uses it any more.
    pub fn destroy(&self) {
        // SAFETY: initialized by `init`, and not held.
        unsafe { sys::shim_mtx_destroy(self.raw()) };
    }

    /// Wait for the lock; dropping the guard releases it.
    pub fn lock(&self) -> Guard<'_, T> {
        // SAFETY: initialized by the invariant. WITNESS sees to the order of locks.
        unsafe { sys::shim_mtx_lock(self.raw()) };
        Guard(self)
    }
}

/// The right to the value.
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
        // SAFETY: the lock is this guard's.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is this guard's.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: locked by `lock`, by this thread.
        unsafe { sys::shim_mtx_unlock(self.0.raw()) };
    }
}
