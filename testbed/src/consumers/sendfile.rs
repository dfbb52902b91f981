// SPDX-License-Identifier: BSD-2-Clause
//! The consumer: what kern_sendfile.c does with getpages, page for page.

use std::{
    collections::VecDeque,
    ffi::{c_int, c_void},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        rules::{record, rule, violation},
        sleep,
    },
    ffs::file::File,
    host::{clock::Patience, memory::PAGE, schedule},
    kernel::{
        buf, proc,
        resident::{self, Page},
        vm_object, vm_pager,
        vnode::VnodeLocked,
        vnode_if,
    },
};

/// Calls of VOP_GETPAGES and VOP_GETPAGES_ASYNC so far.
pub static CALLS: AtomicU64 = AtomicU64::new(0);

/// How many of them made their caller wait for the disk, though async.
pub static CALLS_WAITED: AtomicU64 = AtomicU64::new(0);

/// Requests that stay in quarantine after their end: a second iodone finds its request
/// and is reported.
const QUARANTINE: usize = 50_000;

static ENDED: Mutex<VecDeque<Box<Expected>>> = Mutex::new(VecDeque::new());

/// Seconds after which a missing iodone is a violation.
const PATIENCE: u32 = 20;

/// The page array of one call, and how often iodone was called for it.
struct Expected {
    io: Arc<Io>,
    pages: Vec<*mut sys::vm_page>,
    calls: AtomicUsize,
}

// SAFETY: addresses of pages, which live for ever.
unsafe impl Send for Expected {}

/// Microseconds that the thread of iodone stays in it after the consumer has gone on;
/// 0 for none.
pub static LINGER: AtomicU64 = AtomicU64::new(0);

/// Threads that stay in iodone now.
static LINGERING: AtomicUsize = AtomicUsize::new(0);

/// Ends LINGER, and waits until no thread stays in iodone.
pub fn linger_no_more() {
    LINGER.store(0, Ordering::Release);
    while LINGERING.load(Ordering::Acquire) > 0 {
        std::thread::sleep(Duration::from_micros(100));
    }
}

#[derive(Default)]
struct State {
    outstanding: usize,
    error: c_int,
}

/// A sendfile's I/Os, as struct sf_io counts them.
#[derive(Default)]
struct Io {
    state: Mutex<State>,
    done: Condvar,
    /// The object in whose `paging_in_progress` they count; 0 for none.
    object: usize,
}

impl Io {
    /// One of them is over; with the last one, the object may go.
    fn end(&self, error: c_int) {
        let mut state = self.state.lock().unwrap();
        if error != 0 {
            state.error = error;
        }
        state.outstanding -= 1;
        if state.outstanding == 0 && self.object != 0 {
            vm_object::vm_object_pip_wakeup(self.object as *mut sys::vm_object);
        }
        self.done.notify_all();
    }
}

/// sendfile_iodone(): checks the contract, and unbusies.
unsafe extern "C" fn iodone(
    arg: *mut c_void,
    pages: *mut *mut sys::vm_page,
    count: c_int,
    error: c_int,
) {
    let call = "iodone";
    record(call, format_args!("request {arg:?} count {count} errno {error}"));
    // SAFETY: what start() passed; it stays in ENDED for long after its end.
    let expected = unsafe { &*(arg as *const Expected) };
    rule(
        call,
        expected.calls.fetch_add(1, Ordering::AcqRel) == 0,
        "called a second time for one request",
    );
    rule(
        call,
        count as usize == expected.pages.len(),
        format_args!("count {count} for a request of {}", expected.pages.len()),
    );
    for (i, page) in expected.pages.iter().enumerate() {
        // SAFETY: count pages, by the rule above.
        let got = unsafe { *pages.add(i) };
        rule(call, got == *page, format_args!("page {i} is not the one of the request"));
        let page = Page(got);
        if page != Page::bogus() {
            rule(call, page.is_busy(), format_args!("page {i} is not busy any more"));
            rule(
                call,
                error != 0 || page.fields().valid != 0,
                format_args!("no error, and page {i} is invalid"),
            );
            page.unbusy(call);
        }
    }
    LINGERING.fetch_add(1, Ordering::AcqRel);
    expected.io.end(error);
    let linger = Duration::from_micros(LINGER.load(Ordering::Relaxed));
    let begin = Instant::now();
    while LINGER.load(Ordering::Relaxed) > 0
        && begin.elapsed() < linger
        && !schedule::is_one_thread()
    {
        std::thread::sleep(linger.min(Duration::from_micros(300)));
    }
    LINGERING.fetch_sub(1, Ordering::AcqRel);
}

