// SPDX-License-Identifier: BSD-2-Clause
//! taskqueue(9): threads of the module's own, which may sleep.

use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_int, c_void},
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use super::sys;

/// What a queue's threads can do: a value that holds its task.
pub trait Work: Sync {
    /// The task that stands for this value.
    fn task(&self) -> &Task;
    /// Called in a thread of the queue once for each time, or several, that
    /// the value was enqueued; in two threads at once when it is enqueued
    /// while this runs. May sleep.
    fn work(&self);
}

/// A place in a queue.
///
/// # Invariants
///
/// Initialized, and its memory stays where it is, from [`Task::init`] until
/// the queue has ended; the fields are the queue's.
pub struct Task(UnsafeCell<MaybeUninit<sys::task>>);

// SAFETY: the queue's lock guards the fields.
unsafe impl Sync for Task {}
// SAFETY: as above.
unsafe impl Send for Task {}

impl Default for Task {
    fn default() -> Self {
        Self::new()
    }
}

impl Task {
    /// A task that is yet to be initialized, in its place.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::zeroed()))
    }

    fn raw(&self) -> *mut sys::task {
        self.0.get().cast()
    }

    /// Make this the task of `work`, whose [`Work::task`] it is.
    pub fn init<W: Work>(&self, work: &W) {
        // SAFETY: memory of our own; see the invariant. The context is what
        // `run` takes it for.
        unsafe {
            sys::shim_task_init(self.raw(), Some(run::<W>), ptr::from_ref(work).cast_mut().cast());
        };
    }
}

unsafe extern "C" fn run<W: Work>(context: *mut c_void, _pending: c_int) {
    // SAFETY: `init` stored a W, which outlives the queue.
    let work = unsafe { &*context.cast_const().cast::<W>() };
    work.work();
}

/// A queue with its threads.
///
/// # Invariants
///
/// The pointer is null or a live taskqueue; it is also where the queue's
/// threads look for it.
pub struct Queue(AtomicPtr<sys::taskqueue>);

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

impl Queue {
    /// No queue yet.
    pub const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// Start the threads. May sleep; called once from MOD_LOAD.
    pub fn start(&'static self, name: &'static CStr, threads: c_int) {
        // SAFETY: the place is static, and module events may sleep.
        unsafe { sys::shim_taskqueue_start(self.0.as_ptr(), name.as_ptr(), threads) };
    }

    /// Have `work` done soon. Never sleeps; one that waits already is not
    /// enqueued a second time.
    pub fn enqueue<W: Work>(&self, work: &W) {
        let queue = self.0.load(Ordering::Acquire);
        if !queue.is_null() {
            // SAFETY: a live queue and an initialized task.
            unsafe { sys::taskqueue_enqueue(queue, work.task().raw()) };
        }
    }

    /// Wait until `work` is neither waiting nor being done. The caller has
    /// made sure that nobody enqueues it any more.
    pub fn drain<W: Work>(&self, work: &W) {
        let queue = self.0.load(Ordering::Acquire);
        if !queue.is_null() {
            // SAFETY: as for `enqueue`; only module events call this, and they may sleep.
            unsafe { sys::taskqueue_drain(queue, work.task().raw()) };
        }
    }

    /// End the threads. The caller has drained all work.
    pub fn stop(&self) {
        let queue = self.0.load(Ordering::Acquire);
        if !queue.is_null() {
            // SAFETY: live; taskqueue_free() waits for its threads, which
            // look at the pointer until then.
            unsafe { sys::taskqueue_free(queue) };
            self.0.store(ptr::null_mut(), Ordering::Release);
        }
    }
}
