// SPDX-License-Identifier: BSD-2-Clause
//! The GEOM providers below a filesystem: of a class that verifies nothing, over
//! another one (sys/geom/geom.h).

use std::{ffi::CStr, ptr};

use asyncpager::kpi::sys;

use crate::host::low_memory;

/// A consumer of a LABEL over a DISK.
pub fn consumer() -> *mut sys::g_consumer {
    [c"DISK", c"LABEL"].into_iter().fold(ptr::null_mut(), |below, class| {
        let consumer: *mut sys::g_consumer = low_memory::zeroed();
        let provider: *mut sys::g_provider = low_memory::zeroed();
        let geom: *mut sys::g_geom = low_memory::zeroed();
        let g_class: *mut sys::g_class = low_memory::zeroed();
        // SAFETY: fresh memory.
        unsafe {
            (*g_class).name = class.as_ptr();
            (*geom).class = g_class;
            (*geom).consumer.lh_first = below;
            (*provider).geom = geom;
            (*consumer).provider = provider;
        }
        consumer
    })
}

/// Makes the lower of the two providers one of this class.
///
/// # Safety
///
/// A consumer that [`consumer`] has made.
pub unsafe fn set_class(top: *mut sys::g_consumer, name: &'static CStr) {
    // SAFETY: by the caller's promise; it lives for ever.
    unsafe {
        let below = (*(*(*top).provider).geom).consumer.lh_first;
        (*(*(*(*below).provider).geom).class).name = name.as_ptr();
    }
}
