// SPDX-License-Identifier: BSD-2-Clause
//! Each rule of the KPI that no mutant of the module can break is broken here
//! once, to show that it is watched.

use std::{
    ffi::{c_int, c_void},
    ptr,
};

use anyhow::{Result, anyhow, bail};
use asyncpager::kpi::sys;

use crate::{
    callout, cpu, locks, low, malloc,
    rules::{self, Context},
    schedule, taskqueue, vm, witness,
};

/// A rule's name, words that its violation has to say, and how to break it.
type Breach = (&'static str, &'static str, fn());

/// All of them.
pub const ALL: &[Breach] = &[
    ("order-reversed", "lock order reversal", order_reversed),
    ("order-reversed-by-way-of-a-third", "lock order reversal", order_by_way_of_a_third),
    ("order-of-two-instances", "lock order reversal between two of class twins", twins_reversed),
    ("second-of-a-class", "a second lock of class lone", second_of_a_class),
    ("two-objects", "a second lock of class vm object", two_objects),
    ("mutex-recursed", "must not recurse", mutex_recursed),
    ("object-lock-recursed", "must not recurse", object_lock_recursed),
    ("mutex-not-owned", "does not hold", mutex_not_owned),
    ("rlock-released-as-wlock", "the other mode", wrong_mode),
    ("mutex-not-initialized", "not an initialized mutex", mutex_not_initialized),
    ("mutex-initialized-twice", "is initialized already", mutex_initialized_twice),
    ("mutex-used-after-destroy", "not an initialized mutex", mutex_used_after_destroy),
    ("mutex-destroyed-recursed", "the mutex is recursed", mutex_destroyed_recursed),
    ("sleeping-with-a-mutex", "sleeping with a lone lock held since mtx_lock at here.c:7", asleep),
    ("vnode-lock-with-a-mutex", "which may sleep, with a lone held", vnode_lock_with_a_mutex),
    ("callout-sleeps", "sleeping in a callout thread", callout_sleeps),
    ("callout-keeps-a-mutex", "returned with a lone lock held", callout_keeps_a_mutex),
    ("callout-not-initialized", "not an initialized callout", callout_not_initialized),
    ("callout-initialized-while-pending", "is pending or running", callout_reinitialized),
    ("callout-without-its-mutex", "the callout's mutex is not held", callout_without_its_mutex),
    ("callout-drained-with-a-mutex", "sleeping with a lone lock held", callout_drained_locked),
    ("callout-freed-while-pending", "a callout in it is pending", callout_freed),
    ("callout-drains-itself", "sleeping in a callout thread", callout_drains_itself),
    ("task-on-a-freed-queue", "not a live taskqueue", task_on_a_freed_queue),
    ("task-without-a-thread", "has no thread yet", task_without_a_thread),
    ("task-not-initialized", "not initialized", task_not_initialized),
    ("task-drains-itself", "draining a task from its own handler", task_drains_itself),
    ("task-keeps-a-mutex", "returned with a lone lock held", task_keeps_a_mutex),
    ("task-freed-while-queued", "a task in it is queued", task_freed),
    ("freed-twice", "freed twice", freed_twice),
    ("freed-as-another-type", "is freed as two", freed_as_another_type),
    ("written-behind-the-end", "wrote behind the 24 bytes", written_behind),
    ("written-after-free", "written to after free", written_after_free),
    ("allocation-left", "1 allocations of type one are left", allocation_left),
    ("waiting-malloc-in-completion", "sleeping in a completion thread", waiting_malloc),
    ("malloc-without-a-mode", "neither M_WAITOK nor M_NOWAIT", malloc_without_a_mode),
];

/// Break the rule `name`; this does not return when the rule is watched.
pub fn run(name: &str) -> Result<()> {
    let (.., breach) = ALL
        .iter()
        .find(|(known, ..)| *known == name)
        .ok_or_else(|| anyhow!("no breach {name}: `breach --list` names them"))?;
    cpu::attach();
    schedule::begin(true, 1);
    breach();
    bail!("{name}: nobody noticed")
}

