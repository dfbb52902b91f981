// SPDX-License-Identifier: BSD-2-Clause
//! The calling thread, and the threads of the idle class (sys/proc.h).

use core::{
    ptr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::sys;

/// Set once a known system call has confirmed the offset of `td_sa` in struct
/// thread.
static TD_SA_IS_KNOWN: AtomicBool = AtomicBool::new(false);

/// Whether the calling thread's last system call is sendfile(2). The thread may
/// still be inside that call, or may have returned from it and now do other
/// work in the kernel. False until the offset of `td_sa` is confirmed.
pub fn in_sendfile() -> bool {
    TD_SA_IS_KNOWN.load(Ordering::Relaxed) && syscall_number() == sys::SYS_sendfile as u32
}

/// Confirms the offset of `td_sa`, when MOD_LOAD had no system call to check it
/// against. Called in VOP_GETPAGES_ASYNC, which only sendfile(2) calls.
#[inline]
pub fn trust_td_sa() {
    if !TD_SA_IS_KNOWN.load(Ordering::Relaxed) && syscall_number() == sys::SYS_sendfile as u32 {
        TD_SA_IS_KNOWN.store(true, Ordering::Relaxed);
    }
}

/// Confirms the offset of `td_sa` against the number of kldload(2). Called in
/// MOD_LOAD. Errors: the number read, when it is another one. The loader(8)
/// makes no system call: then [`trust_td_sa`] confirms it later.
pub(super) fn check_td_sa() -> Result<(), u32> {
    // SAFETY: reads a field of the calling thread.
    if unsafe { sys::shim_in_proc0() } {
        return Ok(());
    }
    let number = syscall_number();
    if number != sys::SYS_kldload as u32 {
        return Err(number);
    }
    TD_SA_IS_KNOWN.store(true, Ordering::Relaxed);
    Ok(())
}

fn syscall_number() -> u32 {
    // SAFETY: reads a field of the calling thread.
    unsafe { sys::shim_syscall_number() }
}

/// The numbers of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadId {
    /// The process ID.
    pub pid: i32,
    /// The thread ID.
    pub tid: i32,
}

/// Threads of the idle class (idprio(1)) that were running or runnable when
/// [`awake`](Self::awake) listed them.
///
/// # Invariants
///
/// `first` is null and `len` is 0; or `first` comes from shim_malloc_waitok()
/// and its first `len` entries are initialized.
pub struct IdleClass {
    first: *mut sys::shim_thread,
    len: usize,
}

impl IdleClass {
    /// Spare entries, for threads that become runnable between counting and
    /// listing.
    const SPARE: usize = 16;

    /// Lists all threads of the class that are running or runnable now, except
    /// the calling thread. Locks: none. Sleeps: yes.
    pub fn awake() -> Self {
        let mut room = Self::SPARE;
        loop {
            // SAFETY: only module events call this, and they may sleep.
            let first = unsafe { sys::shim_malloc_waitok(room * size_of::<sys::shim_thread>()) };
            let mut all = Self { first: first.cast(), len: 0 };
            // SAFETY: `room` entries are allocated, and no lock is held.
            let found = unsafe { sys::shim_idle_class(all.first, room as u32) } as usize;
            if found <= room {
                all.len = found;
                return all;
            }
            room = found + Self::SPARE;
        }
    }

    /// Removes the threads that have exited, that sleep, or that were switched
    /// out `times` times since.
    pub fn forget_switched(&mut self, times: u32) {
        let mut left = 0;
        for i in 0..self.len {
            // SAFETY: both entries lie within the first `len`.
            unsafe {
                let thread = self.first.add(i);
                let mut switches = 0;
                if sys::shim_thread_switches(thread, &mut switches) && switches < times {
                    ptr::copy(thread, self.first.add(left), 1);
                    left += 1;
                }
            }
        }
        self.len = left;
    }

    /// The first remaining thread.
    pub fn first(&self) -> Option<ThreadId> {
        // SAFETY: `len` is not 0, so the first entry is initialized.
        (self.len > 0)
            .then(|| unsafe { ThreadId { pid: (*self.first).pid, tid: (*self.first).tid } })
    }
}

impl Drop for IdleClass {
    fn drop(&mut self) {
        // SAFETY: `first` is null or ours to free (invariant); free(9) accepts
        // NULL.
        unsafe { sys::shim_free(self.first.cast()) };
    }
}

/// The calling thread's real uid.
pub fn real_uid() -> u32 {
    // SAFETY: a thread may read its own credentials.
    unsafe { sys::shim_real_uid() }
}

/// A set of up to `N` threads. A thread adds itself, and removes itself in a
/// later call.
///
/// # Invariants
///
/// Each entry is 0 or the address of a thread; only that thread clears the
/// entry.
pub struct Threads<const N: usize> {
    all: [AtomicUsize; N],
    count: AtomicUsize,
}

impl<const N: usize> Default for Threads<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Threads<N> {
    /// An empty set.
    pub const fn new() -> Self {
        Self { all: [const { AtomicUsize::new(0) }; N], count: AtomicUsize::new(0) }
    }

    /// Adds the calling thread. False when the set is full.
    pub fn note(&self) -> bool {
        let me = curthread();
        let free = self.all.iter().any(|entry| {
            entry.compare_exchange(0, me, Ordering::SeqCst, Ordering::Relaxed).is_ok()
        });
        if free {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        free
    }

    /// Removes the calling thread. True when the thread was in the set.
    pub fn forget(&self) -> bool {
        if self.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let me = curthread();
        let noted = self.all.iter().find(|entry| entry.load(Ordering::Relaxed) == me);
        if let Some(entry) = noted {
            entry.store(0, Ordering::Release);
            self.count.fetch_sub(1, Ordering::AcqRel);
        }
        noted.is_some()
    }

    /// The number of threads in the set.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

fn curthread() -> usize {
    // SAFETY: reads the address of the calling thread; nothing dereferences it.
    unsafe { sys::shim_curthread() as usize }
}
