// SPDX-License-Identifier: BSD-2-Clause
//! Objects, their locks, and pages (vm/vm_object.h, vm/vm_page.h, pmap(9)),
//! with what INVARIANTS asserts and more.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{c_int, c_void},
    ptr,
    sync::{
        Condvar, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use asyncpager::kpi::sys;

use crate::{
    clock::Patience,
    graves, locks,
    rules::{self, may_sleep, record, rule, violation},
    schedule,
};

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Pages of the machine.
const PAGES: usize = 64 << 10;
/// What an allocated page holds before somebody reads into it.
const GARBAGE: u8 = 0xa5;

const UNBUSIED: u32 = 1;
const XBUSY: u32 = 2;
const FREED: u32 = u32::MAX - 1;

/// Allocations that do not wait fail while this is set.
pub static NO_MEMORY: AtomicBool = AtomicBool::new(false);
/// How often a consumer has had to wait for a page that was busied.
pub static BUSY_WAITS: AtomicU64 = AtomicU64::new(0);
/// How often it has failed.
pub static ALLOCS_FAILED: AtomicU64 = AtomicU64::new(0);
/// Pages mapped by pmap_qenter() now.
pub static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// Whether an allocation without waiting fails now; counted.
pub fn out_of_memory() -> bool {
    let fails = NO_MEMORY.load(Ordering::Relaxed);
    ALLOCS_FAILED.fetch_add(u64::from(fails), Ordering::Relaxed);
    fails
}

struct Machine {
    pages: *mut sys::vm_page,
    memory: *mut u8,
    file: c_int,
}

// SAFETY: set once; the fields behind the pointers are guarded by VM.
unsafe impl Send for Machine {}
// SAFETY: as above.
unsafe impl Sync for Machine {}

static MACHINE: LazyLock<Machine> = LazyLock::new(|| {
    // SAFETY: a memfd of our own, mapped once; the page array is leaked.
    unsafe {
        let file = libc::memfd_create(c"pages".as_ptr(), 0);
        assert!(file >= 0 && libc::ftruncate(file, (PAGES * PAGE) as i64) == 0);
        let memory = libc::mmap(
            ptr::null_mut(),
            PAGES * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file,
            0,
        );
        assert!(memory != libc::MAP_FAILED);
        let pages: Vec<sys::vm_page> = (0..PAGES)
            .map(|i| {
                let mut page: sys::vm_page = std::mem::zeroed();
                page.phys_addr = (i * PAGE) as u64;
                page.busy_lock = FREED;
                page
            })
            .collect();
        Machine { pages: pages.leak().as_mut_ptr(), memory: memory.cast(), file }
    }
});

/// What an object's pages come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// OBJT_VNODE.
    #[default]
    Vnode,
    /// OBJT_SWAP.
    Swap,
    /// OBJT_DEAD.
    Dead,
}

/// An object, beside its structure.
#[derive(Default)]
struct Object {
    /// Resident pages.
    pages: BTreeMap<u64, usize>,
    /// `ref_count`.
    references: usize,
    /// `paging_in_progress`.
    paging: usize,
    /// OBJ_DEAD: it goes with the last of both.
    dead: bool,
    kind: Kind,
}

#[derive(Default)]
struct Vm {
    objects: HashMap<usize, Object>,
    free: Vec<usize>,
    used: usize,
}

static VM: LazyLock<Mutex<Vm>> = LazyLock::new(|| {
    // Page 0 is bogus_page.
    Mutex::new(Vm { free: (1..PAGES).rev().collect(), ..Vm::default() })
});
static BUSY: Condvar = Condvar::new();

/// Who sleeps more seconds than this sleeps for ever.
const PATIENCE: u32 = 60;

/// A page of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Page(pub *mut sys::vm_page);

// SAFETY: a plain address in the page array.
unsafe impl Send for Page {}

impl std::fmt::Display for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let fields = self.fields();
        write!(f, "page {} of object {:?}", fields.pindex, fields.object)
    }
}

impl Page {
    /// `bogus_page`.
    pub fn bogus() -> Self {
        Self(MACHINE.pages)
    }

