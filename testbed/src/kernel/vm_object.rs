// SPDX-License-Identifier: BSD-2-Clause
//! Objects: their references, their paging, their end (vm/vm_object.h).

use std::{
    ptr,
    time::{Duration, Instant},
};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        quarantine,
        rules::{record, rule},
        sleep::may_sleep,
    },
    host::{memory::PAGE, schedule},
    kernel::{
        resident::{BUSY, Kind, Object, UNBUSIED, VM, wait_for},
        rwlock,
    },
};

/// A new vnode object for a file of `bytes`.
pub fn new_object(bytes: u64) -> *mut sys::vm_object {
    let object: *mut sys::vm_object = quarantine::allocate("vm object");
    // SAFETY: fresh; the union holds vnp for a vnode's object.
    unsafe {
        (*object).size = bytes.div_ceil(PAGE as u64);
        (*object).un_pager.vnp.vnp_size = bytes as i64;
    }
    VM.lock().unwrap().objects.insert(object as usize, Object::default());
    object
}

/// A new object of `pages` pages that swap space backs.
pub fn new_swap_object(pages: u64) -> *mut sys::vm_object {
    let object = new_object(pages * PAGE as u64);
    VM.lock().unwrap().object("vm_object_allocate", object).kind = Kind::Swap;
    object
}

/// The object's type.
pub fn kind(call: &str, object: *mut sys::vm_object) -> Kind {
    let mut vm = VM.lock().unwrap();
    let object = vm.object(call, object);
    if object.dead { Kind::Dead } else { object.kind }
}

/// `vm_object_reference`.
pub extern "C" fn vm_object_reference(object: *mut sys::vm_object) {
    let call = "vm_object_reference";
    let mut vm = VM.lock().unwrap();
    let object = vm.object(call, object);
    rule(call, !object.dead, "the object is dead");
    object.references += 1;
}

/// `vm_object_deallocate`: the last reference of a dead object ends it.
pub extern "C" fn vm_object_deallocate(object: *mut sys::vm_object) {
    let call = "vm_object_deallocate";
    may_sleep(call);
    let mut vm = VM.lock().unwrap();
    let known = vm.object(call, object);
    rule(call, known.references > 0, "there is no reference");
    known.references -= 1;
    let last = known.references == 0 && known.dead;
    drop(vm);
    if last {
        terminate(object);
    }
}

/// `vm_object_pip_add`.
pub extern "C" fn vm_object_pip_add(object: *mut sys::vm_object, count: i16) {
    VM.lock().unwrap().object("vm_object_pip_add", object).paging += count as usize;
}

/// `vm_object_pip_wakeupn`.
pub extern "C" fn vm_object_pip_wakeupn(object: *mut sys::vm_object, count: i16) {
    let call = "vm_object_pip_wakeup";
    let mut vm = VM.lock().unwrap();
    let object = vm.object(call, object);
    rule(call, object.paging >= count as usize, "paging_in_progress falls below zero");
    object.paging -= count as usize;
    BUSY.notify_all();
}

/// `vm_object_pip_wakeup`.
pub extern "C" fn vm_object_pip_wakeup(object: *mut sys::vm_object) {
    vm_object_pip_wakeupn(object, 1);
}

/// Whether `paging_in_progress` is raised.
pub fn is_paging(object: *mut sys::vm_object) -> bool {
    VM.lock().unwrap().object("vm_object_assert_paging", object).paging > 0
}

/// vinvalbuf() of a vnode that is reclaimed: frees its pages once they are not busied;
/// wired ones become invalid.
pub fn invalidate(object: *mut sys::vm_object) {
    let call = "vm_object_page_remove";
    while let Some(page) = wait_for(call, |vm| {
        let pages = vm.pages(object);
        let left: Vec<_> = pages
            .into_iter()
            .filter(|p| p.is_taken() || p.fields().valid != 0 || p.fields().ref_count == 0)
            .collect();
        let idle = left.iter().find(|page| !page.is_taken()).copied();
        if left.is_empty() { Some(None) } else { idle.map(Some) }
    }) {
        rwlock::with_object(object, || {
            let mut vm = VM.lock().unwrap();
            let fields = page.fields();
            if fields.object != object || page.is_taken() {
                return;
            }
            fields.valid = 0;
            if fields.ref_count == 0 {
                vm.release(page);
            }
        });
    }
}

