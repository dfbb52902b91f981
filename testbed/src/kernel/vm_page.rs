// SPDX-License-Identifier: BSD-2-Clause
//! Pages as the module asks for them (vm/vm_page.h).

use std::{ffi::c_int, ptr, sync::atomic::Ordering};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        lookups,
        rules::{record, rule},
        sleep::may_sleep,
    },
    host::memory::PAGE,
    kernel::{
        resident::{Page, UNBUSIED, VM, bits, resident},
        rwlock,
        shortage::{NO_MEMORY, out_of_memory},
    },
};

/// `vm_page_alloc`.
pub extern "C" fn vm_page_alloc(
    object: *mut sys::vm_object,
    pindex: u64,
    req: c_int,
) -> *mut sys::vm_page {
    let call = "vm_page_alloc";
    rule(call, rwlock::object_write_locked(object), "the object is not write-locked");
    if req & sys::VM_ALLOC_WAITOK != 0 {
        may_sleep(call);
    }
    rule(call, resident(object, pindex).is_none(), format_args!("page {pindex} exists"));
    // SAFETY: a live object.
    rule(
        call,
        pindex < unsafe { (*object).size },
        format_args!("page {pindex} is behind the object's end"),
    );
    if out_of_memory() {
        return ptr::null_mut();
    }
    let page = VM.lock().unwrap().allocate(object, pindex);
    record(call, format_args!("page {pindex} of object {object:?}: {}", page.is_some()));
    page.map_or(ptr::null_mut(), |page| page.0)
}

/// Pages that the page daemon wants to be free.
pub const FREE_TARGET: u32 = 4096;

/// `vm_free_count`: an eighth of the target when memory is short.
pub extern "C" fn vm_free_count() -> u32 {
    let free = VM.lock().unwrap().free.len() as u32;
    if NO_MEMORY.load(Ordering::Relaxed) { free.min(FREE_TARGET / 8) } else { free }
}

/// `vm_page_alloc_noobj`.
pub extern "C" fn vm_page_alloc_noobj(request: c_int) -> *mut sys::vm_page {
    let call = "vm_page_alloc_noobj";
    rule(call, request & sys::VM_ALLOC_WAITOK == 0, "this may sleep");
    if out_of_memory() {
        return ptr::null_mut();
    }
    let mut vm = VM.lock().unwrap();
    let Some(page) = vm.take_free() else { return ptr::null_mut() };
    page.fields().busy_lock = UNBUSIED;
    page.fields().ref_count = u32::from(request & sys::VM_ALLOC_WIRED != 0);
    page.0
}

/// `vm_page_unwire_noq`.
pub extern "C" fn vm_page_unwire_noq(m: *mut sys::vm_page) -> bool {
    let fields = Page(m);
    let fields = fields.fields();
    rule("vm_page_unwire_noq", fields.ref_count > 0, "the page is not wired");
    fields.ref_count -= 1;
    fields.ref_count == 0
}

/// `vm_page_free` of a page that belongs to no object.
pub extern "C" fn vm_page_free(m: *mut sys::vm_page) {
    let (call, page) = ("vm_page_free", Page(m));
    rule(call, page.fields().object.is_null(), "the page belongs to an object");
    rule(call, page.fields().ref_count == 0, "the page is wired");
    rule(call, page.fields().busy_lock == UNBUSIED, "the page is freed twice, or busy");
    VM.lock().unwrap().release(page);
}

/// `vm_page_lookup`.
pub extern "C" fn vm_page_lookup(object: *mut sys::vm_object, pindex: u64) -> *mut sys::vm_page {
    rule("vm_page_lookup", rwlock::object_locked(object), "the object is not locked");
    lookups::note(object as usize);
    resident(object, pindex).map_or(ptr::null_mut(), |page| page.0)
}

pub fn busied(call: &str, m: *mut sys::vm_page) -> Page {
    let page = Page(m);
    rule(call, page != Page::bogus(), "bogus_page");
    rule(call, page.is_busy(), format_args!("{page} is not exclusive-busied"));
    record(call, format_args!("{page} valid {:#x}", page.fields().valid));
    page
}

/// `vm_page_valid`.
pub extern "C" fn vm_page_valid(m: *mut sys::vm_page) {
    let call = "vm_page_valid";
    let page = busied(call, m);
    let end = (page.fields().pindex as usize + 1) * PAGE;
    // SAFETY: a page's object is live; the union holds vnp.
    let size = unsafe { (*page.fields().object).un_pager.vnp.vnp_size } as usize;
    rule(call, end <= size, "bytes behind the end of the file become valid");
    page.fields().valid = u8::MAX;
}

/// `vm_page_set_valid_range`: the rest of a last, unfinished DEV_BSIZE is zeroed.
pub extern "C" fn vm_page_set_valid_range(m: *mut sys::vm_page, base: c_int, size: c_int) {
    let call = "vm_page_set_valid_range";
    let page = busied(call, m);
    let (base, size) = (base as usize, size as usize);
    rule(call, base + size <= PAGE, "the range leaves the page");
    let end = base + size;
    if end % 512 != 0 && !page.is_valid(end, 1) {
        // SAFETY: within the page.
        unsafe { page.data().add(end).write_bytes(0, 512 - end % 512) };
    }
    page.fields().valid |= bits(base, size);
}

/// `vm_page_zero_invalid`.
pub extern "C" fn vm_page_zero_invalid(m: *mut sys::vm_page, setvalid: c_int) {
    let page = busied("vm_page_zero_invalid", m);
    for i in (0..8).filter(|i| !page.is_valid(i * 512, 1)) {
        // SAFETY: within the page.
        unsafe { page.data().add(i * 512).write_bytes(0, 512) };
    }
    if setvalid != 0 {
        page.fields().valid = u8::MAX;
    }
}

/// `vm_page_free_invalid`.
pub extern "C" fn vm_page_free_invalid(m: *mut sys::vm_page) {
    let call = "vm_page_free_invalid";
    let page = busied(call, m);
    rule(call, page.fields().valid == 0, "the page is valid");
    rule(call, page.fields().ref_count == 0, "the page is wired: it is the consumer's");
    rule(call, rwlock::object_write_locked(page.fields().object), "the object is not write-locked");
    VM.lock().unwrap().release(page);
}

/// `vm_page_readahead_finish`.
pub extern "C" fn vm_page_readahead_finish(m: *mut sys::vm_page) {
    let call = "vm_page_readahead_finish";
    let page = busied(call, m);
    rule(call, page.fields().valid != 0, "the page is invalid");
    rule(call, page.fields().ref_count == 0, "the page is wired: it is the consumer's");
    page.unbusy(call);
}

/// `PHYS_TO_VM_PAGE`.
pub extern "C" fn phys_to_vm_page(address: u64) -> *mut sys::vm_page {
    Page::from_index(address as usize / PAGE).map_or(ptr::null_mut(), |page| page.0)
}