    fn index(self) -> usize {
        // SAFETY: only pages of the array are ever made.
        unsafe { self.0.offset_from(MACHINE.pages) as usize }
    }

    /// The page's memory.
    pub fn data(self) -> *mut u8 {
        // SAFETY: within the arena.
        unsafe { MACHINE.memory.add(self.index() * PAGE) }
    }

    /// The page's fields.
    #[allow(clippy::mut_from_ref)]
    pub fn fields(&self) -> &mut sys::vm_page {
        // SAFETY: of the array, which lives for ever; who has busied the page
        // or holds VM writes.
        unsafe { &mut *self.0 }
    }

    /// Whether the page is exclusive-busied.
    pub fn is_busy(self) -> bool {
        self.fields().busy_lock == XBUSY
    }

    /// Whether somebody has busied the page shared.
    fn is_shared(self) -> bool {
        let lock = self.fields().busy_lock;
        lock != FREED && lock & UNBUSIED != 0 && lock != UNBUSIED
    }

    /// Whether the page is busied in any way.
    fn is_taken(self) -> bool {
        self.is_busy() || self.is_shared()
    }

    /// Whether all of `len` bytes at `offset` are valid.
    pub fn is_valid(self, offset: usize, len: usize) -> bool {
        self.fields().valid & bits(offset, len) == bits(offset, len)
    }

    fn owner(self) -> &'static AtomicU64 {
        static OWNERS: LazyLock<Vec<AtomicU64>> =
            LazyLock::new(|| (0..PAGES).map(|_| AtomicU64::new(0)).collect());
        &OWNERS[self.index()]
    }

    /// The thread that has busied the page gives it to a pager.
    pub fn hand_over(self) {
        if self != Self::bogus() {
            self.owner().store(0, Ordering::Relaxed);
        }
    }

    /// Unbusy, and wake who waits.
    pub fn unbusy(self, call: &str) {
        let _vm = VM.lock().unwrap();
        self.owner().store(0, Ordering::Relaxed);
        record(call, format_args!("unbusy {self}"));
        rule(call, self.is_busy(), format_args!("page {self:?} is not exclusive-busied"));
        self.fields().busy_lock = UNBUSIED;
        BUSY.notify_all();
    }
}

fn bits(offset: usize, len: usize) -> u8 {
    if len == 0 {
        return 0;
    }
    (offset / 512..=(offset + len - 1) / 512).fold(0, |bits, i| bits | 1 << i)
}

/// A new vnode object for a file of `bytes`.
pub fn new_object(bytes: u64) -> *mut sys::vm_object {
    let object: *mut sys::vm_object = graves::born("vm object");
    // SAFETY: fresh; the union holds vnp for a vnode's object.
    unsafe {
        (*object).size = bytes.div_ceil(PAGE as u64);
        (*object).un_pager.vnp.vnp_size = bytes as i64;
    }
    VM.lock().unwrap().objects.insert(object as usize, Object::default());
    object
}

impl Vm {
    fn object(&mut self, call: &str, object: *mut sys::vm_object) -> &mut Object {
        let Some(object) = self.objects.get_mut(&(object as usize)) else {
            violation(call, format_args!("{object:?} is not a live object"));
        };
        object
    }

    fn page(&self, object: *mut sys::vm_object, pindex: u64) -> Option<Page> {
        let index = *self.objects.get(&(object as usize))?.pages.get(&pindex)?;
        // SAFETY: an index of the array.
        Some(Page(unsafe { MACHINE.pages.add(index) }))
    }

