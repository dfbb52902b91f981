// SPDX-License-Identifier: BSD-2-Clause
//! A CPU for each host thread: a block of memory behind %gs, where kernel code
//! finds curthread and its counters. A thread that begins takes over the block
//! of one that has ended, and counters keep their values.

use std::{cell::Cell, sync::Mutex};

use crate::host::low_memory;

/// Bytes of a block.
pub const SIZE: usize = 64 << 10;

static ALL: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Blocks of threads that have ended.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// A function of a block's address.
type Hook = fn(*mut u8);

/// The calling thread's block, and the hook for the thread's end.
struct Attached(Cell<Option<(usize, Hook)>>);

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some((block, end)) = self.0.get() {
            end(block as *mut u8);
            FREE.lock().unwrap().push(block);
        }
    }
}

thread_local! {
    static MINE: Attached = const { Attached(Cell::new(None)) };
}

/// Gives the calling thread a block, unless it has one. `make` fills a new,
/// zeroed block; `end` is called when the thread ends. True the first time.
pub fn attach(make: Hook, end: Hook) -> bool {
    if MINE.with(|mine| mine.0.get()).is_some() {
        return false;
    }
    let free = FREE.lock().unwrap().pop();
    let block = free.unwrap_or_else(|| {
        let block = low_memory::variable(SIZE);
        make(block);
        ALL.lock().unwrap().push(block as usize);
        block as usize
    });
    const ARCH_SET_GS: libc::c_int = 0x1001;
    // SAFETY: changes only %gs, which a Linux program does not use.
    let failed = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, block) };
    assert_eq!(failed, 0, "arch_prctl(ARCH_SET_GS)");
    MINE.with(|mine| mine.0.set(Some((block, end))));
    true
}

/// The calling thread's block; NULL before [`attach`].
pub fn mine() -> *mut u8 {
    MINE.with(|mine| mine.0.get()).map_or(std::ptr::null_mut(), |(block, _)| block as *mut u8)
}

/// Runs `f` over all blocks, those of ended threads included; no block is added meanwhile.
pub fn with_all<T>(f: impl FnOnce(&[usize]) -> T) -> T {
    f(&ALL.lock().unwrap())
}