fn mutex(class: &std::ffi::CStr, opts: c_int) -> *mut usize {
    let mutex = low::zeroed();
    // SAFETY: fresh memory, and a C string.
    unsafe { locks::mtx_init(mutex, class.as_ptr(), ptr::null(), opts) };
    mutex
}

fn lock(mutex: *mut usize) {
    // SAFETY: a mutex of `mutex`, or an address that is only looked up.
    unsafe { locks::mtx_lock(mutex, 0, c"here.c".as_ptr(), 7) };
}

fn unlock(mutex: *mut usize) {
    // SAFETY: as above.
    unsafe { locks::mtx_unlock(mutex, 0, c"here.c".as_ptr(), 8) };
}

fn both(first: *mut usize, second: *mut usize) {
    lock(first);
    lock(second);
    unlock(second);
    unlock(first);
}

fn order_reversed() {
    let (a, b) = (mutex(c"a", 0), mutex(c"b", 0));
    both(a, b);
    both(b, a);
}

fn order_by_way_of_a_third() {
    let (a, b, c) = (mutex(c"a", 0), mutex(c"b", 0), mutex(c"c", 0));
    both(a, b);
    both(b, c);
    both(c, a);
}

fn twins_reversed() {
    let (a, b) = (mutex(c"twins", sys::MTX_DUPOK), mutex(c"twins", sys::MTX_DUPOK));
    both(a, b);
    both(b, a);
}

fn second_of_a_class() {
    both(mutex(c"lone", 0), mutex(c"lone", 0));
}

fn two_objects() {
    let (a, b) = (vm::new_object(1), vm::new_object(1));
    locks::with_object(a, || locks::with_object(b, || ()));
}

fn mutex_recursed() {
    let a = mutex(c"lone", 0);
    both(a, a);
}

fn object_lock_recursed() {
    let object = vm::new_object(1);
    locks::with_object(object, || locks::with_object(object, || ()));
}

fn mutex_not_owned() {
    unlock(mutex(c"lone", 0));
}

fn wrong_mode() {
    let cookie = locks::object_cookie(vm::new_object(1)) as *mut usize;
    locks::rw_rlock(cookie, ptr::null(), 0);
    locks::rw_wunlock(cookie, ptr::null(), 0);
}

fn mutex_not_initialized() {
    lock(low::zeroed());
}

fn mutex_initialized_twice() {
    let a = mutex(c"lone", 0);
    // SAFETY: memory of a mutex.
    unsafe { locks::mtx_init(a, c"again".as_ptr(), ptr::null(), 0) };
}

fn mutex_used_after_destroy() {
    let a = mutex(c"lone", 0);
    // SAFETY: a live mutex.
    unsafe { locks::mtx_destroy(a) };
    lock(a);
}

fn mutex_destroyed_recursed() {
    let a = mutex(c"lone", sys::MTX_RECURSE);
    lock(a);
    lock(a);
    // SAFETY: a live mutex.
    unsafe { locks::mtx_destroy(a) };
}

fn asleep() {
    lock(mutex(c"lone", 0));
    rules::may_sleep("pause_sbt");
}

fn vnode_lock_with_a_mutex() {
    lock(mutex(c"lone", 0));
    let place = witness::Place::new("vn_lock", ptr::null(), 0);
    // The address of a vnode is all that its lock needs.
    let lock = locks::vnode_lock(low::zeroed());
    witness::check(&lock, &place);
}

unsafe extern "C" fn sleeps(_: *mut c_void) {
    rules::may_sleep("pause_sbt");
}

unsafe extern "C" fn takes(arg: *mut c_void) {
    lock(arg.cast());
}

unsafe extern "C" fn drains(arg: *mut c_void) {
    // SAFETY: a callout of `armed`.
    unsafe { callout::callout_stop(arg.cast(), sys::CS_DRAIN, None) };
}

type Handler = unsafe extern "C" fn(*mut c_void);

fn arm(callout: *mut sys::callout, handler: Handler, arg: *mut c_void) {
    // SAFETY: the caller's callout.
    unsafe { callout::callout_reset(callout, 1 << 20, 0, Some(handler), arg, 0, 0) };
}

