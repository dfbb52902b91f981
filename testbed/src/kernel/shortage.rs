// SPDX-License-Identifier: BSD-2-Clause
//! Fault injection: allocations that do not wait fail while a shortage is on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Pages, malloc(9) and taskqueues are short.
pub static NO_MEMORY: AtomicBool = AtomicBool::new(false);
/// Items of uma(9) zones are short.
pub static NO_ITEMS: AtomicBool = AtomicBool::new(false);
/// Allocations that have failed for lack of memory.
pub static ALLOCS_FAILED: AtomicU64 = AtomicU64::new(0);

/// Whether memory is short: an allocation without waiting fails now. Counted.
pub fn out_of_memory() -> bool {
    let fails = is_short();
    ALLOCS_FAILED.fetch_add(u64::from(fails), Ordering::Relaxed);
    fails
}

/// Whether memory is short.
pub fn is_short() -> bool {
    NO_MEMORY.load(Ordering::Relaxed)
}

/// Ends all shortages.
pub fn end() {
    NO_MEMORY.store(false, Ordering::Relaxed);
    NO_ITEMS.store(false, Ordering::Relaxed);
}
