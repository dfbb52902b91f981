// SPDX-License-Identifier: BSD-2-Clause
//! Threads as the module sees them: a pcpu behind %gs with curthread and counters.

use std::{
    cell::Cell,
    ffi::c_char,
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicI32, AtomicU8, AtomicU32, Ordering},
    },
    time::Duration,
};

use asyncpager::kpi::sys;

use crate::{locks, low, rules::rule};

/// Bytes of one fake pcpu; counters lie behind the structure.
const SIZE: usize = 64 << 10;

static ALL: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static COUNTERS: Mutex<Vec<Option<()>>> = Mutex::new(Vec::new());

/// Those whose thread has ended; counters keep what they have.
static FREE: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// A thread's pcpu, for the next thread when this one ends.
struct Pcpu(Cell<usize>);

impl Drop for Pcpu {
    fn drop(&mut self) {
        if self.0.get() != 0 {
            // SAFETY: an attached thread's pcpu.
            let thread = unsafe { (*(self.0.get() as *const sys::pcpu)).pc_curthread };
            Scheduled(thread).is(sys::TDS_INACTIVE);
        }
        FREE.lock().unwrap().extend(Some(self.0.get()).filter(|pcpu| *pcpu != 0));
    }
}

thread_local! {
    static MINE: Pcpu = const { Pcpu(Cell::new(0)) };
}

/// Make the calling host thread one that may run the module's code.
pub fn attach() {
    if MINE.with(|mine| mine.0.get()) != 0 {
        return;
    }
    let pcpu = match FREE.lock().unwrap().pop() {
        Some(pcpu) => pcpu,
        None => new(),
    };
    const ARCH_SET_GS: libc::c_int = 0x1001;
    // SAFETY: changes only %gs, which a Linux program does not use.
    let failed = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, pcpu) };
    assert_eq!(failed, 0, "arch_prctl(ARCH_SET_GS)");
    MINE.with(|mine| mine.0.set(pcpu));
    static TIDS: AtomicI32 = AtomicI32::new(100_001);
    let thread = curthread();
    // SAFETY: the calling thread's own structure, which is on no list yet.
    unsafe {
        (*thread).td_tid = TIDS.fetch_add(1, Ordering::Relaxed);
        (*thread).td_proc = process();
        (*thread).td_pri_class = sys::PRI_TIMESHARE as u8;
    }
    Scheduled(thread).is(sys::TDS_RUNNING);
}

/// A thread as the scheduler has it.
#[derive(Clone, Copy)]
pub struct Scheduled(*mut sys::thread);

// SAFETY: threads' structures live for ever; the fields are atomic here.
unsafe impl Send for Scheduled {}

impl Scheduled {
    /// The calling thread.
    pub fn me() -> Self {
        Self(curthread())
    }

    /// td_state becomes this.
    pub fn is(self, state: sys::thread_td_states) {
        // SAFETY: live for ever; aligned, and all accesses here are atomic.
        let field = unsafe { AtomicU32::from_ptr(&raw mut (*self.0).td_state) };
        field.store(state, Ordering::Release);
    }

    fn state(self) -> sys::thread_td_states {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.0).td_state) }.load(Ordering::Acquire)
    }

    /// The thread is put into the idle class, as by idprio(1), or out of it.
    pub fn idle_class(self, idle: bool) {
        let class = if idle { sys::PRI_IDLE } else { sys::PRI_TIMESHARE };
        // SAFETY: as above.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.0).td_pri_class) }
            .store(class as u8, Ordering::Release);
    }

    /// mi_switch() switches it out, and it has run again.
    pub fn switch(self) {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.0).td_generation) }
            .fetch_add(1, Ordering::AcqRel);
    }

    /// td_tid.
    pub fn tid(self) -> i32 {
        // SAFETY: as above; written once, when the thread begins.
        unsafe { (*self.0).td_tid }
    }
}

/// The process of all threads.
fn process() -> *mut sys::proc_ {
    static PLACE: LazyLock<usize> = LazyLock::new(|| {
        let process: *mut sys::proc_ = low::zeroed();
        // SAFETY: fresh memory.
        unsafe {
            (*process).p_pid = 77;
            (*process).p_state = sys::PRS_NORMAL;
            locks::own_mutex(&raw mut (*process).p_mtx, "process lock");
        }
        process as usize
    });
    *PLACE as *mut sys::proc_
}

/// `proc0`, the kernel's process.
pub fn proc0() -> *mut sys::proc_ {
    static PLACE: LazyLock<usize> = LazyLock::new(|| low::zeroed::<sys::proc_>() as usize);
    *PLACE as *mut sys::proc_
}

/// Run `f` as the thread that boots the kernel.
pub fn in_proc0<T>(f: impl FnOnce() -> T) -> T {
    let thread = curthread();
    // SAFETY: the calling thread's own structure.
    unsafe { (*thread).td_proc = proc0() };
    let result = in_syscall(0, f);
    // SAFETY: as above.
    unsafe { (*thread).td_proc = process() };
    result
}

