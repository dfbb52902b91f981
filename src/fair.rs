// SPDX-License-Identifier: BSD-2-Clause
//! Threads that are shared among devices.

use crate::kpi::mutex::Mutex;

/// Which device each of `N` threads works for; 0 for a free one.
///
/// A device gets another thread only while it has fewer of them than are free:
/// half of all at most, so that a device that does not answer leaves threads to
/// the others.
pub struct Threads<const N: usize>(Mutex<InUse<N>>);

/// See [`Threads`].
pub type InUse<const N: usize> = [usize; N];

impl<const N: usize> Default for Threads<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Threads<N> {
    /// All are free.
    pub const fn new() -> Self {
        Self(Mutex::new([0; N]))
    }

    /// Called once, before any other. `name` is what WITNESS knows the lock by.
    pub fn init(&self, name: &'static core::ffi::CStr) {
        self.0.init(name);
    }

    /// Called when no thread works any more.
    pub fn destroy(&self) {
        self.0.destroy();
    }

    /// Who has them now.
    pub fn in_use(&self) -> InUse<N> {
        *self.0.lock()
    }

    /// Let the calling thread work for a device, until the result is dropped;
    /// `None` when the device has its share.
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

/// A thread that works for a device.
pub struct Working<const N: usize>(&'static Threads<N>, usize);

impl<const N: usize> Drop for Working<N> {
    fn drop(&mut self) {
        if let Some(thread) = self.0.0.lock().get_mut(self.1) {
            *thread = 0;
        }
    }
}