/// The outcome of one call of VOP_GETPAGES_ASYNC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The VOP's return value.
    pub code: c_int,
    /// The error that iodone was given.
    pub error: c_int,
    /// Pages read behind and ahead, as reported.
    pub behind: c_int,
    /// See `behind`.
    pub ahead: c_int,
}

/// An object's I/Os that one call of its pager begins.
fn paging(object: *mut sys::vm_object) -> Arc<Io> {
    vm_object::vm_object_pip_add(object, 1);
    Arc::new(Io { object: object as usize, ..Io::default() })
}

/// Call VOP_GETPAGES_ASYNC for busied pages and wait for its iodone.
pub fn getpages_async(file: &File, pages: &[Page], behind: c_int, ahead: c_int) -> Outcome {
    let io = paging(file.object);
    let locked = VnodeLocked::new(file.vnode, false, "VOP_GETPAGES_ASYNC");
    let (code, behind, ahead) = start(file.object, &io, pages, Some(behind), Some(ahead));
    drop(locked);
    let error = wait(&io);
    rule(
        "VOP_GETPAGES_ASYNC",
        code == sys::VM_PAGER_OK || error != 0,
        "an error that iodone was not told of",
    );
    Outcome { code, error, behind, ahead }
}

fn start(
    object: *mut sys::vm_object,
    io: &Arc<Io>,
    pages: &[Page],
    behind: Option<c_int>,
    ahead: Option<c_int>,
) -> (c_int, c_int, c_int) {
    let pages: Vec<*mut sys::vm_page> = pages.iter().map(|page| page.0).collect();
    let mut array = pages.clone();
    let expected = Box::new(Expected { io: io.clone(), pages, calls: AtomicUsize::new(0) });
    let arg = (&raw const *expected).cast_mut().cast();
    {
        let mut ended = ENDED.lock().unwrap();
        ended.push_back(expected);
        // QUARANTINE more requests have begun since: this one is over.
        let old = (ended.len() > QUARANTINE).then(|| ended.pop_front()).flatten();
        if let Some(old) = old {
            rule("iodone", old.calls.load(Ordering::Acquire) == 1, "never called for a request");
        }
    }
    CALLS.fetch_add(1, Ordering::Relaxed);
    record(
        "VOP_GETPAGES_ASYNC",
        format_args!("request {arg:?} {} pages behind {behind:?} ahead {ahead:?}", array.len()),
    );
    io.state.lock().unwrap().outstanding += 1;
    let (mut rbehind, mut rahead) = (behind.unwrap_or(0), ahead.unwrap_or(0));
    let waited = sleep::waited();
    let code = vm_pager::get_pages_async(vm_pager::Request {
        object,
        pages: array.as_mut_ptr(),
        count: array.len() as c_int,
        behind: if behind.is_some() { &mut rbehind } else { std::ptr::null_mut() },
        ahead: if ahead.is_some() { &mut rahead } else { std::ptr::null_mut() },
        iodone,
        arg,
    });
    // The VOP has no claim on the caller's array after it has returned.
    array.fill(std::ptr::dangling_mut());
    CALLS_WAITED.fetch_add(u64::from(sleep::waited() > waited), Ordering::Relaxed);
    (code, rbehind, rahead)
}

fn wait(io: &Io) -> c_int {
    let mut patience = Patience::seconds(PATIENCE);
    let mut state = io.state.lock().unwrap();
    while state.outstanding > 0 {
        drop(state);
        let pumped = schedule::pump();
        state = io.state.lock().unwrap();
        if pumped || state.outstanding == 0 {
            continue;
        }
        if schedule::is_one_thread() {
            violation("sendfile_iowait", "no thread is left to call iodone: the process hangs");
        }
        let (next, late) = io.done.wait_timeout(state, Patience::STEP).unwrap();
        state = next;
        if late.timed_out() && !patience.spend() {
            violation("sendfile_iowait", "iodone has not been called: the process hangs");
        }
    }
    state.error
}