/// A process that fork(2) has listed and not finished: its thread, of whatever
/// class, has no td_lock yet.
fn newborn() -> *mut sys::proc_ {
    let (process, thread): (*mut sys::proc_, *mut sys::thread) = (low::zeroed(), low::zeroed());
    // SAFETY: fresh memory.
    unsafe {
        (*process).p_pid = 78;
        (*process).p_state = sys::PRS_NEW;
        locks::own_mutex(&raw mut (*process).p_mtx, "process lock");
        (*thread).td_proc = process;
        (*thread).td_pri_class = sys::PRI_IDLE as u8;
        (*process).p_threads.tqh_first = thread;
    }
    process
}

/// `allproc`: a list of one process, and one that is just being made.
pub fn allproc() -> *mut u8 {
    static PLACE: LazyLock<usize> = LazyLock::new(|| {
        let head: *mut *mut sys::proc_ = low::zeroed();
        // SAFETY: fresh memory.
        unsafe {
            *head = newborn();
            (**head).p_list.le_next = process();
        }
        head as usize
    });
    *PLACE as *mut u8
}

/// How often the list of threads was looked at, to the end.
pub static LISTED: AtomicU32 = AtomicU32::new(0);

/// The process's list of threads is what it is now; allproc_lock was just taken.
pub fn list_threads() {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap();
    let process = process();
    // SAFETY: only this changes the list, one thread at a time; structures of
    // threads live for ever, so that a reader finds a list at any time.
    unsafe {
        let mut last = &raw mut (*process).p_threads.tqh_first;
        for thread in threads() {
            *last = thread.0;
            (*thread.0).td_plist.tqe_prev = last;
            last = &raw mut (*thread.0).td_plist.tqe_next;
        }
        *last = std::ptr::null_mut();
        (*process).p_threads.tqh_last = last;
    }
}

/// Threads that have not ended.
fn threads() -> Vec<Scheduled> {
    let all = ALL.lock().unwrap();
    // SAFETY: an attached thread's pcpu.
    all.iter()
        .map(|pcpu| Scheduled(unsafe { (*(*pcpu as *const sys::pcpu)).pc_curthread }))
        .filter(|thread| thread.state() != sys::TDS_INACTIVE)
        .collect()
}

/// `tdfind`: the thread with its process locked.
pub unsafe extern "C" fn tdfind(tid: i32, pid: i32) -> *mut sys::thread {
    let call = "tdfind";
    let process = process();
    // SAFETY: live for ever.
    rule(call, pid == -1 || pid == unsafe { (*process).p_pid }, "another process");
    let Some(thread) = threads().into_iter().find(|thread| thread.tid() == tid) else {
        return std::ptr::null_mut();
    };
    // SAFETY: the process's own mutex.
    unsafe { locks::mtx_lock((&raw mut (*process).p_mtx.mtx_lock).cast(), 0, std::ptr::null(), 0) };
    thread.0
}

/// Note that the calling thread is in a system call with this number, for as
/// long as `f` runs.
pub fn in_syscall<T>(code: u32, f: impl FnOnce() -> T) -> T {
    let thread = curthread();
    // SAFETY: the calling thread's own structure.
    let before = unsafe { std::mem::replace(&mut (*thread).td_sa.code, code) };
    let result = f();
    // SAFETY: as above.
    unsafe { (*thread).td_sa.code = before };
    result
}

/// Have the calling thread belong to a user for as long as `f` runs.
pub fn as_user<T>(uid: u32, f: impl FnOnce() -> T) -> T {
    // SAFETY: the calling thread's own credentials, which no other thread has.
    let cred = unsafe { (*curthread()).td_ucred };
    // SAFETY: as above.
    let before = unsafe { std::mem::replace(&mut (*cred).cr_ruid, uid) };
    let result = f();
    // SAFETY: as above.
    unsafe { (*cred).cr_ruid = before };
    result
}

/// curthread.
pub fn curthread() -> *mut sys::thread {
    let pcpu = MINE.with(|mine| mine.0.get()) as *const sys::pcpu;
    // SAFETY: an attached thread's pcpu.
    unsafe { (*pcpu).pc_curthread }
}

fn new() -> usize {
    let pcpu = low::variable(SIZE) as usize;
    let thread: *mut sys::thread = low::zeroed();
    let cred: *mut sys::ucred = low::zeroed();
    // SAFETY: fresh memory of the right size.
    unsafe {
        (*thread).td_ucred = cred;
        (*(pcpu as *mut sys::pcpu)).pc_curthread = thread;
    }
    ALL.lock().unwrap().push(pcpu);
    pcpu
}

fn offset(slot: usize) -> usize {
    size_of::<sys::pcpu>().next_multiple_of(64) + slot * 8
}

