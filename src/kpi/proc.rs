// SPDX-License-Identifier: BSD-2-Clause
//! The calling thread (sys/proc.h).

use core::sync::atomic::{AtomicUsize, Ordering};

use super::sys;

/// Whether the calling thread's last system call is sendfile(2): it is inside
/// of it, or has come back from it and does something else on its own account.
pub fn in_sendfile() -> bool {
    // SAFETY: reads a field of the calling thread.
    unsafe { sys::shim_in_sendfile() }
}

/// The calling thread's real uid.
pub fn real_uid() -> u32 {
    // SAFETY: reads the calling thread's credentials, which are its own.
    unsafe { sys::shim_real_uid() }
}

/// Threads that have been told something and will come back with it.
///
/// # Invariants
///
/// Each entry is 0 or the address of a thread that has claimed it; only that
/// thread clears it.
pub struct Threads<const N: usize> {
    all: [AtomicUsize; N],
    count: AtomicUsize,
}

impl<const N: usize> Default for Threads<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Threads<N> {
    /// Nobody.
    pub const fn new() -> Self {
        Self { all: [const { AtomicUsize::new(0) }; N], count: AtomicUsize::new(0) }
    }

    /// Note the calling thread. False when there is no room.
    pub fn note(&self) -> bool {
        let me = curthread();
        let free = self.all.iter().any(|entry| {
            entry.compare_exchange(0, me, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        });
        if free {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        free
    }

    /// Forget the calling thread; whether it had been noted.
    pub fn forget(&self) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let me = curthread();
        let noted = self.all.iter().find(|entry| entry.load(Ordering::Relaxed) == me);
        if let Some(entry) = noted {
            entry.store(0, Ordering::Release);
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        noted.is_some()
    }

    /// How many are noted.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

fn curthread() -> usize {
    // SAFETY: gives an address only.
    unsafe { sys::shim_curthread() as usize }
}
