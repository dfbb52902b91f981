// SPDX-License-Identifier: BSD-2-Clause
//! Resident pages: which page is where, and the thread that has it busied, with
//! what INVARIANTS asserts and more.

use std::{
    collections::{BTreeMap, HashMap},
    ptr,
    sync::{
        Condvar, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        rules::{record, rule, violation},
        sleep::may_sleep,
    },
    host::{
        clock::Patience,
        memory::{self, PAGE, PAGES},
        schedule, thread,
    },
    kernel::rwlock,
};

/// Fills a new page, which nothing has been read into.
const GARBAGE: u8 = 0xa5;
pub const UNBUSIED: u32 = 1;
const XBUSY: u32 = 2;
const FREED: u32 = u32::MAX - 1;

/// How often a consumer has had to wait for a page that was busied.
pub static BUSY_WAITS: AtomicU64 = AtomicU64::new(0);

/// `vm_page_array`.
fn array() -> *mut sys::vm_page {
    static ARRAY: LazyLock<usize> = LazyLock::new(|| {
        let pages: Vec<sys::vm_page> = (0..PAGES)
            .map(|i| {
                // SAFETY: zeros are a free page without an object.
                let mut page: sys::vm_page = unsafe { std::mem::zeroed() };
                page.phys_addr = (i * PAGE) as u64;
                page.busy_lock = FREED;
                page
            })
            .collect();
        pages.leak().as_mut_ptr() as usize
    });
    *ARRAY as *mut sys::vm_page
}

/// The type of an object.
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
pub struct Object {
    /// Resident pages.
    pub pages: BTreeMap<u64, usize>,
    /// `ref_count`.
    pub references: usize,
    /// `paging_in_progress`.
    pub paging: usize,
    /// OBJ_DEAD: it goes with the last of both.
    pub dead: bool,
    /// `type`.
    pub kind: Kind,
}

/// All objects and pages.
#[derive(Default)]
pub struct Vm {
    pub objects: HashMap<usize, Object>,
    pub free: Vec<usize>,
    pub used: usize,
}

pub static VM: LazyLock<Mutex<Vm>> = LazyLock::new(|| {
    // Page 0 is bogus_page.
    Mutex::new(Vm { free: (1..PAGES).rev().collect(), ..Vm::default() })
});

pub static BUSY: Condvar = Condvar::new();

/// Seconds after which a sleeping thread is taken for hung.
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
        Self(array())
    }

    /// The page with this index in the array.
    pub fn from_index(index: usize) -> Option<Self> {
        // SAFETY: an index of the array.
        (index < PAGES).then(|| Self(unsafe { array().add(index) }))
    }

    /// Its index in the array, and in the machine's memory.
    pub fn index(self) -> usize {
        // SAFETY: only pages of the array are ever made.
        unsafe { self.0.offset_from(array()) as usize }
    }

    /// The page's memory.
    pub fn data(self) -> *mut u8 {
        memory::at(self.index())
    }

    /// The page's fields.
    #[allow(clippy::mut_from_ref)]
    pub fn fields(&self) -> &mut sys::vm_page {
        // SAFETY: in the array, which lives for ever. The thread that has busied the page writes,
        // or the holder of VM.
        unsafe { &mut *self.0 }
    }

    /// Whether the page is exclusive-busied.
    pub fn is_busy(self) -> bool {
        self.fields().busy_lock == XBUSY
    }

    /// Whether the page is busied shared.
    fn is_shared(self) -> bool {
        let lock = self.fields().busy_lock;
        lock != FREED && lock & UNBUSIED != 0 && lock != UNBUSIED
    }

    /// Whether the page is busied in any way.
    pub fn is_taken(self) -> bool {
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

    /// Unbusies the page, and wakes the threads that wait for it.
    pub fn unbusy(self, call: &str) {
        let _vm = VM.lock().unwrap();
        self.owner().store(0, Ordering::Relaxed);
        record(call, format_args!("unbusy {self}"));
        rule(call, self.is_busy(), format_args!("page {self:?} is not exclusive-busied"));
        self.fields().busy_lock = UNBUSIED;
        BUSY.notify_all();
    }
}

pub fn bits(offset: usize, len: usize) -> u8 {
    if len == 0 {
        return 0;
    }
    (offset / 512..=(offset + len - 1) / 512).fold(0, |bits, i| bits | 1 << i)
}

impl Vm {
    /// A live object.
    pub fn object(&mut self, call: &str, object: *mut sys::vm_object) -> &mut Object {
        let Some(object) = self.objects.get_mut(&(object as usize)) else {
            violation(call, format_args!("{object:?} is not a live object"));
        };
        object
    }

