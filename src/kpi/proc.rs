// SPDX-License-Identifier: BSD-2-Clause
//! Threads: the calling one, and those of the idle class (sys/proc.h).

use core::{
    ptr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::sys;

/// Whether td_sa of struct thread has been seen where the headers have it.
static TD_SA_IS_KNOWN: AtomicBool = AtomicBool::new(false);

/// Whether the calling thread's last system call is sendfile(2): it is inside
/// of it, or has come back from it and does something else on its own account.
/// False as long as the structure of threads has not been checked.
pub fn in_sendfile() -> bool {
    TD_SA_IS_KNOWN.load(Ordering::Relaxed) && syscall_number() == sys::SYS_sendfile as u32
}

/// In VOP_GETPAGES_ASYNC, which only sendfile(2) calls: check struct thread, if
/// there was no system call to check it by when the module was loaded.
#[inline]
pub fn trust_td_sa() {
    if !TD_SA_IS_KNOWN.load(Ordering::Relaxed) && syscall_number() == sys::SYS_sendfile as u32 {
        TD_SA_IS_KNOWN.store(true, Ordering::Relaxed);
    }
}

/// In MOD_LOAD: check struct thread by the number of the system call,
/// kldload(2)'s. Err is the number that was read instead. The loader(8) makes no
/// system call: then [`trust_td_sa`] checks.
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

/// A thread by its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadId {
    /// The process.
    pub pid: i32,
    /// The thread.
    pub tid: i32,
}

/// Threads of the idle class (idprio(1)) that were running or ready to run.
///
/// # Invariants
///
/// `first` is null and `len` 0, or `first` is from shim_malloc_waitok() and has
/// `len` initialized entries.
pub struct IdleClass {
    first: *mut sys::shim_thread,
    len: usize,
}

impl IdleClass {
    /// Entries for threads that come while memory is allocated.
    const SPARE: usize = 16;

    /// All that are running or ready now, but for the calling thread. Sleeps.
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

    /// Forget those that have gone, are asleep, or have been switched out
    /// `times` times since.
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

    /// One of those that are left.
    pub fn first(&self) -> Option<ThreadId> {
        // SAFETY: there is an entry.
        (self.len > 0)
            .then(|| unsafe { ThreadId { pid: (*self.first).pid, tid: (*self.first).tid } })
    }
}

impl Drop for IdleClass {
    fn drop(&mut self) {
        // SAFETY: by the invariant; free(9) takes NULL.
        unsafe { sys::shim_free(self.first.cast()) };
    }
}

/// The calling thread's real uid.
pub fn real_uid() -> u32 {
    // SAFETY: reads the calling thread's credentials, which are its own.
    unsafe { sys::shim_real_uid() }
}

/// Threads that have been told something and will come back with it.
///
/// # Invariants
///
/// Each entry is 0 or the address of a thread that has claimed it; only that
/// thread clears it.
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
    /// Nobody.
    pub const fn new() -> Self {
        Self { all: [const { AtomicUsize::new(0) }; N], count: AtomicUsize::new(0) }
    }

    /// Note the calling thread. False when there is no room.
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

    /// Forget the calling thread; whether it had been noted.
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

    /// How many are noted.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

fn curthread() -> usize {
    // SAFETY: gives an address only.
    unsafe { sys::shim_curthread() as usize }
}
