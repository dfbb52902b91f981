// SPDX-License-Identifier: BSD-2-Clause
//! uma(9): memory for values that come and go on the I/O path.

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
/// The pointer is null or a live zone.
pub(super) struct Zone(AtomicPtr<sys::uma_zone>);

impl Zone {
    /// No zone yet.
    pub(super) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Make the zone. May sleep; called once from MOD_LOAD.
    pub(super) fn create(&self, name: &'static CStr, bytes: usize) -> Result<(), Errno> {
        // SAFETY: module events may sleep; the name is static.
        let zone = unsafe { sys::shim_uma_zcreate(name.as_ptr(), bytes) };
        self.0.store(zone, Ordering::Release);
        if zone.is_null() { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    /// Take the zone down. The caller has made sure that every item is back.
    pub(super) fn destroy(&self) {
        let zone = self.0.swap(ptr::null_mut(), Ordering::AcqRel);
        if !zone.is_null() {
            // SAFETY: live by the invariant; the swap makes this the only call.
            unsafe { sys::uma_zdestroy(zone) };
        }
    }

    /// An uninitialized item, aligned for a pointer. Sleeps only while memory
    /// is too short to have one at once.
    pub(super) fn alloc(&self) -> Option<NonNull<c_void>> {
        let zone = self.0.load(Ordering::Acquire);
        if zone.is_null() {
            return None;
        }
        // SAFETY: a live zone by the invariant.
        unsafe {
            NonNull::new(sys::shim_uma_zalloc(zone, sys::M_NOWAIT))
                .or_else(|| NonNull::new(sys::shim_uma_zalloc(zone, sys::M_WAITOK)))
        }
    }

    /// Give an item back.
    ///
    /// # Safety
    ///
    /// `item` came from this zone's [`Zone::alloc`], and nobody uses it any more.
    pub(super) unsafe fn free(&self, item: NonNull<c_void>) {
        // SAFETY: by the caller's promise; the zone outlives its items.
        unsafe { sys::shim_uma_zfree(self.0.load(Ordering::Relaxed), item.as_ptr()) };
    }
}
