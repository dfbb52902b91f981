// SPDX-License-Identifier: BSD-2-Clause
//! Memory in the low 2 GiB, where code of the kernel model can name it.

use std::{ptr, sync::Mutex};

static NEXT: Mutex<(usize, usize)> = Mutex::new((0, 0));

/// Map `len` bytes, zeroed, readable, writable and, if asked for, executable.
pub fn map(len: usize, executable: bool) -> *mut u8 {
    let prot = libc::PROT_READ | libc::PROT_WRITE | if executable { libc::PROT_EXEC } else { 0 };
    // SAFETY: a fresh anonymous mapping.
    let at = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            prot,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            -1,
            0,
        )
    };
    assert!(at != libc::MAP_FAILED, "no memory below 2 GiB");
    at.cast()
}

/// `len` zeroed bytes for a variable of the kernel; never freed.
pub fn variable(len: usize) -> *mut u8 {
    let mut next = NEXT.lock().unwrap();
    // No structure of the kernel is aligned more strictly than a pcpu.
    let len = len.next_multiple_of(128);
    if next.0 + len > next.1 {
        let size = (1 << 20).max(len);
        let at = map(size, false) as usize;
        *next = (at, at + size);
    }
    let at = next.0;
    next.0 += len;
    at as *mut u8
}

/// A zeroed variable of type `T`.
pub fn zeroed<T>() -> *mut T {
    variable(size_of::<T>()).cast()
}
