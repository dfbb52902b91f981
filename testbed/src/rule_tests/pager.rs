// SPDX-License-Identifier: BSD-2-Clause
//! Rules of vm_pager_get_pages_async(), and where 14.2 breaks its own.

use std::{
    ffi::{c_int, c_void},
    ptr,
    sync::atomic::Ordering,
};

use asyncpager::kpi::sys;

use crate::{
    consumers::sendfile,
    disk::{device::Disk, indirect::Indirect, ufs::Inode},
    ffs::{
        file::{Bmap, File, Mount},
        stock,
    },
    host::low_memory,
    kernel::{
        resident::{self, Page},
        rwlock, vm_object, vm_pager, vnode,
    },
    rule_tests::vnodes::file,
};

/// A swap object, and two busied pages of it.
fn swap() -> (*mut sys::vm_object, [Page; 2]) {
    let object = vm_object::new_swap_object(8);
    vm_object::vm_object_pip_add(object, 1);
    (object, [2, 3].map(|i| resident::grab(object, i)))
}

unsafe extern "C" fn unheard(_: *mut c_void, _: *mut *mut sys::vm_page, _: c_int, _: c_int) {}

fn ask(object: *mut sys::vm_object, pages: &[Page]) {
    let mut pages: Vec<_> = pages.iter().map(|page| page.0).collect();
    vm_pager::get_pages_async(vm_pager::Request {
        object,
        pages: pages.as_mut_ptr(),
        count: pages.len() as c_int,
        behind: ptr::null_mut(),
        ahead: ptr::null_mut(),
        iodone: unheard,
        arg: ptr::null_mut(),
    });
}

pub fn pager_object_locked() {
    let (object, pages) = swap();
    rwlock::with_object(object, || ask(object, &pages));
}

pub fn pager_not_paging() {
    let (object, pages) = swap();
    vm_object::vm_object_pip_wakeup(object);
    ask(object, &pages);
}

pub fn pager_first_page_bogus() {
    let (object, [_, second]) = swap();
    ask(object, &[Page::bogus(), second]);
}

pub fn pager_last_page_bogus() {
    let (object, [first, _]) = swap();
    ask(object, &[first, Page::bogus()]);
}

pub fn pager_page_not_busied() {
    let (object, pages) = swap();
    pages[0].unbusy("rule test");
    ask(object, &pages);
}

pub fn pager_page_valid() {
    let (object, pages) = swap();
    pages[1].fields().valid = u8::MAX;
    ask(object, &pages);
}

pub fn pager_page_dirty() {
    let (object, pages) = swap();
    pages[0].fields().dirty = 1;
    ask(object, &pages);
}

pub fn pager_pages_apart() {
    let (object, [first, _]) = swap();
    ask(object, &[first, resident::grab(object, 5)]);
}

pub fn pager_page_of_another() {
    let (object, [first, _]) = swap();
    ask(object, &[first, swap().1[1]]);
}

pub fn pager_vnode_unlocked() {
    let file = file(4096);
    vm_object::vm_object_pip_add(file.object, 1);
    ask(file.object, &[resident::grab(file.object, 0)]);
}

pub fn pager_without_the_vop() {
    let file = file(4096);
    vm_object::vm_object_pip_add(file.object, 1);
    let _locked = vnode::VnodeLocked::new(file.vnode, false, "rule test");
    // SAFETY: the file's own vnode.
    unsafe { (*file.vnode).v_op = low_memory::zeroed() };
    ask(file.object, &[resident::grab(file.object, 0)]);
}

pub fn pager_dead_object() {
    let (object, pages) = swap();
    vm_object::vm_object_reference(object);
    pages.iter().for_each(|page| page.unbusy("rule test"));
    vm_object::vm_object_pip_wakeup(object);
    vm_object::destroy(object);
    vm_object::vm_object_pip_add(object, 1);
    let pages = [2, 3].map(|i| resident::grab(object, i));
    ask(object, &pages);
}

fn stock_forgets(block: u64, first: u64, count: u64) {
    stock::FAITHFUL.store(true, Ordering::Relaxed);
    let file = file(block);
    let pages: Vec<_> = (first..first + count).map(|i| resident::grab(file.object, i)).collect();
    if first + count == 3 {
        // The file's last page, of which a part is there already.
        pages[count as usize - 1].fields().valid = 1;
    }
    sendfile::getpages_async(&file, &pages, 0, 0);
}

pub fn stock_forgets_a_hole() {
    stock_forgets(4096, 1, 1);
}

pub fn stock_forgets_small() {
    stock_forgets(512, 0, 1);
}

pub fn stock_drops_the_last_page() {
    stock::FAITHFUL.store(true, Ordering::Relaxed);
    let (disk, _) = Disk::new(vec![7; 1 << 20], 512, 1, false);
    let inode = Inode {
        path: "rule test".into(),
        number: 4,
        size: 4196,
        map: vec![Some(8), Some(16)],
        indirect: Indirect::default(),
    };
    let mount = Mount { block: 4096, unmapped: true, flags: 0, bmap: Bmap::Good };
    let file = File::open(inode, mount, &disk, true);
    let pages = [0, 1].map(|i| resident::grab(file.object, i));
    pages[1].fields().valid = 1;
    sendfile::getpages_async(&file, &pages, 0, 0);
}