/// vnode_destroy_vobject(): waits until `paging_in_progress` is 0. The object is dead
/// then, and ends at once or with its last reference.
pub fn destroy(object: *mut sys::vm_object) {
    let call = "vnode_destroy_vobject";
    let last = wait_for(call, |vm| {
        let object = vm.object(call, object);
        rule(call, !object.dead, "the object is dead already");
        object.dead = object.paging == 0;
        object.dead.then_some(object.references == 0)
    });
    rwlock::with_object(object, || {
        // SAFETY: alive until it is terminated, and write-locked.
        unsafe {
            (*object).handle = ptr::null_mut();
            (*object).type_ = sys::OBJT_DEAD as u8;
        }
    });
    if last {
        terminate(object);
    }
}

/// vm_object_terminate(): wired pages outlive their object.
fn terminate(object: *mut sys::vm_object) {
    let call = "vm_object_terminate";
    record(call, format_args!("object {object:?}"));
    wait_for(call, |vm| (vm.object(call, object).paging == 0).then_some(()));
    let mut vm = VM.lock().unwrap();
    for page in vm.pages(object) {
        let fields = page.fields();
        let pindex = fields.pindex;
        rule(call, fields.busy_lock == UNBUSIED, format_args!("page {pindex} is left busy"));
        if fields.ref_count == 0 {
            vm.release(page);
        } else {
            fields.object = ptr::null_mut();
        }
    }
    vm.objects.remove(&(object as usize));
    drop(vm);
    // The memory of an object is never given back (UMA_ZONE_NOFREE): a thread that knows its
    // address may still lock it and see that it is dead.
    quarantine::retire(object);
}

/// A page that is still busied after so long, with no paging in progress, is left busy.
const GRACE: Duration = Duration::from_secs(5);

/// Drops the object's cached pages once nothing pages it in; none may be left wired
/// or busied. Read-ahead busies new pages before it raises `paging_in_progress`.
pub fn drop_pages(object: *mut sys::vm_object) {
    let (call, begin) = ("vm_object_page_remove", Instant::now());
    // In one step: read-ahead may begin as soon as the paging is over.
    wait_for(call, |vm| {
        if vm.object(call, object).paging > 0 {
            return None;
        }
        let pages = vm.pages(object);
        if let Some(busy) = pages.iter().find(|page| page.fields().busy_lock != UNBUSIED) {
            let waits = !schedule::is_one_thread() && begin.elapsed() < GRACE;
            rule(call, waits, format_args!("page {} is left busy", busy.fields().pindex));
            return None;
        }
        for page in pages {
            let (pindex, wired) = (page.fields().pindex, page.fields().ref_count);
            rule(call, wired == 0, format_args!("page {pindex} is left wired"));
            vm.release(page);
        }
        Some(())
    });
}

/// The object's dirty pages.
pub fn dirty(object: *mut sys::vm_object) -> Vec<u64> {
    let vm = VM.lock().unwrap();
    let pages = vm.pages(object).into_iter().filter(|page| page.fields().dirty != 0);
    pages.map(|page| page.fields().pindex).collect()
}

/// The page daemon: frees one in `one_in` of the object's cached pages that are not in
/// use. How many.
pub fn reclaim(object: *mut sys::vm_object, one_in: usize, rng: &mut fastrand::Rng) -> usize {
    rwlock::with_object(object, || {
        let mut vm = VM.lock().unwrap();
        let mut freed = 0;
        for page in vm.pages(object) {
            let fields = page.fields();
            let clean = fields.dirty == 0;
            if clean
                && fields.busy_lock == UNBUSIED
                && fields.ref_count == 0
                && rng.usize(..one_in) == 0
            {
                vm.release(page);
                freed += 1;
            }
        }
        freed
    })
}
