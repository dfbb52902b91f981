// SPDX-License-Identifier: BSD-2-Clause
//! Quarantine for freed structures: vnodes, mounts, inodes, objects. Each has pages of
//! its own and an address that is never reused. After its end the pages fault, and the
//! fault names the structure.

use std::{
    ops::Range,
    ptr,
    sync::{LazyLock, Mutex},
};

use crate::{
    checks::rules::{record, violation},
    host::memory::PAGE,
};

/// Bytes of address space for all structures; no address is used twice.
const SPACE: usize = 16 << 30;

struct Quarantine {
    next: usize,
    end: usize,
    /// Allocated ranges: the name, and whether it has been freed.
    things: Vec<(Range<usize>, String, bool)>,
}

static QUARANTINE: LazyLock<Mutex<Quarantine>> = LazyLock::new(|| {
    // At the same place in each run, as far as the host allows: the module hashes files by
    // address, and a run of one thread must be repeatable.
    let at = reserve_at(0x2000_0000_0000, SPACE) as usize;
    catch_faults();
    Mutex::new(Quarantine { next: at, end: at + SPACE, things: Vec::new() })
});

/// Addresses of `pages` pages that fault; the fault names them `what`.
pub fn reserve(pages: usize, what: &str) -> *mut u8 {
    let at = reserve_at(0, pages * PAGE);
    name(at as usize..at as usize + pages * PAGE, what);
    at
}

fn reserve_at(hint: usize, bytes: usize) -> *mut u8 {
    // SAFETY: a fresh mapping without access.
    let at = unsafe {
        libc::mmap(
            hint as *mut _,
            bytes,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert!(at != libc::MAP_FAILED, "no addresses left");
    at.cast()
}

/// A fault in this range names it `what`.
fn name(range: Range<usize>, what: &str) {
    QUARANTINE.lock().unwrap().things.push((range, what.to_string(), false));
}

fn protect(range: Range<usize>, protection: libc::c_int) {
    // SAFETY: pages of SPACE that belong to one thing.
    let failed = unsafe { libc::mprotect(range.start as *mut _, range.len(), protection) };
    assert_eq!(failed, 0, "mprotect");
}

/// Allocates a zeroed `T`, which [`free`] puts into quarantine.
pub fn allocate<T>(what: &str) -> *mut T {
    let mut quarantine = QUARANTINE.lock().unwrap();
    let at = quarantine.next;
    let range = at..at + size_of::<T>().next_multiple_of(PAGE);
    assert!(range.end <= quarantine.end, "no addresses left for a {what}");
    quarantine.next = range.end;
    protect(range.clone(), libc::PROT_READ | libc::PROT_WRITE);
    quarantine.things.push((range, format!("{what} {at:#x}"), false));
    at as *mut T
}

/// Frees the structure at this address: its pages fault from now on.
pub fn free<T>(thing: *mut T) {
    let mut quarantine = QUARANTINE.lock().unwrap();
    let found = quarantine.things.iter_mut().rfind(|(range, ..)| range.start == thing as usize);
    let Some((range, what, dead)) = found else {
        violation("free", format_args!("{thing:?} was never allocated"));
    };
    if std::mem::replace(dead, true) {
        violation("free", format_args!("the {what} is freed twice"));
    }
    record("free", format_args!("the {what}"));
    let range = range.clone();
    // SAFETY: as in protect(); the structure is not used any more.
    unsafe { libc::madvise(range.start as *mut _, range.len(), libc::MADV_DONTNEED) };
    protect(range, libc::PROT_NONE);
}

/// Marks the structure at this address as freed; its memory stays readable.
pub fn retire<T>(thing: *mut T) {
    let mut quarantine = QUARANTINE.lock().unwrap();
    let found = quarantine.things.iter_mut().rfind(|(range, ..)| range.start == thing as usize);
    if found.is_none_or(|(_, _, dead)| std::mem::replace(dead, true)) {
        violation("free", format_args!("{thing:?} is freed twice"));
    }
}

/// Structures that are not freed, by name.
pub fn live() -> Vec<String> {
    let quarantine = QUARANTINE.lock().unwrap();
    let base = quarantine.end - SPACE;
    let things = quarantine.things.iter().filter(|(range, _, dead)| !dead && range.start >= base);
    things
        .filter(|(range, ..)| range.start < quarantine.end)
        .map(|(_, what, _)| what.clone())
        .collect()
}

/// Installs a fault handler that names the structure.
fn catch_faults() {
    // SAFETY: a handler that ends the process or lets the fault happen again.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = fault as *const () as usize;
        // The handler runs on the faulting thread's own stack: the alternate one is too small for
        // a violation.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        for signal in [libc::SIGSEGV, libc::SIGBUS] {
            libc::sigaction(signal, &action, ptr::null_mut());
        }
    }
}

extern "C" fn fault(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel's siginfo. From now on a second fault is fatal.
    let at = unsafe {
        libc::signal(signal, libc::SIG_DFL);
        (*info).si_addr() as usize
    };
    // The process ends here: the lock and the allocation are acceptable in this handler.
    let touched = QUARANTINE.try_lock().ok().and_then(|quarantine| {
        let found = quarantine.things.iter().rfind(|(range, ..)| range.contains(&at));
        found.map(|(range, what, dead)| (at - range.start, what.clone(), *dead))
    });
    match touched {
        Some((offset, what, true)) => {
            violation("page fault", format_args!("the {what} was freed, and byte {offset} is used"))
        }
        Some((_, what, false)) => violation("page fault", format_args!("touching {what}")),
        None => violation("page fault", format_args!("nothing is at {at:#x}")),
    }
}
