// SPDX-License-Identifier: BSD-2-Clause
//! taskqueue(9): the module's own threads, which may sleep.

use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_int, c_void},
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

use super::sys;

/// Work for a queue's threads: a value that contains its task.
pub trait Work: Sync {
    /// The task of this value.
    fn task(&self) -> &Task;
    /// Called in a thread of the queue, once for one or several calls of
    /// [`Queue::enqueue`]. When the value is enqueued while this runs, a second
    /// thread may run it at the same time. Sleeps: yes.
    fn work(&self);
}

/// An entry of a queue.
///
/// # Invariants
///
/// From [`Task::init`] until the queue has ended, the task is initialized and
/// does not move. Its fields belong to the queue.
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
    /// A task that [`Task::init`] has not initialized yet.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::zeroed()))
    }

    fn raw(&self) -> *mut sys::task {
        self.0.get().cast()
    }

    /// Initializes this task, which is the [`Work::task`] of `work`.
    pub fn init<W: Work>(&self, work: &W) {
        // SAFETY: the memory is ours (invariant). `run` reads the context as
        // the W it is.
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
/// The pointer is null or a live taskqueue. The queue's threads read the
/// queue's address from it.
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

    /// Creates the queue and starts its threads. Called once, from MOD_LOAD.
    /// Sleeps: yes.
    pub fn start(&'static self, name: &'static CStr, threads: c_int) {
        // SAFETY: the pointer's memory is static; module events may sleep.
        unsafe { sys::shim_taskqueue_start(self.0.as_ptr(), name.as_ptr(), threads) };
    }

    /// Enqueues `work`. Work that is in the queue already is not enqueued
    /// again. Sleeps: no.
    pub fn enqueue<W: Work>(&self, work: &W) {
        let queue = self.0.load(Ordering::Acquire);
        if !queue.is_null() {
            // SAFETY: a live queue (invariant) and an initialized task.
            unsafe { sys::taskqueue_enqueue(queue, work.task().raw()) };
        }
    }

    /// Waits until `work` is neither enqueued nor running. The caller ensures
    /// that no thread enqueues it any more. Sleeps: yes.
    pub fn drain<W: Work>(&self, work: &W) {
        let queue = self.0.load(Ordering::Acquire);
        if !queue.is_null() {
            // SAFETY: as for `enqueue`; only module events call this, and they
            // may sleep.
            unsafe { sys::taskqueue_drain(queue, work.task().raw()) };
        }
    }

    /// Ends the threads. The caller has drained all work. Sleeps: yes.
    pub fn stop(&self) {
        let queue = self.0.load(Ordering::Acquire);
        if !queue.is_null() {
            // SAFETY: the queue is live. taskqueue_free() waits for its
            // threads, which read the pointer until then.
            unsafe { sys::taskqueue_free(queue) };
            self.0.store(ptr::null_mut(), Ordering::Release);
        }
    }
}