/// The same for pages of an object that swap space backs.
pub fn swap_getpages(object: *mut sys::vm_object, pages: &[Page]) -> Outcome {
    let io = paging(object);
    let (code, behind, ahead) = start(object, &io, pages, None, Some(4));
    Outcome { code, error: wait(&io), behind, ahead }
}

/// Call VOP_GETPAGES for busied pages of a locked vnode; its return value, and
/// extra pages read.
pub fn getpages(
    file: &File,
    pages: &[Page],
    behind: c_int,
    ahead: c_int,
    through_async: bool,
) -> Outcome {
    let mut array: Vec<*mut sys::vm_page> = pages.iter().map(|page| page.0).collect();
    let (mut behind, mut ahead) = (behind, ahead);
    CALLS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: a VOP's argument block, live for the call.
    let code = unsafe {
        let ops = &*(*file.vnode).v_op;
        if through_async {
            let mut ap: sys::vop_getpages_async_args = std::mem::zeroed();
            (ap.a_vp, ap.a_m, ap.a_count) = (file.vnode, array.as_mut_ptr(), array.len() as c_int);
            (ap.a_rbehind, ap.a_rahead) = (&mut behind, &mut ahead);
            ops.vop_getpages_async.map_or(sys::VM_PAGER_ERROR, |vop| vop(&mut ap))
        } else {
            let mut ap: sys::vop_getpages_args = std::mem::zeroed();
            (ap.a_vp, ap.a_m, ap.a_count) = (file.vnode, array.as_mut_ptr(), array.len() as c_int);
            (ap.a_rbehind, ap.a_rahead) = (&mut behind, &mut ahead);
            ops.vop_getpages.map_or(sys::VM_PAGER_ERROR, |vop| vop(&mut ap))
        }
    };
    Outcome { code, error: 0, behind, ahead }
}

/// Send `len` bytes at `offset`: swap in, wait, and give the bytes to `sink`.
/// The errno of an I/O error.
pub fn sendfile(
    file: &File,
    offset: u64,
    len: u64,
    readahead: c_int,
    nocache: bool,
    sink: impl FnMut(&[u8]),
) -> Result<(), c_int> {
    Sending::begin(file, offset, len, readahead).ok_or(sys::EINVAL)?.finish(nocache, sink)
}

/// A sendfile(2) with its I/O in flight.
pub struct Sending {
    io: Arc<Io>,
    pages: Vec<Page>,
    offset: u64,
    len: u64,
    failed: bool,
}

impl Sending {
    /// vn_sendfile(): start what is missing, wait for nothing but busy pages.
    /// `None` when the file is gone.
    pub fn begin(file: &File, offset: u64, len: u64, readahead: c_int) -> Option<Self> {
        proc::in_syscall(sys::SYS_sendfile as u32, || Self::enter(file, offset, len, readahead))
    }

    fn enter(file: &File, offset: u64, len: u64, readahead: c_int) -> Option<Self> {
        // kern_sendfile.c holds the vnode lock until all I/O has begun.
        let entered = file.enter("kern_sendfile")?;
        let len = len.min(file.size().saturating_sub(offset));
        let first = offset / PAGE as u64;
        let count = ((offset + len).div_ceil(PAGE as u64) - first) as usize;
        let count = if len == 0 { 0 } else { count };
        vm_object::vm_object_reference(file.object);
        let pages: Vec<Page> =
            (0..count).map(|i| resident::grab(file.object, first + i as u64)).collect();
        let state = Mutex::new(State { outstanding: 1, error: 0 });
        let io = Arc::new(Io { state, object: file.object as usize, ..Io::default() });
        vm_object::vm_object_pip_add(file.object, 1);
        let mut sending = Self { io, pages, offset, len, failed: false };
        let mut i = 0;
        while i < count {
            i += sending.swapin(file, first, i, readahead);
        }
        sending.io.end(0);
        buf::none_locked("userret");
        // From here on wired pages and I/O in flight are all that is left of
        // it: neither the vnode nor the object is held.
        drop(entered);
        vm_object::vm_object_deallocate(file.object);
        Some(sending)
    }