fn armed(handler: Handler, arg: *mut c_void) -> *mut sys::callout {
    let callout = low::zeroed();
    callout::callout_init(callout, 1);
    arm(callout, handler, arg);
    callout
}

fn callout_sleeps() {
    armed(sleeps, ptr::null_mut());
    schedule::pump();
}

fn callout_keeps_a_mutex() {
    armed(takes, mutex(c"lone", 0).cast());
    schedule::pump();
}

fn callout_not_initialized() {
    arm(low::zeroed(), sleeps, ptr::null_mut());
}

fn callout_reinitialized() {
    callout::callout_init(armed(sleeps, ptr::null_mut()), 1);
}

fn guarded() -> (*mut sys::callout, *mut usize) {
    let mtx: *mut sys::mtx = low::zeroed();
    let callout = low::zeroed();
    // SAFETY: fresh memory.
    unsafe {
        let word = (&raw mut (*mtx).mtx_lock).cast();
        locks::mtx_init(word, c"lone".as_ptr(), ptr::null(), 0);
        callout::callout_init_lock(callout, &raw mut (*mtx).lock_object, 0);
        (callout, word)
    }
}

fn callout_without_its_mutex() {
    arm(guarded().0, sleeps, ptr::null_mut());
}

fn callout_drained_locked() {
    let (callout, mutex) = guarded();
    lock(mutex);
    // SAFETY: a live callout.
    unsafe { callout::callout_stop(callout, sys::CS_DRAIN, None) };
}

fn kind(name: &'static std::ffi::CStr) -> *mut sys::malloc_type {
    let kind: *mut sys::malloc_type = low::zeroed();
    // SAFETY: fresh memory.
    unsafe { (*kind).ks_shortdesc = name.as_ptr() };
    kind
}

fn callout_freed() {
    let kind = kind(c"one");
    let at = malloc::malloc(size_of::<sys::callout>(), kind, sys::M_WAITOK);
    callout::callout_init(at.cast(), 1);
    arm(at.cast(), sleeps, ptr::null_mut());
    malloc::free(at, kind);
}

fn callout_drains_itself() {
    let callout = low::zeroed();
    callout::callout_init(callout, 1);
    arm(callout, drains, callout.cast());
    schedule::pump();
}

fn queue(threads: c_int) -> *mut c_void {
    let place: *mut *mut c_void = low::zeroed();
    // SAFETY: fresh memory, and C strings.
    unsafe {
        *place = taskqueue::taskqueue_create(
            c"tasks".as_ptr(),
            sys::M_WAITOK,
            taskqueue::taskqueue_thread_enqueue as *const c_void,
            place.cast(),
        );
        if threads > 0 {
            taskqueue::taskqueue_start_threads(place, threads, 0, c"tasks".as_ptr());
        }
        *place
    }
}

type Work = unsafe extern "C" fn(*mut c_void, c_int);

fn task(work: Work, context: *mut c_void) -> *mut sys::task {
    let task: *mut sys::task = low::zeroed();
    // SAFETY: fresh memory.
    unsafe { ((*task).ta_func, (*task).ta_context) = (Some(work), context) };
    task
}

fn enqueue(queue: *mut c_void, task: *mut sys::task) {
    // SAFETY: the caller's task.
    unsafe { taskqueue::taskqueue_enqueue(queue, task) };
}

unsafe extern "C" fn idles(_: *mut c_void, _: c_int) {}

unsafe extern "C" fn works_locked(context: *mut c_void, _: c_int) {
    lock(context.cast());
}

unsafe extern "C" fn drains_its_task(context: *mut c_void, _: c_int) {
    // SAFETY: a queue and its task, as task_drains_itself() has put them there.
    let [queue, task] = unsafe { context.cast::<[*mut c_void; 2]>().read() };
    taskqueue::taskqueue_drain(queue, task.cast());
}

fn task_on_a_freed_queue() {
    let queue = queue(1);
    taskqueue::taskqueue_free(queue);
    enqueue(queue, task(idles, ptr::null_mut()));
}

