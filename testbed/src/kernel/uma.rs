// SPDX-License-Identifier: BSD-2-Clause
//! uma(9): zones without a limit, and what is left in them at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
    sync::Mutex,
};

use crate::{
    checks::{
        rules::{record, rule},
        sleep::may_sleep,
    },
    kernel::shortage::NO_ITEMS,
};

struct Zone {
    name: String,
    words: usize,
    /// Free items. Their memory is never given back to the host, so that a use after free finds an
    /// item and is reported.
    free: Vec<usize>,
    out: BTreeSet<usize>,
}

static ZONES: Mutex<BTreeMap<usize, Zone>> = Mutex::new(BTreeMap::new());

/// Fills the memory of a free item.
const FREED: u64 = 0xdead_c0de_dead_c0de;

/// Zones that are alive.
pub fn zones() -> usize {
    ZONES.lock().unwrap().len()
}

/// `uma_zcreate`.
#[allow(clippy::too_many_arguments)] // the kernel's own
pub unsafe extern "C" fn uma_zcreate(
    name: *const c_char,
    size: usize,
    ctor: *const c_void,
    dtor: *const c_void,
    init: *const c_void,
    fini: *const c_void,
    _align: c_int,
    _flags: u32,
) -> *mut c_void {
    let call = "uma_zcreate";
    may_sleep(call);
    let plain = [ctor, dtor, init, fini].iter().all(|function| function.is_null());
    rule(call, plain && size > 0, "the testbed's zones have no functions");
    let mut zones = ZONES.lock().unwrap();
    let at = (1..).map(|i| i * 0x1000).find(|at| !zones.contains_key(at)).unwrap_or_default();
    // SAFETY: a C string.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    record(call, format_args!("{name}: items of {size} bytes"));
    let words = size.div_ceil(8);
    zones.insert(at, Zone { name, words, free: Vec::new(), out: BTreeSet::new() });
    at as *mut c_void
}

/// `uma_zdestroy`.
pub extern "C" fn uma_zdestroy(zone: *mut c_void) {
    let call = "uma_zdestroy";
    may_sleep(call);
    let zone = ZONES.lock().unwrap().remove(&(zone as usize));
    rule(call, zone.is_some(), "not a live zone");
    let Some(zone) = zone else { return };
    let left = zone.out.len();
    rule(call, left == 0, format_args!("{left} items of {} are still out", zone.name));
}

/// `uma_zalloc_arg`.
pub extern "C" fn uma_zalloc_arg(zone: *mut c_void, _: *mut c_void, flags: c_int) -> *mut c_void {
    let call = "uma_zalloc";
    if flags & asyncpager::kpi::sys::M_WAITOK != 0 {
        may_sleep(call);
    } else if NO_ITEMS.load(std::sync::atomic::Ordering::Relaxed) {
        return ptr::null_mut();
    }
    let mut zones = ZONES.lock().unwrap();
    let zone = zones.get_mut(&(zone as usize));
    rule(call, zone.is_some(), "not a live zone");
    let Some(zone) = zone else { return ptr::null_mut() };
    let words = zone.words;
    let item = zone.free.pop().unwrap_or_else(|| vec![FREED; words].leak().as_mut_ptr() as usize);
    // SAFETY: an item of this zone that is not allocated.
    let words = unsafe { std::slice::from_raw_parts_mut(item as *mut u64, words) };
    rule(call, words.iter().all(|word| *word == FREED), "a free item was written to");
    zone.out.insert(item);
    record(call, format_args!("item {item:#x} of {}", zone.name));
    item as *mut c_void
}

/// `uma_zfree_arg`.
pub extern "C" fn uma_zfree_arg(zone: *mut c_void, item: *mut c_void, _: *mut c_void) {
    let call = "uma_zfree";
    let mut zones = ZONES.lock().unwrap();
    let zone = zones.get_mut(&(zone as usize));
    rule(call, zone.is_some(), "not a live zone");
    let Some(zone) = zone else { return };
    let was_out = zone.out.remove(&(item as usize));
    rule(call, was_out, format_args!("item {item:?} of {} is not out: freed twice?", zone.name));
    record(call, format_args!("item {item:?} of {}", zone.name));
    // SAFETY: an item of the zone, which its owner has given back.
    unsafe { std::slice::from_raw_parts_mut(item.cast::<u64>(), zone.words) }.fill(FREED);
    zone.free.push(item as usize);
}
