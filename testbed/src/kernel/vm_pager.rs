// SPDX-License-Identifier: BSD-2-Clause
//! vm_pager_get_pages_async(), and the two pagers that sendfile(2) meets behind it:
//! the dispatch of the vnode pager, and the swap pager, whose asynchronous form waits.

use std::{
    collections::HashMap,
    ffi::{c_int, c_void},
    sync::{LazyLock, Mutex},
};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        rules::{record, rule, violation},
        sleep,
    },
    host::memory::PAGE,
    kernel::{
        resident::{self, Page},
        rwlock, vm_object, vnode,
    },
};

/// A getpages completion callback.
pub type Iodone = unsafe extern "C" fn(*mut c_void, *mut *mut sys::vm_page, c_int, c_int);

/// A request to a pager.
#[derive(Clone, Copy)]
pub struct Request {
    /// The object.
    pub object: *mut sys::vm_object,
    /// Its pages, and how many.
    pub pages: *mut *mut sys::vm_page,
    /// See `pages`.
    pub count: c_int,
    /// Pages wanted behind and ahead, or NULL.
    pub behind: *mut c_int,
    /// See `behind`.
    pub ahead: *mut c_int,
    /// The completion callback.
    pub iodone: Iodone,
    /// Its argument.
    pub arg: *mut c_void,
}

impl Request {
    fn page(&self, i: usize) -> Page {
        // SAFETY: one of `count` pages.
        Page(unsafe { *self.pages.add(i) })
    }
}

/// vm_pager_assert_in(), and the dispatch by the object's type.
pub fn get_pages_async(request: Request) -> c_int {
    let call = "vm_pager_get_pages_async";
    let object = request.object;
    rule(call, !rwlock::object_locked(object), "the object is locked");
    rule(call, vm_object::is_paging(object), "paging_in_progress is not raised");
    rule(call, request.count > 0, "no pages");
    let count = request.count as usize;
    let first = request.page(0);
    for i in 0..count {
        let page = request.page(i);
        if page == Page::bogus() {
            rule(call, i != 0 && i != count - 1, format_args!("page {i} of {count} is bogus_page"));
            continue;
        }
        let fields = page.fields();
        rule(call, page.is_busy(), format_args!("page {i} is not exclusive-busied"));
        rule(call, fields.valid != u8::MAX, format_args!("page {i} is valid already"));
        rule(call, fields.dirty == 0, format_args!("page {i} is dirty"));
        rule(call, fields.object == object, format_args!("page {i} is another object's"));
        let consecutive = fields.pindex == first.fields().pindex + i as u64;
        rule(call, consecutive, format_args!("page {i} does not follow the one before"));
    }
    (0..count).for_each(|i| request.page(i).hand_over());
    match vm_object::kind(call, object) {
        resident::Kind::Vnode => vnode_pager(&request),
        resident::Kind::Swap => swap_pager(&request),
        // pagertab's dead pager has no such function at all.
        resident::Kind::Dead => {
            violation(call, "the object is dead: the kernel would jump to NULL")
        }
    }
}

/// vnode_pager_getpages_async(): the object's handle knows the VOP.
fn vnode_pager(request: &Request) -> c_int {
    let call = "vnode_pager_getpages_async";
    // SAFETY: a live object, whose handle is a live vnode while it is no dead
    // one; a VOP's argument block.
    let code = unsafe {
        let vnode: *mut sys::vnode = (*request.object).handle.cast();
        rule(call, vnode::vnode_locked(vnode).is_some(), "the vnode is not locked");
        let mut ap: sys::vop_getpages_async_args = std::mem::zeroed();
        ap.a_vp = vnode;
        ap.a_m = request.pages;
        ap.a_count = request.count;
        (ap.a_rbehind, ap.a_rahead) = (request.behind, request.ahead);
        ap.a_iodone = Some(request.iodone);
        ap.a_arg = request.arg;
        match (*(*vnode).v_op).vop_getpages_async {
            Some(vop) => vop(&mut ap),
            None => sys::EOPNOTSUPP,
        }
    };
    rule(call, code != sys::EOPNOTSUPP, "the filesystem has no getpages_async");
    rule(call, !rwlock::object_locked(request.object), "the VOP returned with the object locked");
    code
}

/// Blocks of swap space, by object and page.
type Space = HashMap<(usize, u64), Block>;

static SPACE: LazyLock<Mutex<Space>> = LazyLock::new(Mutex::default);

/// The content of a page in swap space.
#[derive(Clone)]
pub enum Block {
    /// Its bytes.
    Data(Vec<u8>),
    /// It cannot be read.
    Bad,
}

/// Put a page of an object into swap space.
pub fn swap_out(object: *mut sys::vm_object, pindex: u64, block: Block) {
    SPACE.lock().unwrap().insert((object as usize, pindex), block);
}

/// The object's swap space is free again.
pub fn swap_free(object: *mut sys::vm_object) {
    SPACE.lock().unwrap().retain(|(owner, _), _| *owner != object as usize);
}

/// swap_pager_getpages_async(): the synchronous form, and then iodone.
fn swap_pager(request: &Request) -> c_int {
    let call = "swap_pager_getpages_async";
    let code = swap_pager_getpages(request);
    let error = match code {
        sys::VM_PAGER_OK => 0,
        sys::VM_PAGER_ERROR => sys::EIO,
        sys::VM_PAGER_FAIL => sys::EINVAL,
        code => violation(call, format_args!("the swap pager answered {code}")),
    };
    record(call, format_args!("{} pages: {code}, errno {error}", request.count));
    rule(call, !rwlock::object_locked(request.object), "iodone with the object locked");
    // SAFETY: the request's own callback and pages, once.
    unsafe { (request.iodone)(request.arg, request.pages, request.count, error) };
    code
}

/// swap_pager_getpages(): the first page decides whether there is anything,
/// and what cannot be read stays invalid.
fn swap_pager_getpages(request: &Request) -> c_int {
    let first = request.page(0).fields().pindex;
    let block =
        |i: usize| SPACE.lock().unwrap().get(&(request.object as usize, first + i as u64)).cloned();
    for extra in [request.behind, request.ahead] {
        // SAFETY: the caller's, or NULL.
        if let Some(extra) = unsafe { extra.as_mut() } {
            *extra = 0;
        }
    }
    let any = rwlock::with_object(request.object, || block(0).is_some());
    if !any {
        return sys::VM_PAGER_FAIL;
    }
    sleep::waits("swap_pager_getpages");
    let mut all = true;
    for i in 0..request.count as usize {
        let page = request.page(i);
        if page == Page::bogus() {
            continue;
        }
        match block(i) {
            Some(Block::Data(bytes)) => {
                // SAFETY: a busied page's own memory.
                unsafe {
                    page.data().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len().min(PAGE))
                };
                page.fields().valid = u8::MAX;
            }
            Some(Block::Bad) | None => all = false,
        }
    }
    if all { sys::VM_PAGER_OK } else { sys::VM_PAGER_ERROR }
}
