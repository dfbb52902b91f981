// SPDX-License-Identifier: BSD-2-Clause
//! callout(9): calls a function after a delay, in a thread that must not sleep.

use core::{cell::UnsafeCell, ffi::c_void, mem::MaybeUninit};

use super::sys;

/// One timer.
///
/// # Invariants
///
/// [`Callout::init`] initializes the callout and [`Callout::drain`] ends its
/// use. In between, callout(9)'s own locks guard the fields.
pub struct Callout(UnsafeCell<MaybeUninit<sys::callout>>);

// SAFETY: see the invariant.
unsafe impl Sync for Callout {}

impl Default for Callout {
    fn default() -> Self {
        Self::new()
    }
}

impl Callout {
    /// A timer that [`Callout::init`] has not initialized yet.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::zeroed()))
    }

    fn raw(&self) -> *mut sys::callout {
        self.0.get().cast()
    }

    /// callout_init(9), MP-safe.
    pub fn init(&'static self) {
        // SAFETY: static memory, which MOD_LOAD initializes once.
        unsafe { sys::shim_callout_init(self.raw()) };
    }

    /// Calls `function` after `us` microseconds, or up to a quarter later.
    /// Replaces an earlier request. Sleeps: no.
    pub fn reset(&'static self, us: u32, function: fn()) {
        // SAFETY: initialized (invariant); `fire` reads the argument as the
        // fn() it is.
        unsafe {
            sys::shim_callout_reset_us(self.raw(), us, Some(fire), function as *mut c_void);
        }
    }

    /// callout_drain(9): stops the timer and waits for a call in progress. The
    /// caller ensures that no thread calls [`Callout::reset`]. Sleeps: yes.
    pub fn drain(&'static self) {
        // SAFETY: initialized (invariant); only module events call this, and
        // they may sleep.
        unsafe { sys::shim_callout_drain(self.raw()) };
    }
}

unsafe extern "C" fn fire(argument: *mut c_void) {
    // SAFETY: `reset` stored a fn().
    let function: fn() = unsafe { core::mem::transmute::<*mut c_void, fn()>(argument) };
    function();
}
