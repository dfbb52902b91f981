// SPDX-License-Identifier: BSD-2-Clause
//! Pages that are busied for an I/O (vm/vm_page.h, vm_page_busy(9)).

use core::ptr::{self, NonNull};

use super::{sys, vm_object::ReadLocked};

/// A page of an object, exclusive-busied for the current I/O; or `bogus_page`,
/// which stands for a page that is valid already.
///
/// # Invariants
///
/// The pointer is to a `vm_page`; these are never freed. Unless it is
/// `bogus_page`, the page is exclusive-busied: its identity and its valid bits
/// belong to the I/O until it is unbusied. Values of this type are reachable
/// only through a request or a buf that still has the page busied.
#[derive(Debug)]
#[repr(transparent)]
pub struct BusiedPage(NonNull<sys::vm_page>);

impl BusiedPage {
    /// Whether this is `bogus_page`, which stands for a page that is valid
    /// already.
    pub fn is_bogus(&self) -> bool {
        // SAFETY: a plain pointer, constant after boot.
        ptr::eq(self.0.as_ptr(), unsafe { sys::bogus_page })
    }

    /// The page's index in its object. Meaningless for `bogus_page`.
    pub fn pindex(&self) -> u64 {
        // SAFETY: a live vm_page (invariant); a busied page keeps its identity.
        unsafe { (*self.0.as_ptr()).pindex }
    }

    /// The valid bits, one for each DEV_BSIZE.
    fn valid(&self) -> sys::vm_page_bits_t {
        // SAFETY: as above; the valid bits belong to the I/O that has the page
        // busied.
        unsafe { (*self.0.as_ptr()).valid }
    }

    /// Whether no valid bit is set.
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

    /// Zeroes `len` bytes at `offset`. The valid bits stay as they are.
    pub fn zero(&self, offset: u32, len: u32) {
        if len == 0 || self.is_bogus() || offset.saturating_add(len) > sys::PAGE {
            return;
        }
        // SAFETY: a busied page; the range lies inside it.
        unsafe { sys::pmap_zero_page_area(self.0.as_ptr(), offset as i32, len as i32) };
    }

    /// Zeroes the invalid part of the page and sets all valid bits. For a page
    /// whose beginning was valid before the read.
    pub fn zero_invalid(&self) {
        if !self.is_bogus() {
            // SAFETY: a busied page, as vm_page_zero_invalid() requires.
            unsafe { sys::vm_page_zero_invalid(self.0.as_ptr(), 1) };
        }
    }

    /// Sets the valid bits of the page's part below the end of the file. A page
    /// wholly behind the end stays invalid. The read lock keeps the end where
    /// it is.
    ///
    /// Returns whether any part of the page is valid now. Locks: object read.
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

    /// Puts an extra page on a page queue and unbusies it.
    ///
    /// # Safety
    ///
    /// The page was allocated here and is valid at least in part. The caller
    /// gives up its busy and does not use this value again.
    pub(super) unsafe fn readahead_finish(&self) {
        // SAFETY: see this function's contract.
        unsafe { sys::vm_page_readahead_finish(self.0.as_ptr()) };
    }

    /// Removes an invalid extra page from its object and frees it. Locks:
    /// object write.
    ///
    /// # Safety
    ///
    /// The page was allocated here and is invalid; its object is write-locked.
    /// The caller gives up its busy and does not use this value again.
    pub(super) unsafe fn free_invalid(&self) {
        // SAFETY: see this function's contract.
        unsafe { sys::vm_page_free_invalid(self.0.as_ptr()) };
    }

    pub(super) fn as_ptr(&self) -> *mut sys::vm_page {
        self.0.as_ptr()
    }
}

/// Whether struct vm_page matches the headers: a lookup by the physical address
/// of `bogus_page` finds `bogus_page`.
pub(super) fn layout_is_known() -> bool {
    // SAFETY: bogus_page is allocated at boot; PHYS_TO_VM_PAGE() accepts any
    // address.
    unsafe {
        let bogus = sys::bogus_page;
        !bogus.is_null() && ptr::eq(sys::PHYS_TO_VM_PAGE((*bogus).phys_addr), bogus)
    }
}