fn task_without_a_thread() {
    enqueue(queue(0), task(idles, ptr::null_mut()));
}

fn task_not_initialized() {
    enqueue(queue(1), low::zeroed());
}

fn task_drains_itself() {
    let context: *mut [*mut c_void; 2] = low::zeroed();
    let (queue, task) = (queue(1), task(drains_its_task, context.cast()));
    // SAFETY: fresh memory.
    unsafe { context.write([queue, task.cast()]) };
    enqueue(queue, task);
    schedule::pump();
}

fn task_keeps_a_mutex() {
    enqueue(queue(1), task(works_locked, mutex(c"lone", 0).cast()));
    schedule::pump();
}

fn task_freed() {
    let kind = kind(c"one");
    let at = malloc::malloc(size_of::<sys::task>(), kind, sys::M_WAITOK | sys::M_ZERO);
    // SAFETY: a task's size.
    unsafe { (*at.cast::<sys::task>()).ta_func = Some(idles) };
    enqueue(queue(1), at.cast());
    malloc::free(at, kind);
}

fn freed_twice() {
    let kind = kind(c"one");
    let at = malloc::malloc(24, kind, sys::M_WAITOK);
    malloc::free(at, kind);
    malloc::free(at, kind);
}

fn freed_as_another_type() {
    malloc::free(malloc::malloc(24, kind(c"one"), sys::M_WAITOK), kind(c"two"));
}

fn written_behind() {
    let kind = kind(c"one");
    let at = malloc::malloc(24, kind, sys::M_WAITOK);
    // SAFETY: on purpose; within what the host has given.
    unsafe { at.cast::<u8>().add(24).write(0) };
    malloc::free(at, kind);
}

fn written_after_free() {
    let kind = kind(c"one");
    let at = malloc::malloc(24, kind, sys::M_WAITOK);
    malloc::free(at, kind);
    // SAFETY: on purpose; in quarantine it is still the host's to write.
    unsafe { at.cast::<u8>().write(0) };
    malloc::malloc_uninit(kind.cast());
}

fn allocation_left() {
    let kind = kind(c"one");
    malloc::malloc(24, kind, sys::M_WAITOK);
    malloc::malloc_uninit(kind.cast());
}

fn waiting_malloc() {
    rules::run_as(Context::Completion, "b_iodone", || {
        malloc::malloc(24, kind(c"one"), sys::M_WAITOK)
    });
}

fn malloc_without_a_mode() {
    malloc::malloc(24, kind(c"one"), 0);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    static RAN: AtomicU32 = AtomicU32::new(0);

    unsafe extern "C" fn counts(_: *mut c_void) {
        RAN.fetch_add(1, Ordering::Relaxed);
    }

    unsafe extern "C" fn works(_: *mut c_void, pending: c_int) {
        RAN.fetch_add(pending as u32 * 100, Ordering::Relaxed);
    }

    /// The good ways through the same KPI: one test, since the clock and the
    /// schedule belong to the process.
    #[test]
    fn rules_that_are_kept() {
        cpu::attach();
        for one_thread in [true, false] {
            schedule::begin(one_thread, 7);
            RAN.store(0, Ordering::Relaxed);
            let (a, b) = (mutex(c"first", sys::MTX_RECURSE), mutex(c"second", 0));
            both(a, b);
            lock(a);
            both(a, b);
            // SAFETY: live mutexes.
            unsafe {
                assert_eq!(*a, cpu::curthread() as usize, "mtx_owned() would say no");
                unlock(a);
                assert_eq!(*a, sys::MTX_UNOWNED as usize);
                assert_eq!(locks::mtx_trylock(b, 0, ptr::null(), 0), 1);
                unlock(b);
                locks::mtx_destroy(a);
                locks::mtx_destroy(b);
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
                locks::mtx_destroy(mutex);
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
            vm::NO_MEMORY.store(true, Ordering::Relaxed);
            assert!(malloc::malloc(100, kind, sys::M_NOWAIT).is_null());
            vm::NO_MEMORY.store(false, Ordering::Relaxed);
        }
    }
}