    fn range(&self, i: usize) -> std::ops::Range<usize> {
        let page = (self.offset / PAGE as u64 + i as u64) * PAGE as u64;
        let start = self.offset.saturating_sub(page) as usize;
        start..((self.offset + self.len - page) as usize).min(PAGE)
    }

    fn valid(&self, page: Page, i: usize) -> bool {
        let range = self.range(i);
        page.is_valid(range.start, range.len())
    }

    /// One step at page `i`; how many pages it has dealt with.
    fn swapin(&mut self, file: &File, first: u64, i: usize, readahead: c_int) -> usize {
        let (call, count) = ("sendfile_swapin", self.pages.len());
        let page = self.pages[i];
        if self.failed || self.valid(page, i) {
            page.unbusy(call);
            return 1;
        }
        let (place, after) = haspage(file, first + i as u64);
        if !place {
            // SAFETY: a busied page of the consumer.
            unsafe { page.data().write_bytes(0, PAGE) };
            page.fields().valid = u8::MAX;
            page.unbusy(call);
            return 1;
        }
        let reach = (after + 1).min(count - i);
        let mut run: Vec<Page> = self.pages[i..i + reach].to_vec();
        while run.len() > 1 && self.valid(run[run.len() - 1], i + run.len() - 1) {
            if let Some(page) = run.pop() {
                page.unbusy(call);
            }
        }
        let inner = run.len().saturating_sub(1);
        for (j, page) in run.iter_mut().enumerate().take(inner).skip(1) {
            if self.valid(*page, i + j) {
                page.unbusy(call);
                *page = Page::bogus();
            }
        }
        let last = i + run.len() == count;
        let (code, ..) = start(file.object, &self.io, &run, None, last.then_some(readahead));
        self.failed = code != sys::VM_PAGER_OK;
        reach
    }

    /// Whether all its I/O is over.
    pub fn is_over(&self) -> bool {
        self.io.state.lock().unwrap().outstanding == 0
    }

    /// sendfile_iowait(), the bytes, and the pages' release.
    pub fn finish(self, nocache: bool, mut sink: impl FnMut(&[u8])) -> Result<(), c_int> {
        let error = wait(&self.io);
        if error == 0 && !self.failed {
            for (i, page) in self.pages.iter().enumerate() {
                let range = self.range(i);
                // SAFETY: a wired, valid page.
                sink(unsafe {
                    std::slice::from_raw_parts(page.data().add(range.start), range.len())
                });
            }
        }
        self.pages.iter().for_each(|page| resident::unwire(*page, !nocache));
        match error {
            0 if self.failed => Err(sys::EIO),
            0 => Ok(()),
            error => Err(error),
        }
    }
}

/// vm_pager_has_page(): whether the page is not in a hole, and how many pages follow it on the disk.
fn haspage(file: &File, pindex: u64) -> (bool, usize) {
    let block = file.mount.block as usize;
    let last = file.size().div_ceil(PAGE as u64) - 1;
    let lbn = pindex * PAGE as u64 / block as u64;
    let (mut place, mut after) = (-1, 0);
    // SAFETY: a VOP's argument block, live for the call.
    let error = unsafe {
        let mut ap: sys::vop_bmap_args = std::mem::zeroed();
        (ap.a_vp, ap.a_bn, ap.a_bnp, ap.a_runp) = (file.vnode, lbn as i64, &mut place, &mut after);
        vnode_if::vop_bmap_apv(std::ptr::null_mut(), &mut ap)
    };
    let after = after.max(0) as usize;
    if error != 0 {
        // As vnode_pager_haspage() has it: yes, and whatever the VOP has set.
        return (true, after);
    }
    let pages = if block < PAGE {
        after / (PAGE / block)
    } else {
        let inside = (pindex * PAGE as u64 % block as u64) as usize / PAGE;
        after * (block / PAGE) + block / PAGE - inside - 1
    };
    (place >= 0, pages.min((last - pindex) as usize))
}
