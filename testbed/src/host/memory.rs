// SPDX-License-Identifier: BSD-2-Clause
//! The machine's memory: pages of a memfd, which can be mapped a second time.

use std::{ffi::c_int, ptr, sync::LazyLock};

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Pages of the machine.
pub const PAGES: usize = 64 << 10;

struct Memory {
    start: usize,
    file: c_int,
}

static MEMORY: LazyLock<Memory> = LazyLock::new(|| {
    // SAFETY: a fresh memfd, mapped once and never unmapped.
    unsafe {
        let file = libc::memfd_create(c"pages".as_ptr(), 0);
        assert!(file >= 0 && libc::ftruncate(file, (PAGES * PAGE) as i64) == 0);
        let memory = libc::mmap(
            ptr::null_mut(),
            PAGES * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file,
            0,
        );
        assert!(memory != libc::MAP_FAILED);
        Memory { start: memory as usize, file }
    }
});

/// The memory of page `index`.
pub fn at(index: usize) -> *mut u8 {
    assert!(index < PAGES);
    (MEMORY.start + index * PAGE) as *mut u8
}

/// Maps page `index` at `address` as well. False if the host refuses.
///
/// # Safety
///
/// `address` begins a page of a reserved range.
pub unsafe fn map(address: usize, index: usize) -> bool {
    // SAFETY: MAP_FIXED over a reserved range.
    let at = unsafe {
        libc::mmap(
            address as *mut _,
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
            MEMORY.file,
            (index * PAGE) as i64,
        )
    };
    at != libc::MAP_FAILED
}

/// Reserves `count` pages from `address` on again: touching them faults.
///
/// # Safety
///
/// A range that [`map`] has mapped.
pub unsafe fn unmap(address: usize, count: usize) {
    // SAFETY: MAP_FIXED over the caller's range.
    unsafe {
        libc::mmap(
            address as *mut _,
            count * PAGE,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
}
