// SPDX-License-Identifier: BSD-2-Clause
//! uma(9): memory for values that the I/O path allocates and frees.

use core::{
    ffi::{CStr, c_void},
    ptr::{self, NonNull},
    sync::atomic::{AtomicPtr, Ordering},
};

use super::{errno::Errno, sys};

/// A zone of items of one size.
///
/// # Invariants
///
/// The pointer is null, or points to a live zone.
pub(super) struct Zone(AtomicPtr<sys::uma_zone>);

impl Zone {
    /// No zone yet.
    pub(super) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Creates the zone. `bytes`: size of an item. Called once, from MOD_LOAD.
    /// Sleeps: yes. Errors: ENOMEM.
    pub(super) fn create(&self, name: &'static CStr, bytes: usize) -> Result<(), Errno> {
        // SAFETY: module events may sleep; the name is static.
        let zone = unsafe { sys::shim_uma_zcreate(name.as_ptr(), bytes) };
        self.0.store(zone, Ordering::Release);
        if zone.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Destroys the zone. The caller ensures that all items have been freed.
    pub(super) fn destroy(&self) {
        let zone = self.0.swap(ptr::null_mut(), Ordering::AcqRel);
        if !zone.is_null() {
            // SAFETY: the zone is live (invariant); the swap makes this the
            // only call.
            unsafe { sys::uma_zdestroy(zone) };
        }
    }

    /// Allocates an uninitialized item, aligned for a pointer. `None` when
    /// there is no zone. Sleeps: only when an M_NOWAIT allocation fails.
    pub(super) fn alloc(&self) -> Option<NonNull<c_void>> {
        let zone = self.0.load(Ordering::Acquire);
        if zone.is_null() {
            return None;
        }
        // SAFETY: the zone is live (invariant).
        unsafe {
            NonNull::new(sys::shim_uma_zalloc(zone, sys::M_NOWAIT))
                .or_else(|| NonNull::new(sys::shim_uma_zalloc(zone, sys::M_WAITOK)))
        }
    }

    /// Frees an item.
    ///
    /// # Safety
    ///
    /// `item` came from this zone's [`Zone::alloc`], and has no other user.
    pub(super) unsafe fn free(&self, item: NonNull<c_void>) {
        // SAFETY: see this function's contract; the zone outlives its items.
        unsafe { sys::shim_uma_zfree(self.0.load(Ordering::Relaxed), item.as_ptr()) };
    }
}