/// counter_u64_alloc(9): the handle is the counter's offset from %gs.
pub extern "C" fn counter_u64_alloc(_flags: i32) -> *mut u64 {
    crate::rules::may_sleep("counter_u64_alloc");
    let mut counters = COUNTERS.lock().unwrap();
    let slot = counters.iter().position(Option::is_none).unwrap_or(counters.len());
    if slot == counters.len() {
        counters.push(None);
    }
    counters[slot] = Some(());
    assert!(offset(slot) + 8 <= SIZE, "too many counters");
    let handle = offset(slot) as *mut u64;
    for pcpu in ALL.lock().unwrap().iter() {
        // SAFETY: within every pcpu.
        unsafe { ((pcpu + handle as usize) as *mut u64).write_volatile(0) };
    }
    handle
}

/// A counter that nobody reads, for the system's own statistics.
pub fn spare_counter() -> *mut u64 {
    (SIZE - 8) as *mut u64
}

/// counter_u64_free(9).
pub extern "C" fn counter_u64_free(counter: *mut u64) {
    let slot = (counter as usize).wrapping_sub(offset(0)) / 8;
    let mut counters = COUNTERS.lock().unwrap();
    rule("counter_u64_free", counters.get(slot).is_some_and(Option::is_some), "not a live counter");
    counters[slot] = None;
}

/// The sum over all threads.
pub fn counter_fetch(counter: *mut u64) -> u64 {
    let all = ALL.lock().unwrap();
    all.iter().fold(0, |sum, pcpu| {
        // SAFETY: `counter` is an offset within every pcpu.
        sum.wrapping_add(unsafe { ((pcpu + counter as usize) as *const u64).read_volatile() })
    })
}

/// `counter_u64_fetch`.
pub extern "C" fn counter_u64_fetch(counter: *mut u64) -> u64 {
    counter_fetch(counter)
}

/// Counters that are allocated now.
pub fn counters() -> usize {
    COUNTERS.lock().unwrap().iter().flatten().count()
}

thread_local! {
    /// Critical sections that this thread is in.
    static CRITICAL: Cell<usize> = const { Cell::new(0) };
    /// The CPU that this thread is bound to.
    static BOUND: Cell<Option<i32>> = const { Cell::new(None) };
    /// The thread whose thread lock, a spin mutex, this thread holds, or null.
    static THREAD_LOCK: Cell<*mut sys::thread> = const { Cell::new(std::ptr::null_mut()) };
}

/// Nothing of this thread's keeps it where it is: at the end of a call into the module.
pub fn unbound(call: &str) {
    rule(call, BOUND.get().is_none(), "the thread is left bound to a CPU");
    rule(call, CRITICAL.get() == 0, "the thread is left in a critical section");
    rule(call, THREAD_LOCK.get().is_null(), "the thread lock is left locked");
}

/// The call may sleep, or take a lock that may: never where preemption is off.
pub fn preemptible(call: &str) {
    rule(call, CRITICAL.get() == 0, "sleeping in a critical section");
    rule(call, THREAD_LOCK.get().is_null(), "sleeping with the thread lock held");
}

/// `critical_enter_KBI`.
pub extern "C" fn critical_enter() {
    CRITICAL.set(CRITICAL.get() + 1);
}

/// `critical_exit_KBI`.
pub extern "C" fn critical_exit() {
    rule("critical_exit", CRITICAL.get() > 0, "not in a critical section");
    CRITICAL.set(CRITICAL.get() - 1);
}

/// `thread_lock_flags_`.
pub extern "C" fn thread_lock(thread: *mut sys::thread, _: i32, _: *const c_char, _: i32) {
    let call = "thread_lock";
    let known = thread == curthread() || threads().iter().any(|known| known.0 == thread);
    rule(call, known, "not a thread");
    rule(call, THREAD_LOCK.replace(thread).is_null(), "locked already");
}

/// `__mtx_unlock_spin_flags`: thread locks are the module's only spin mutexes.
pub extern "C" fn thread_unlock(_: *mut usize, _: i32, _: *const c_char, _: i32) {
    let locked = THREAD_LOCK.replace(std::ptr::null_mut());
    rule("thread_unlock", !locked.is_null(), "not locked");
}

/// The CPU that a real-time thread occupies, or -1.
pub static HOG: AtomicI32 = AtomicI32::new(-1);

/// kern_yield(): everything else that is runnable on the CPU runs first.
pub fn yield_cpu() {
    std::thread::yield_now();
    while BOUND.get() == Some(HOG.load(Ordering::Acquire)) {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// `sched_bind`.
pub extern "C" fn sched_bind(_: *mut sys::thread, cpu: i32) {
    rule("sched_bind", THREAD_LOCK.get() == curthread(), "the thread lock is not held");
    rule("sched_bind", cpu >= 0, "no such CPU");
    BOUND.set(Some(cpu));
}

/// `sched_unbind`.
pub extern "C" fn sched_unbind(_: *mut sys::thread) {
    rule("sched_unbind", THREAD_LOCK.get() == curthread(), "the thread lock is not held");
    rule("sched_unbind", BOUND.replace(None).is_some(), "not bound");
}
