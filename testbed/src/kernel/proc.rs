// SPDX-License-Identifier: BSD-2-Clause
//! Threads and processes (sys/proc.h): one process with all threads, and proc0.

use std::{
    ptr,
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicI32, AtomicU8, AtomicU32, Ordering},
    },
};

use asyncpager::kpi::sys;

use crate::{
    checks::rules::rule,
    host::{cpu, low_memory},
    kernel::{
        mutex,
        pcpu::{self, curthread},
    },
};

/// Makes the calling host thread one that may run the module's code.
pub fn attach() {
    let ended = |block| Scheduled(pcpu::thread_of(block)).is(sys::TDS_INACTIVE);
    if !cpu::attach(pcpu::make, ended) {
        return;
    }
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

/// A thread as the scheduler sees it.
#[derive(Clone, Copy)]
pub struct Scheduled(*mut sys::thread);

// SAFETY: threads' structures live for ever; the fields are atomic here.
unsafe impl Send for Scheduled {}

impl Scheduled {
    /// The calling thread.
    pub fn me() -> Self {
        Self(curthread())
    }

    /// Sets td_state.
    pub fn is(self, state: sys::thread_td_states) {
        // SAFETY: live for ever; aligned, and all accesses here are atomic.
        let field = unsafe { AtomicU32::from_ptr(&raw mut (*self.0).td_state) };
        field.store(state, Ordering::Release);
    }

    fn state(self) -> sys::thread_td_states {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.0).td_state) }.load(Ordering::Acquire)
    }

    /// Puts the thread into the idle class, as idprio(1) does, or out of it.
    pub fn idle_class(self, idle: bool) {
        let class = if idle { sys::PRI_IDLE } else { sys::PRI_TIMESHARE };
        // SAFETY: as above.
        unsafe { AtomicU8::from_ptr(&raw mut (*self.0).td_pri_class) }
            .store(class as u8, Ordering::Release);
    }

    /// mi_switch() has switched the thread out, and it has run again.
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

/// Threads that have not ended.
fn threads() -> Vec<Scheduled> {
    cpu::with_all(|blocks| {
        let all = blocks.iter().map(|block| Scheduled(pcpu::thread_of(*block as *mut u8)));
        all.filter(|thread| thread.state() != sys::TDS_INACTIVE).collect()
    })
}

/// Whether this is the calling thread, or another that has not ended.
pub fn is_thread(thread: *mut sys::thread) -> bool {
    thread == curthread() || threads().iter().any(|known| known.0 == thread)
}

/// The process of all threads.
fn process() -> *mut sys::proc_ {
    static PLACE: LazyLock<usize> = LazyLock::new(|| {
        let process: *mut sys::proc_ = low_memory::zeroed();
        // SAFETY: fresh memory.
        unsafe {
            (*process).p_pid = 77;
            (*process).p_state = sys::PRS_NORMAL;
            mutex::own_mutex(&raw mut (*process).p_mtx, "process lock");
        }
        process as usize
    });
    *PLACE as *mut sys::proc_
}

/// `proc0`, the kernel's process.
pub fn proc0() -> *mut sys::proc_ {
    static PLACE: LazyLock<usize> = LazyLock::new(|| low_memory::zeroed::<sys::proc_>() as usize);
    *PLACE as *mut sys::proc_
}

/// Runs `f` as the thread that boots the kernel.
pub fn in_proc0<T>(f: impl FnOnce() -> T) -> T {
    let thread = curthread();
    // SAFETY: the calling thread's own structure.
    unsafe { (*thread).td_proc = proc0() };
    let result = in_syscall(0, f);
    // SAFETY: as above.
    unsafe { (*thread).td_proc = process() };
    result
}

/// Runs `f` with the calling thread in the system call of this number.
pub fn in_syscall<T>(code: u32, f: impl FnOnce() -> T) -> T {
    let thread = curthread();
    // SAFETY: the calling thread's own structure.
    let before = unsafe { std::mem::replace(&mut (*thread).td_sa.code, code) };
    let result = f();
    // SAFETY: as above.
    unsafe { (*thread).td_sa.code = before };
    result
}

/// Runs `f` with the calling thread's credentials those of a user.
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

/// A process that fork(2) has listed and not finished: its thread has no td_lock yet,
/// whatever its class.
fn newborn() -> *mut sys::proc_ {
    let process: *mut sys::proc_ = low_memory::zeroed();
    let thread: *mut sys::thread = low_memory::zeroed();
    // SAFETY: fresh memory.
    unsafe {
        (*process).p_pid = 78;
        (*process).p_state = sys::PRS_NEW;
        mutex::own_mutex(&raw mut (*process).p_mtx, "process lock");
        (*thread).td_proc = process;
        (*thread).td_pri_class = sys::PRI_IDLE as u8;
        (*process).p_threads.tqh_first = thread;
    }
    process
}

/// `allproc`: a list of an unfinished process and the one with all threads.
pub fn allproc() -> *mut u8 {
    static PLACE: LazyLock<usize> = LazyLock::new(|| {
        let head: *mut *mut sys::proc_ = low_memory::zeroed();
        // SAFETY: fresh memory.
        unsafe {
            *head = newborn();
            (**head).p_list.le_next = process();
        }
        head as usize
    });
    *PLACE as *mut u8
}

/// Rebuilds the process's list of threads: allproc_lock was just taken.
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
        *last = ptr::null_mut();
        (*process).p_threads.tqh_last = last;
    }
}

/// `tdfind`: the thread, with its process locked.
pub unsafe extern "C" fn tdfind(tid: i32, pid: i32) -> *mut sys::thread {
    let call = "tdfind";
    let process = process();
    // SAFETY: live for ever.
    rule(call, pid == -1 || pid == unsafe { (*process).p_pid }, "another process");
    let Some(thread) = threads().into_iter().find(|thread| thread.tid() == tid) else {
        return ptr::null_mut();
    };
    // SAFETY: the process's own mutex.
    unsafe { mutex::mtx_lock((&raw mut (*process).p_mtx.mtx_lock).cast(), 0, ptr::null(), 0) };
    thread.0
}
