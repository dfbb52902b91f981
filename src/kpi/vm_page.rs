// SPDX-License-Identifier: BSD-2-Clause
//! Pages that somebody has busied for an I/O (vm/vm_page.h, vm_page_busy(9)).

use core::ptr::{self, NonNull};

use super::{sys, vm_object::ReadLocked};

/// A page of an object, exclusive-busied for the I/O at hand, or `bogus_page`
/// standing in for one that is valid already.
///
/// # Invariants
///
/// The pointer is to a `vm_page` (they live as long as the kernel). Unless it
/// is `bogus_page`, the page is exclusive-busied, so its identity and its
/// valid bits are the I/O's own until it is unbusied; values of this type are
/// reachable only through a request or a buf that has not yet let go of it.
#[derive(Debug)]
#[repr(transparent)]
pub struct BusiedPage(NonNull<sys::vm_page>);

impl BusiedPage {
    /// Whether this stands in for a page that is valid already.
    pub fn is_bogus(&self) -> bool {
        // SAFETY: a plain pointer, set at boot.
        ptr::eq(self.0.as_ptr(), unsafe { sys::bogus_page })
    }

    /// The page's index in its object. Meaningless for `bogus_page`.
    pub fn pindex(&self) -> u64 {
        // SAFETY: a live vm_page by the invariant; a busied page keeps its identity.
        unsafe { (*self.0.as_ptr()).pindex }
    }

    /// The valid bits, one for each DEV_BSIZE.
    fn valid(&self) -> sys::vm_page_bits_t {
        // SAFETY: as above; the valid bits belong to who has busied the page.
        unsafe { (*self.0.as_ptr()).valid }
    }

    /// Whether nothing of the page is valid.
    pub fn none_valid(&self) -> bool {
        self.valid() == 0
    }

    /// Whether all of `len` bytes at `offset` are valid.
    pub fn is_valid(&self, offset: u32, len: u32) -> bool {
        if len == 0 {
            return true;
        }
        let first = offset / sys::DEV_BSIZE as u32;
        let last = (offset + (len - 1)) / sys::DEV_BSIZE as u32;
        (first..=last).all(|bit| u32::from(self.valid()) >> bit.min(31) & 1 == 1)
    }

    /// Zero `len` bytes at `offset`; validity stays as it is.
    pub fn zero(&self, offset: u32, len: u32) {
        if len == 0 || self.is_bogus() || offset.saturating_add(len) > sys::PAGE {
            return;
        }
        // SAFETY: a busied page, and the range lies inside of it.
        unsafe { sys::pmap_zero_page_area(self.0.as_ptr(), offset as i32, len as i32) };
    }

    /// Zero what is not valid and make the whole page valid: the tail of a
    /// page whose beginning was valid before the read.
    pub fn zero_invalid(&self) {
        if !self.is_bogus() {
            // SAFETY: a busied page; vm_page_zero_invalid() asks for no more.
            unsafe { sys::vm_page_zero_invalid(self.0.as_ptr(), 1) };
        }
    }

    /// Make valid what of this page lies below the end of the file, which the
    /// read lock keeps where it is. A page wholly behind the end stays invalid.
    ///
    /// Returns whether anything of the page is valid now.
    pub fn validate(&self, object: &ReadLocked<'_>) -> bool {
        if self.is_bogus() {
            return true;
        }
        let start = self.pindex().saturating_mul(u64::from(sys::PAGE));
        let below = object.vnp_size().saturating_sub(start);
        if below >= u64::from(sys::PAGE) {
            // SAFETY: a busied page, filled by the read.
            unsafe { sys::vm_page_valid(self.0.as_ptr()) };
        } else if below > 0 {
            // SAFETY: as above, and `below` is less than a page.
            unsafe { sys::vm_page_set_valid_range(self.0.as_ptr(), 0, below as i32) };
        }
        !self.none_valid()
    }

    /// Put a page that nobody asked for on a queue and unbusy it.
    ///
    /// # Safety
    ///
    /// The page is an allocated, at least partly valid one, and the caller
    /// gives up its busy: it must not use this value again.
    pub(super) unsafe fn readahead_finish(&self) {
        // SAFETY: by the caller's promise.
        unsafe { sys::vm_page_readahead_finish(self.0.as_ptr()) };
    }

    /// Remove an invalid page that nobody asked for from its object and free it.
    ///
    /// # Safety
    ///
    /// The page is an allocated, invalid one, its object is write-locked, and
    /// the caller gives up its busy: it must not use this value again.
    pub(super) unsafe fn free_invalid(&self) {
        // SAFETY: by the caller's promise.
        unsafe { sys::vm_page_free_invalid(self.0.as_ptr()) };
    }

    pub(super) fn as_ptr(&self) -> *mut sys::vm_page {
        self.0.as_ptr()
    }
}

/// Whether the page array is laid out as the headers say: `bogus_page` is
/// found by its own physical address.
pub(super) fn layout_is_known() -> bool {
    // SAFETY: bogus_page is allocated at boot; PHYS_TO_VM_PAGE() takes any address.
    unsafe {
        let bogus = sys::bogus_page;
        !bogus.is_null() && ptr::eq(sys::PHYS_TO_VM_PAGE((*bogus).phys_addr), bogus)
    }
}
