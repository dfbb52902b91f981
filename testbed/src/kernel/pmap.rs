// SPDX-License-Identifier: BSD-2-Clause
//! pmap(9).

use std::{
    ffi::c_int,
    sync::atomic::{AtomicUsize, Ordering},
};

use asyncpager::kpi::sys;

use crate::{
    checks::rules::rule,
    host::memory::{self, PAGE},
    kernel::{resident::Page, vm_page::busied},
};

/// Pages mapped by pmap_qenter() now.
pub static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// `pmap_zero_page_area`.
pub extern "C" fn pmap_zero_page_area(m: *mut sys::vm_page, offset: c_int, size: c_int) {
    let call = "pmap_zero_page_area";
    let page = busied(call, m);
    let (offset, size) = (offset as usize, size as usize);
    rule(call, offset + size <= PAGE, "the range leaves the page");
    // SAFETY: within the page.
    unsafe { page.data().add(offset).write_bytes(0, size) };
}

/// `pmap_qenter`: the pages appear at `va`, the same memory a second time.
pub extern "C" fn pmap_qenter(va: u64, pages: *mut *mut sys::vm_page, count: c_int) {
    for i in 0..count as usize {
        // SAFETY: the caller's array, and its own reserved range.
        let is_mapped = unsafe {
            let page = Page(*pages.add(i));
            memory::map(va as usize + i * PAGE, page.index())
        };
        rule("pmap_qenter", is_mapped, "cannot map");
    }
    MAPPED.fetch_add(count as usize, Ordering::Relaxed);
}

/// `pmap_qremove`: touching the range is a fault from now on.
pub extern "C" fn pmap_qremove(va: u64, count: c_int) {
    // SAFETY: a range that pmap_qenter() has mapped.
    unsafe { memory::unmap(va as usize, count as usize) };
    let mapped = MAPPED.fetch_sub(count as usize, Ordering::Relaxed);
    rule("pmap_qremove", mapped >= count as usize, "more than is mapped");
}
