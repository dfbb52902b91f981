// SPDX-License-Identifier: BSD-2-Clause
//! callout(9): a function called after a while, in a thread that must not sleep.

use core::{cell::UnsafeCell, ffi::c_void, mem::MaybeUninit};

use super::sys;

/// One timer.
///
/// # Invariants
///
/// Initialized between [`Callout::init`] and [`Callout::drain`]; callout(9)'s
/// own locks guard the fields.
pub struct Callout(UnsafeCell<MaybeUninit<sys::callout>>);

// SAFETY: see the invariant.
unsafe impl Sync for Callout {}

impl Default for Callout {
    fn default() -> Self {
        Self::new()
    }
}

impl Callout {
    /// A timer that is yet to be initialized.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::zeroed()))
    }

    fn raw(&self) -> *mut sys::callout {
        self.0.get().cast()
    }

    /// callout_init(9), MP-safe.
    pub fn init(&'static self) {
        // SAFETY: static memory; called once from MOD_LOAD.
        unsafe { sys::shim_callout_init(self.raw()) };
    }

    /// Call `function` in `us` microseconds, a quarter more at the most;
    /// replaces what was to be called before.
    pub fn reset(&'static self, us: u32, function: fn()) {
        // SAFETY: initialized by the invariant; the argument is what `fire` takes it for.
        unsafe {
            sys::shim_callout_reset_us(self.raw(), us, Some(fire), function as *mut c_void);
        }
    }

    /// callout_drain(9): nothing is called any more when this returns. May
    /// sleep. The caller has made sure that nobody calls [`Callout::reset`].
    pub fn drain(&'static self) {
        // SAFETY: initialized by the invariant; module events may sleep.
        unsafe { sys::shim_callout_drain(self.raw()) };
    }
}

unsafe extern "C" fn fire(argument: *mut c_void) {
    // SAFETY: `reset` stored a fn().
    let function: fn() = unsafe { core::mem::transmute::<*mut c_void, fn()>(argument) };
    function();
}