    fn pages(&self, object: *mut sys::vm_object) -> Vec<Page> {
        let object = self.objects.get(&(object as usize));
        let indices = object.into_iter().flat_map(|object| object.pages.values());
        // SAFETY: indices of the array.
        indices.map(|index| Page(unsafe { MACHINE.pages.add(*index) })).collect()
    }
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

/// Sleep until `done` finds what it waits for.
fn wait_for<T>(call: &str, mut done: impl FnMut(&mut Vm) -> Option<T>) -> T {
    may_sleep(call);
    let mut patience = Patience::seconds(PATIENCE);
    let mut vm = VM.lock().unwrap();
    loop {
        if let Some(result) = done(&mut vm) {
            return result;
        }
        if schedule::is_one_thread() {
            drop(vm);
            rule(call, schedule::pump(), "deadlock: nobody is left to wake this thread");
            vm = VM.lock().unwrap();
        } else {
            let (next, late) = BUSY.wait_timeout(vm, Patience::STEP).unwrap();
            rule(call, !late.timed_out() || patience.spend(), "nobody wakes this thread");
            vm = next;
        }
    }
}

/// vinvalbuf() of a vnode that goes: its pages are freed once nobody has them
/// busied; wired ones become invalid.
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
        locks::with_object(object, || {
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

/// vnode_destroy_vobject(): wait until nobody pages any more; the object is
/// dead, and ends at once or with its last reference.
pub fn destroy(object: *mut sys::vm_object) {
    let call = "vnode_destroy_vobject";
    let last = wait_for(call, |vm| {
        let object = vm.object(call, object);
        rule(call, !object.dead, "the object is dead already");
        object.dead = object.paging == 0;
        object.dead.then_some(object.references == 0)
    });
    locks::with_object(object, || {
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
    // The memory of an object is never given back (UMA_ZONE_NOFREE): who
    // knows its address may still lock it and see that it is dead.
    graves::retire(object);
}

/// The page at `pindex`, busied and wired for a consumer: an existing one, when
/// it is not busy any more, or a new one.
pub fn grab(object: *mut sys::vm_object, pindex: u64) -> Page {
    loop {
        if let Some(page) = locks::with_object(object, || try_grab(object, pindex)) {
            return page;
        }
        BUSY_WAITS.fetch_add(1, Ordering::Relaxed);
        wait_for("vm_page_busy_sleep", |vm| {
            let busy = vm.page(object, pindex).is_some_and(Page::is_taken);
            (!busy).then_some(())
        });
    }
}

/// Wait until a page, if it exists, is not busy. A thread that has busied the
/// page itself, and has not given it to a pager, would wait for ever.
pub fn wait_unbusied(call: &str, object: *mut sys::vm_object, pindex: u64) {
    wait_for(call, |vm| {
        let taken = vm.page(object, pindex).filter(|page| page.is_taken());
        let own = taken.is_some_and(|p| p.owner().load(Ordering::Relaxed) == rules::thread());
        rule(call, !own, format_args!("deadlock: this very thread has page {pindex} busied"));
        taken.is_none().then_some(())
    });
}

/// `None` when the page is busy.
fn try_grab(object: *mut sys::vm_object, pindex: u64) -> Option<Page> {
    let mut vm = VM.lock().unwrap();
    let page = match vm.page(object, pindex) {
        Some(page) => {
            if page.is_taken() {
                return None;
            }
            page.fields().busy_lock = XBUSY;
            page
        }
        None => vm
            .allocate(object, pindex)
            .unwrap_or_else(|| violation("vm_page_grab_pages", "the machine is out of pages")),
    };
    page.fields().ref_count += 1;
    page.owner().store(rules::thread(), Ordering::Relaxed);
    record("vm_page_grab_pages", format_args!("{page} valid {:#x}", page.fields().valid));
    Some(page)
}

impl Vm {
    /// A free page, which is in use and nobody's from now on.
    fn take_free(&mut self) -> Option<Page> {
        let index = self.free.pop()?;
        self.used += 1;
        // SAFETY: an index of the array.
        let page = Page(unsafe { MACHINE.pages.add(index) });
        let fields = page.fields();
        fields.valid = 0;
        fields.dirty = 0;
        fields.ref_count = 0;
        // SAFETY: the page's own memory.
        unsafe { page.data().write_bytes(GARBAGE, PAGE) };
        Some(page)
    }

    fn allocate(&mut self, object: *mut sys::vm_object, pindex: u64) -> Option<Page> {
        let page = self.take_free()?;
        let (fields, index) = (page.fields(), page.index());
        fields.object = object;
        fields.pindex = pindex;
        fields.busy_lock = XBUSY;
        self.objects.get_mut(&(object as usize))?.pages.insert(pindex, index);
        Some(page)
    }

    fn release(&mut self, page: Page) {
        let fields = page.fields();
        rule("vm_page_free", fields.dirty == 0, format_args!("{page} is dirty, and its data lost"));
        if let Some(object) = self.objects.get_mut(&(fields.object as usize)) {
            object.pages.remove(&fields.pindex);
        }
        fields.object = ptr::null_mut();
        fields.busy_lock = FREED;
        self.free.push(page.index());
        self.used -= 1;
        BUSY.notify_all();
    }
}

/// Unwire; `keep` says whether the page stays cached.
pub fn unwire(page: Page, keep: bool) {
    let mut vm = VM.lock().unwrap();
    let fields = page.fields();
    rule("vm_page_unwire", fields.ref_count > 0, "the page is not wired");
    fields.ref_count -= 1;
    let gone = fields.object.is_null() || (!keep && fields.dirty == 0) || fields.valid == 0;
    if fields.ref_count == 0 && fields.busy_lock == UNBUSIED && gone {
        vm.release(page);
    }
}

/// The page at `pindex` if it is resident.
pub fn resident(object: *mut sys::vm_object, pindex: u64) -> Option<Page> {
    VM.lock().unwrap().page(object, pindex)
}

/// Drop the object's cached pages, every one of which must be unbusied and
/// unwired by now.
pub fn drop_pages(object: *mut sys::vm_object) {
    let call = "vm_object_page_remove";
    // What is read ahead comes to its end by itself.
    wait_for(call, |vm| (vm.object(call, object).paging == 0).then_some(()));
    let mut vm = VM.lock().unwrap();
    for page in vm.pages(object) {
        let fields = page.fields();
        let (pindex, busy, wired) = (fields.pindex, fields.busy_lock, fields.ref_count);
        rule(call, busy == UNBUSIED, format_args!("page {pindex} is left busy"));
        rule(call, wired == 0, format_args!("page {pindex} is left wired"));
        vm.release(page);
    }
}

/// The object's dirty pages.
pub fn dirty(object: *mut sys::vm_object) -> Vec<u64> {
    let vm = VM.lock().unwrap();
    let pages = vm.pages(object).into_iter().filter(|page| page.fields().dirty != 0);
    pages.map(|page| page.fields().pindex).collect()
}

/// Pages that the torture has busied shared, as vm_fault() and the buffer
/// cache do for a moment.
static SHARED: Mutex<Vec<Page>> = Mutex::new(Vec::new());

/// One more holder of a page that is busied shared; `VPB_SHARERS_WORD`.
const SHARER: u32 = 8;

/// Busy a page of the object shared, if one can be.
pub fn busy_shared(object: *mut sys::vm_object, rng: &mut fastrand::Rng) {
    let vm = VM.lock().unwrap();
    let pages: Vec<_> =
        vm.pages(object).into_iter().filter(|page| !page.is_busy() && !page.is_shared()).collect();
    if pages.is_empty() {
        return;
    }
    let page = pages[rng.usize(..pages.len())];
    record("vm_page_sbusy", format_args!("{page}"));
    page.fields().busy_lock += SHARER;
    SHARED.lock().unwrap().push(page);
}

/// Pages that are busied shared.
pub fn shared() -> usize {
    SHARED.lock().unwrap().len()
}

/// Unbusy one of the pages that are busied shared.
pub fn unbusy_shared() -> bool {
    let _vm = VM.lock().unwrap();
    let Some(page) = SHARED.lock().unwrap().pop() else { return false };
    record("vm_page_sunbusy", format_args!("{page}"));
    rule("vm_page_sunbusy", page.is_shared(), format_args!("{page} is not busied shared"));
    page.fields().busy_lock -= SHARER;
    BUSY.notify_all();
    true
}

/// The page daemon: free cached pages of the object that nobody uses, of
/// every `one_in` of them one. How many.
pub fn reclaim(object: *mut sys::vm_object, one_in: usize, rng: &mut fastrand::Rng) -> usize {
    locks::with_object(object, || {
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

/// vnode_pager_setsize(): pages behind the new end go, once nobody has them
/// busied; wired ones only become invalid. The rest of the last page is zeroed.
/// A file that grows has its new end before anybody waits for its old one.
pub fn set_size(object: *mut sys::vm_object, bytes: u64) {
    let call = "vnode_pager_setsize";
    record(call, format_args!("object {object:?} to {bytes} bytes"));
    let end = bytes.div_ceil(PAGE as u64);
    // SAFETY: a live object; the vnode lock is held exclusively.
    let before = unsafe { (*object).un_pager.vnp.vnp_size as u64 };
    let shrinks = before > bytes;
    let set = || {
        locks::with_object(object, || {
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
    // SAFETY: the page's own memory, which nobody reads into: it is not busied.
    let tail = unsafe { std::slice::from_raw_parts(page.data().add(at), PAGE - at) };
    page.fields().valid == 0 || tail.iter().all(|b| *b == 0)
}

/// Pages in use.
pub fn used() -> usize {
    VM.lock().unwrap().used
}

// What the module calls.

/// `vm_page_alloc`.
pub extern "C" fn vm_page_alloc(
    object: *mut sys::vm_object,
    pindex: u64,
    req: c_int,
) -> *mut sys::vm_page {
    let call = "vm_page_alloc";
    rule(call, locks::object_write_locked(object), "the object is not write-locked");
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

/// `vm_free_count`: next to nothing when memory is short.
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

thread_local! {
    /// How many pages of which objects this thread has looked up, if that is
    /// to be known.
    pub static LOOKED: std::cell::RefCell<Option<HashMap<usize, usize>>> = const { std::cell::RefCell::new(None) };
}

/// `vm_page_lookup`.
pub extern "C" fn vm_page_lookup(object: *mut sys::vm_object, pindex: u64) -> *mut sys::vm_page {
    rule("vm_page_lookup", locks::object_locked(object), "the object is not locked");
    LOOKED.with_borrow_mut(|looked| {
        if let Some(looked) = looked {
            *looked.entry(object as usize).or_default() += 1;
        }
    });
    resident(object, pindex).map_or(ptr::null_mut(), |page| page.0)
}

fn busied(call: &str, m: *mut sys::vm_page) -> Page {
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
    rule(call, locks::object_write_locked(page.fields().object), "the object is not write-locked");
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
    let index = address as usize / PAGE;
    // SAFETY: an index of the array.
    if index < PAGES { unsafe { MACHINE.pages.add(index) } } else { ptr::null_mut() }
}

/// `pmap_zero_page_area`.
pub extern "C" fn pmap_zero_page_area(m: *mut sys::vm_page, offset: c_int, size: c_int) {
    let call = "pmap_zero_page_area";
    let page = busied(call, m);
    let (offset, size) = (offset as usize, size as usize);
    rule(call, offset + size <= PAGE, "the range leaves the page");
    // SAFETY: within the page.
    unsafe { page.data().add(offset).write_bytes(0, size) };
}

/// Addresses of `pages` pages that fault.
pub fn reserve(pages: usize, what: &str) -> *mut u8 {
    let at = graves::reserve(pages * PAGE);
    graves::name(at as usize..at as usize + pages * PAGE, what);
    at
}

/// `pmap_qenter`: the pages appear at `va`, the same memory a second time.
pub extern "C" fn pmap_qenter(va: u64, pages: *mut *mut sys::vm_page, count: c_int) {
    for i in 0..count as usize {
        // SAFETY: the caller's array; MAP_FIXED over a reserved range.
        unsafe {
            let page = Page(*pages.add(i));
            let at = libc::mmap(
                (va as usize + i * PAGE) as *mut c_void,
                PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                MACHINE.file,
                (page.index() * PAGE) as i64,
            );
            rule("pmap_qenter", at != libc::MAP_FAILED, "cannot map");
        }
    }
    MAPPED.fetch_add(count as usize, Ordering::Relaxed);
}

/// `pmap_qremove`: touching the range is a fault from now on.
pub extern "C" fn pmap_qremove(va: u64, count: c_int) {
    // SAFETY: over a range that pmap_qenter() has mapped.
    unsafe {
        libc::mmap(
            va as *mut c_void,
            count as usize * PAGE,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    let mapped = MAPPED.fetch_sub(count as usize, Ordering::Relaxed);
    rule("pmap_qremove", mapped >= count as usize, "more than is mapped");
}
