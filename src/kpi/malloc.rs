// SPDX-License-Identifier: BSD-2-Clause
//! malloc(9): arrays that exist from MOD_LOAD to MOD_UNLOAD.

use core::{
    ptr, slice,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

use super::{errno::Errno, sys};

/// An array that MOD_LOAD creates and MOD_UNLOAD frees. Empty before and after.
///
/// # Invariants
///
/// The pointer is null, or points to `len` initialized values.
pub struct Array<T> {
    first: AtomicPtr<T>,
    len: AtomicUsize,
}

impl<T> Default for Array<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Array<T> {
    /// An empty array.
    pub const fn new() -> Self {
        Self { first: AtomicPtr::new(ptr::null_mut()), len: AtomicUsize::new(0) }
    }

    /// Allocates `len` values. `value` makes each one from its index; `place`
    /// then sees it at its final address. Called once, from MOD_LOAD. Sleeps:
    /// yes. Errors: EINVAL, ENOMEM.
    pub fn create(
        &self,
        len: usize,
        value: impl Fn(usize) -> T,
        place: impl Fn(&T),
    ) -> Result<(), Errno> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|n| *n > 0).ok_or(Errno::EINVAL)?;
        // SAFETY: module events may sleep. malloc(9) aligns to the size, up to
        // a page.
        let first: *mut T = unsafe { sys::shim_malloc_waitok(bytes) }.cast();
        if first.is_null() {
            return Err(Errno::ENOMEM);
        }
        for i in 0..len {
            // SAFETY: the entry lies within the allocation, which no other
            // thread knows yet.
            unsafe {
                first.add(i).write(value(i));
                place(&*first.add(i));
            }
        }
        self.len.store(len, Ordering::Relaxed);
        self.first.store(first, Ordering::Release);
        Ok(())
    }

    /// The values.
    pub fn get(&self) -> &[T] {
        let first = self.first.load(Ordering::Acquire);
        if first.is_null() {
            return &[];
        }
        // SAFETY: `len` values are initialized (invariant); `create` stored the
        // length before the pointer.
        unsafe { slice::from_raw_parts(first, self.len.load(Ordering::Relaxed)) }
    }

    /// Calls `last` with each value, and frees the array. The caller ensures
    /// that no other thread uses it.
    pub fn destroy(&self, last: impl Fn(&T)) {
        self.get().iter().for_each(last);
        let first = self.first.swap(ptr::null_mut(), Ordering::AcqRel);
        if !first.is_null() {
            // SAFETY: from shim_malloc_waitok(); the swap makes this the only
            // free.
            unsafe { sys::shim_free(first.cast()) };
        }
    }
}
