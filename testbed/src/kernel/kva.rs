// SPDX-License-Identifier: BSD-2-Clause
//! Kernel address space for bufs (vm/vm_extern.h).

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use crate::{
    checks::{quarantine, rules::rule, sleep::may_sleep},
    host::memory,
    kernel::buf::SLOTS,
};

/// Bytes of address space that are allocated.
static KVA: AtomicUsize = AtomicUsize::new(0);

/// Address space that was given back, for the next buf.
static FREE_KVA: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// Bytes of address space that are allocated.
pub fn address_space() -> usize {
    KVA.load(Ordering::Relaxed)
}

/// `kva_alloc`: memory that faults until pmap_qenter() has mapped something.
pub extern "C" fn kva_alloc(size: usize) -> usize {
    let call = "kva_alloc";
    may_sleep(call);
    rule(call, size == SLOTS * memory::PAGE, format_args!("{size} bytes are not what a buf needs"));
    KVA.fetch_add(size, Ordering::Relaxed);
    let old = FREE_KVA.lock().unwrap().pop();
    old.unwrap_or_else(|| {
        quarantine::reserve(SLOTS, "a buf's memory that pmap_qenter() has not mapped") as usize
    })
}

/// `kva_free`.
pub extern "C" fn kva_free(at: usize, size: usize) {
    rule("kva_free", size == SLOTS * memory::PAGE, "another size than kva_alloc's");
    KVA.fetch_sub(size, Ordering::Relaxed);
    FREE_KVA.lock().unwrap().push(at);
}