    fn page(&self, object: *mut sys::vm_object, pindex: u64) -> Option<Page> {
        let index = *self.objects.get(&(object as usize))?.pages.get(&pindex)?;
        // SAFETY: an index of the array.
        Some(Page(unsafe { array().add(index) }))
    }

    /// All pages of an object.
    pub fn pages(&self, object: *mut sys::vm_object) -> Vec<Page> {
        let object = self.objects.get(&(object as usize));
        let indices = object.into_iter().flat_map(|object| object.pages.values());
        // SAFETY: indices of the array.
        indices.map(|index| Page(unsafe { array().add(*index) })).collect()
    }
}

/// Sleeps until `done` returns a result.
pub fn wait_for<T>(call: &str, mut done: impl FnMut(&mut Vm) -> Option<T>) -> T {
    may_sleep(call);
    let mut patience = Patience::seconds(PATIENCE);
    let mut vm = VM.lock().unwrap();
    loop {
        if let Some(result) = done(&mut vm) {
            return result;
        }
        if schedule::is_one_thread() {
            drop(vm);
            rule(call, schedule::pump(), "deadlock: no thread is left to wake this one");
            vm = VM.lock().unwrap();
        } else {
            let (next, late) = BUSY.wait_timeout(vm, Patience::STEP).unwrap();
            rule(call, !late.timed_out() || patience.spend(), "no thread wakes this one");
            vm = next;
        }
    }
}

/// The page at `pindex`, busied and wired for a consumer: an existing one, when
/// it is not busy any more, or a new one.
pub fn grab(object: *mut sys::vm_object, pindex: u64) -> Page {
    loop {
        if let Some(page) = rwlock::with_object(object, || try_grab(object, pindex)) {
            return page;
        }
        BUSY_WAITS.fetch_add(1, Ordering::Relaxed);
        wait_for("vm_page_busy_sleep", |vm| {
            let busy = vm.page(object, pindex).is_some_and(Page::is_taken);
            (!busy).then_some(())
        });
    }
}

/// The kernel waits until a page, if it exists, is not busy: a thread that has
/// busied the page itself, and has not given it to a pager, would wait for ever.
///
/// The wait for another thread's page is left out. Stock 14.2 has it: a page fault
/// and a sendfile(2) that each have a page busied which the other one needs wait
/// for each other, whatever the module does.
pub fn busied_by_another(call: &str, object: *mut sys::vm_object, pindex: u64) {
    let vm = VM.lock().unwrap();
    let taken = vm.page(object, pindex).filter(|page| page.is_taken());
    let own = taken.is_some_and(|page| page.owner().load(Ordering::Relaxed) == thread::number());
    drop(vm);
    rule(call, !own, format_args!("deadlock: this very thread has page {pindex} busied"));
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
    page.owner().store(thread::number(), Ordering::Relaxed);
    record("vm_page_grab_pages", format_args!("{page} valid {:#x}", page.fields().valid));
    Some(page)
}

impl Vm {
    /// Takes a free page, which belongs to no object yet.
    pub fn take_free(&mut self) -> Option<Page> {
        let index = self.free.pop()?;
        self.used += 1;
        // SAFETY: an index of the array.
        let page = Page(unsafe { array().add(index) });
        let fields = page.fields();
        fields.valid = 0;
        fields.dirty = 0;
        fields.ref_count = 0;
        // SAFETY: the page's own memory.
        unsafe { page.data().write_bytes(GARBAGE, PAGE) };
        Some(page)
    }

    /// Adds a new, busied page to an object.
    pub fn allocate(&mut self, object: *mut sys::vm_object, pindex: u64) -> Option<Page> {
        let page = self.take_free()?;
        let (fields, index) = (page.fields(), page.index());
        fields.object = object;
        fields.pindex = pindex;
        fields.busy_lock = XBUSY;
        self.objects.get_mut(&(object as usize))?.pages.insert(pindex, index);
        Some(page)
    }

    /// Frees a page.
    pub fn release(&mut self, page: Page) {
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

/// Pages that the torture has busied shared, as vm_fault() and the buffer
/// cache do for a moment.
static SHARED: Mutex<Vec<Page>> = Mutex::new(Vec::new());

/// The count of one shared holder in a busy word: VPB_SHARERS_WORD.
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

/// Pages in use.
pub fn used() -> usize {
    VM.lock().unwrap().used
}
