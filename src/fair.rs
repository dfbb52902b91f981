// SPDX-License-Identifier: BSD-2-Clause
//! Threads that devices share.

use crate::kpi::mutex::Mutex;

/// The device for which each of `N` threads works; 0 for a free thread.
///
/// A device gets another thread only while it has fewer of them than are free:
/// half of all threads at most. So a device that does not answer leaves threads
/// to the others.
pub struct Threads<const N: usize>(Mutex<InUse<N>>);

/// See [`Threads`].
pub type InUse<const N: usize> = [usize; N];

impl<const N: usize> Default for Threads<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Threads<N> {
    /// All threads are free.
    pub const fn new() -> Self {
        Self(Mutex::new([0; N]))
    }

    /// Initializes the lock. `name`: the lock's name in WITNESS.
    pub fn init(&self, name: &'static core::ffi::CStr) {
        self.0.init(name);
    }

    /// Destroys the lock, when no thread works any more.
    pub fn destroy(&self) {
        self.0.destroy();
    }

    /// A copy of the table.
    pub fn in_use(&self) -> InUse<N> {
        *self.0.lock()
    }

    /// Assigns the calling thread to a device until the result is dropped.
    /// `None` when the device has its share. Sleeps: no.
    pub fn enter(&'static self, device: usize) -> Option<Working<N>> {
        let mut threads = self.0.lock();
        if !may_enter(&threads, device) {
            return None;
        }
        let at = threads.iter().position(|thread| *thread == 0)?;
        *threads.get_mut(at)? = device;
        Some(Working(self, at))
    }
}

/// Whether the device may have another thread.
pub fn may_enter<const N: usize>(threads: &InUse<N>, device: usize) -> bool {
    let at = |device| threads.iter().filter(|thread| **thread == device).count();
    at(device) < at(0)
}

/// A thread that works for a device. Dropping it frees the thread.
pub struct Working<const N: usize>(&'static Threads<N>, usize);

impl<const N: usize> Drop for Working<N> {
    fn drop(&mut self) {
        if let Some(thread) = self.0.0.lock().get_mut(self.1) {
            *thread = 0;
        }
    }
}
