// SPDX-License-Identifier: BSD-2-Clause
//! The same KPI used as its rules want it.

use std::{
    ffi::{c_int, c_void},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use asyncpager::kpi::sys;

use crate::{
    host::schedule,
    kernel::{callout, malloc, mutex, pcpu, proc, shortage, taskqueue},
    kld::boot::boot,
    rule_tests::{
        callouts::{arm, guarded},
        locks::{both, lock, mutex, unlock},
        memory::kind,
        tasks::{enqueue, queue, task},
    },
};

static RAN: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" fn counts(_: *mut c_void) {
    RAN.fetch_add(1, Ordering::Relaxed);
}

unsafe extern "C" fn works(_: *mut c_void, pending: c_int) {
    RAN.fetch_add(pending as u32 * 100, Ordering::Relaxed);
}

/// The clock and the schedule belong to the process: one test for all.
#[test]
fn rules_that_are_kept() {
    proc::attach();
    for one_thread in [true, false] {
        boot(one_thread, 7);
        RAN.store(0, Ordering::Relaxed);
        let (a, b) = (mutex(c"first", sys::MTX_RECURSE), mutex(c"second", 0));
        both(a, b);
        lock(a);
        both(a, b);
        // SAFETY: live mutexes.
        unsafe {
            assert_eq!(*a, pcpu::curthread() as usize, "mtx_owned() would say no");
            unlock(a);
            assert_eq!(*a, sys::MTX_UNOWNED as usize);
            assert_eq!(mutex::mtx_trylock(b, 0, ptr::null(), 0), 1);
            unlock(b);
            mutex::mtx_destroy(a);
            mutex::mtx_destroy(b);
        }

        let (callout, mutex) = guarded();
        // SAFETY: a live callout and its mutex.
        unsafe {
            lock(mutex);
            arm(callout, counts, ptr::null_mut());
            assert!((*callout).c_iflags & sys::CALLOUT_PENDING as i16 != 0);
            assert_eq!(callout::callout_stop(callout, 0, None), 1);
            assert_eq!(callout::callout_stop(callout, 0, None), -1);
            arm(callout, counts, ptr::null_mut());
            unlock(mutex);
            while RAN.load(Ordering::Relaxed) == 0 {
                schedule::pump();
                std::thread::yield_now();
            }
            callout::callout_stop(callout, sys::CS_DRAIN, None);
            mutex::mtx_destroy(mutex);
        }
        assert_eq!(callout::active(), 0);

        let (queue, task) = (queue(2), task(works, ptr::null_mut()));
        enqueue(queue, task);
        taskqueue::taskqueue_drain(queue, task);
        assert_eq!(RAN.load(Ordering::Relaxed), 101);
        enqueue(queue, task);
        // What is queued runs before the queue ends.
        taskqueue::taskqueue_free(queue);
        assert_eq!(RAN.load(Ordering::Relaxed), 201);

        let kind = kind(c"one");
        let at = malloc::malloc(100, kind, sys::M_NOWAIT | sys::M_ZERO);
        // SAFETY: 100 bytes.
        assert!(unsafe { std::slice::from_raw_parts(at.cast::<u8>(), 100) } == [0; 100]);
        malloc::free(at, kind);
        malloc::malloc_uninit(kind.cast());
        shortage::NO_MEMORY.store(true, Ordering::Relaxed);
        assert!(malloc::malloc(100, kind, sys::M_NOWAIT).is_null());
        shortage::NO_MEMORY.store(false, Ordering::Relaxed);
    }
}
