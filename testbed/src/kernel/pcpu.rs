// SPDX-License-Identifier: BSD-2-Clause
//! pcpu(9): curthread, behind %gs.

use asyncpager::kpi::sys;

use crate::host::{cpu, low_memory};

/// curthread.
pub fn curthread() -> *mut sys::thread {
    thread_of(cpu::mine())
}

/// The thread of a CPU.
pub fn thread_of(block: *mut u8) -> *mut sys::thread {
    // SAFETY: a block that `make` has filled.
    unsafe { (*block.cast::<sys::pcpu>()).pc_curthread }
}

/// Fills a new block: a thread with its credentials.
pub fn make(block: *mut u8) {
    let thread: *mut sys::thread = low_memory::zeroed();
    let cred: *mut sys::ucred = low_memory::zeroed();
    // SAFETY: fresh memory of the right size.
    unsafe {
        (*thread).td_ucred = cred;
        (*block.cast::<sys::pcpu>()).pc_curthread = thread;
    }
}
