// SPDX-License-Identifier: BSD-2-Clause
//! References on credentials (sys/ucred.h).

use std::sync::atomic::{AtomicI64, Ordering};

use asyncpager::kpi::sys;

use crate::checks::rules::rule;

/// References that bufs hold on creds.
pub static CREDS: AtomicI64 = AtomicI64::new(0);

/// `crhold`.
pub extern "C" fn crhold(cred: *mut sys::ucred) -> *mut sys::ucred {
    CREDS.fetch_add(1, Ordering::Relaxed);
    cred
}

/// `crfree`.
pub extern "C" fn crfree(cred: *mut sys::ucred) {
    let before = CREDS.fetch_sub(1, Ordering::Relaxed);
    rule("crfree", !cred.is_null() && before > 0, "there is no reference");
}
