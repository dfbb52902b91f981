// SPDX-License-Identifier: BSD-2-Clause
//! The size of a vnode's object (vm/vnode_pager.h).

use asyncpager::kpi::sys;

use crate::{
    checks::rules::record,
    host::memory::PAGE,
    kernel::{
        resident::{Page, VM, bits, grab, resident, unwire},
        rwlock,
        vm_page::vm_page_zero_invalid,
    },
};

/// vnode_pager_setsize(): frees pages beyond the new end once they are not busied;
/// wired ones only become invalid. Zeroes the rest of the last page. A file that grows
/// gets its new end before the wait for its old last page.
pub fn set_size(object: *mut sys::vm_object, bytes: u64) {
    let call = "vnode_pager_setsize";
    record(call, format_args!("object {object:?} to {bytes} bytes"));
    let end = bytes.div_ceil(PAGE as u64);
    // SAFETY: a live object; the vnode lock is held exclusively.
    let before = unsafe { (*object).un_pager.vnp.vnp_size as u64 };
    let shrinks = before > bytes;
    let set = || {
        rwlock::with_object(object, || {
            // SAFETY: a live, write-locked object.
            unsafe {
                (*object).size = end;
                (*object).un_pager.vnp.vnp_size = bytes as i64;
            }
        })
    };
    if !shrinks {
        set();
    }
    // To extend a file, FFS brings its last block into a buffer, and with that
    // the whole of its last page is valid.
    let last = before / PAGE as u64;
    if !shrinks && resident(object, last).is_some() {
        let page = grab(object, last);
        if page.fields().valid != 0 {
            vm_page_zero_invalid(page.0, 1);
        }
        page.unbusy(call);
        unwire(page, true);
    }
    let first = bytes / PAGE as u64;
    loop {
        let page = {
            let vm = VM.lock().unwrap();
            let found = vm.pages(object).into_iter().find(|page| {
                let fields = page.fields();
                let cut = fields.pindex >= end && (fields.ref_count == 0 || fields.valid != 0);
                let beyond = fields.pindex >= first;
                beyond && (page.is_taken() || cut || fields.pindex < end && !purged(*page, bytes))
            });
            found.map(|page| page.fields().pindex)
        };
        let Some(pindex) = page.filter(|_| shrinks) else { break };
        let page = grab(object, pindex);
        if pindex >= end {
            page.fields().valid = 0;
        } else {
            let at = (bytes % PAGE as u64) as usize;
            // SAFETY: within a busied page.
            unsafe { page.data().add(at).write_bytes(0, PAGE - at) };
            if page.fields().valid != 0 {
                page.fields().valid |= bits(at, PAGE - at);
            }
        }
        page.unbusy(call);
        unwire(page, pindex < end);
    }
    if shrinks {
        set();
    }
}

/// Whether an unbusied last page holds nothing but zeros behind the file's end.
fn purged(page: Page, bytes: u64) -> bool {
    let at = (bytes % PAGE as u64) as usize;
    // SAFETY: the page's own memory; no read fills it, as it is not busied.
    let tail = unsafe { std::slice::from_raw_parts(page.data().add(at), PAGE - at) };
    page.fields().valid == 0 || tail.iter().all(|b| *b == 0)
}
