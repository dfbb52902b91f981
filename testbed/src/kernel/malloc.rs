// SPDX-License-Identifier: BSD-2-Clause
//! malloc(9): typed memory with guard bytes and a quarantine after free(9).

use std::{
    collections::{BTreeMap, VecDeque},
    ffi::{CStr, c_int, c_void},
    ptr,
    sync::Mutex,
};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        rules::{record, rule, violation},
        sleep::may_sleep,
    },
    kernel::{callout, mutex, shortage, taskqueue},
};

/// Guard bytes behind an allocation.
const EDGE: usize = 16;
const EDGE_BYTE: u8 = 0xed;

/// Fills memory that is not asked for zeroed.
const GARBAGE: u8 = 0xa5;

/// Fills freed memory.
const FREED: u8 = 0xde;

/// Freed allocations in quarantine, where a write after free shows.
const QUARANTINE: usize = 1024;

#[derive(Clone, Copy)]
struct Allocation {
    size: usize,
    kind: usize,
}

impl Allocation {
    fn align(self) -> usize {
        // As the kernel's zones do: a power of two is aligned to itself.
        self.size.next_power_of_two().clamp(16, 4096)
    }

    fn layout(self) -> std::alloc::Layout {
        std::alloc::Layout::from_size_align(self.size + EDGE, self.align())
            .expect("a size that fits")
    }
}

static LIVE: Mutex<BTreeMap<usize, Allocation>> = Mutex::new(BTreeMap::new());
static DEAD: Mutex<VecDeque<(usize, Allocation)>> = Mutex::new(VecDeque::new());

/// Allocations that are alive.
pub fn allocations() -> usize {
    LIVE.lock().unwrap().len()
}

fn name(kind: *mut sys::malloc_type) -> String {
    // SAFETY: a malloc type, whose name is a C string.
    unsafe { CStr::from_ptr((*kind).ks_shortdesc) }.to_string_lossy().into_owned()
}

/// `malloc`.
pub extern "C" fn malloc(size: usize, kind: *mut sys::malloc_type, flags: c_int) -> *mut c_void {
    let call = "malloc";
    let (wait, nowait) = (flags & sys::M_WAITOK != 0, flags & sys::M_NOWAIT != 0);
    rule(call, wait != nowait, "neither M_WAITOK nor M_NOWAIT, or both");
    rule(call, !kind.is_null(), "no type");
    if wait {
        may_sleep(call);
    } else if shortage::out_of_memory() {
        record(call, format_args!("{size} bytes of {}: none", name(kind)));
        return ptr::null_mut();
    }
    let allocation = Allocation { size, kind: kind as usize };
    // SAFETY: a size that is not zero, because of the edge; all of it is ours.
    let at = unsafe {
        let at = std::alloc::alloc(allocation.layout());
        rule(call, !at.is_null(), "the host has no memory");
        at.write_bytes(if flags & sys::M_ZERO != 0 { 0 } else { GARBAGE }, size);
        at.add(size).write_bytes(EDGE_BYTE, EDGE);
        at
    };
    record(call, format_args!("{size} bytes of {} at {at:?}", name(kind)));
    LIVE.lock().unwrap().insert(at as usize, allocation);
    at.cast()
}

/// `free`.
pub extern "C" fn free(at: *mut c_void, kind: *mut sys::malloc_type) {
    let call = "free";
    if at.is_null() {
        return;
    }
    let allocation = LIVE.lock().unwrap().remove(&(at as usize));
    let Some(allocation) = allocation else {
        violation(call, format_args!("{at:?} is not allocated: freed twice?"));
    };
    record(call, format_args!("{} bytes of {} at {at:?}", allocation.size, name(kind)));
    rule(
        call,
        allocation.kind == kind as usize,
        format_args!(
            "memory of type {} is freed as {}",
            name(allocation.kind as *mut sys::malloc_type),
            name(kind)
        ),
    );
    let bytes = |from: usize, len| {
        // SAFETY: within the allocation, which only this call frees.
        unsafe { std::slice::from_raw_parts(at.cast::<u8>().add(from), len) }
    };
    rule(
        call,
        bytes(allocation.size, EDGE).iter().all(|byte| *byte == EDGE_BYTE),
        format_args!("a write went beyond the {} bytes at {at:?}", allocation.size),
    );
    let memory = at as usize..at as usize + allocation.size;
    rule(call, !mutex::mutex_within(memory.clone()), "a mutex in it is not destroyed");
    rule(call, !callout::active_within(memory.clone()), "a callout in it is pending or running");
    rule(call, !taskqueue::queued_within(memory), "a task in it is queued or runs");
    // SAFETY: as above.
    unsafe { at.cast::<u8>().write_bytes(FREED, allocation.size) };
    let mut dead = DEAD.lock().unwrap();
    dead.push_back((at as usize, allocation));
    if dead.len() > QUARANTINE
        && let Some(oldest) = dead.pop_front()
    {
        release(oldest);
    }
}

/// Look whether freed memory was written to, and give it to the host.
fn release((at, allocation): (usize, Allocation)) {
    // SAFETY: freed by the module, and not yet by us.
    unsafe {
        let bytes = std::slice::from_raw_parts(at as *const u8, allocation.size);
        rule(
            "free",
            bytes.iter().all(|byte| *byte == FREED),
            format_args!(
                "memory of type {} at {at:#x} was written to after free",
                name(allocation.kind as *mut sys::malloc_type)
            ),
        );
        std::alloc::dealloc(at as *mut u8, allocation.layout());
    }
}

/// Look at all memory that was freed.
pub fn check_freed() {
    DEAD.lock().unwrap().drain(..).for_each(release);
}

/// `malloc_init`, which MALLOC_DEFINE(9) has run.
pub extern "C" fn malloc_init(_: *mut c_void) {}

/// `malloc_uninit`: nothing of the type is left.
pub extern "C" fn malloc_uninit(kind: *mut c_void) {
    let left = LIVE.lock().unwrap().values().filter(|live| live.kind == kind as usize).count();
    let name = name(kind.cast());
    rule("malloc_uninit", left == 0, format_args!("{left} allocations of type {name} are left"));
    check_freed();
}
