// SPDX-License-Identifier: BSD-2-Clause
//! counter(9): a handle is the counter's offset from %gs.

use std::sync::Mutex;

use asyncpager::kpi::sys;

use crate::{
    checks::{rules::rule, sleep::may_sleep},
    host::cpu,
};

/// Which counters are allocated.
static COUNTERS: Mutex<Vec<bool>> = Mutex::new(Vec::new());

/// Counters lie behind the pcpu.
fn offset(slot: usize) -> usize {
    size_of::<sys::pcpu>().next_multiple_of(64) + slot * 8
}

/// `counter_u64_alloc`.
pub extern "C" fn counter_u64_alloc(_flags: i32) -> *mut u64 {
    may_sleep("counter_u64_alloc");
    let mut counters = COUNTERS.lock().unwrap();
    let slot = counters.iter().position(|live| !live).unwrap_or(counters.len());
    if slot == counters.len() {
        counters.push(false);
    }
    counters[slot] = true;
    assert!(offset(slot) + 8 <= cpu::SIZE, "too many counters");
    let handle = offset(slot);
    cpu::with_all(|blocks| {
        for block in blocks {
            // SAFETY: within every block.
            unsafe { ((block + handle) as *mut u64).write_volatile(0) };
        }
    });
    handle as *mut u64
}

/// A counter for the system's own statistics, which the testbed does not read.
pub fn spare() -> *mut u64 {
    (cpu::SIZE - 8) as *mut u64
}

/// `counter_u64_free`.
pub extern "C" fn counter_u64_free(counter: *mut u64) {
    let slot = (counter as usize).wrapping_sub(offset(0)) / 8;
    let mut counters = COUNTERS.lock().unwrap();
    let live = counters.get(slot).is_some_and(|live| *live);
    rule("counter_u64_free", live, "not a live counter");
    counters[slot] = false;
}

/// `counter_u64_fetch`: the sum over all threads.
pub extern "C" fn counter_u64_fetch(counter: *mut u64) -> u64 {
    cpu::with_all(|blocks| {
        blocks.iter().fold(0u64, |sum, block| {
            // SAFETY: `counter` is an offset within every block.
            sum.wrapping_add(unsafe { ((block + counter as usize) as *const u64).read_volatile() })
        })
    })
}

/// Counters that are allocated.
pub fn counters() -> usize {
    COUNTERS.lock().unwrap().iter().filter(|live| **live).count()
}
