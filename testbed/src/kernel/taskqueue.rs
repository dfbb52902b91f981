// SPDX-License-Identifier: BSD-2-Clause
//! taskqueue(9) with threads of its own.

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int, c_void},
    sync::{
        Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        rules::{record, rule, violation},
        sleep::{may_sleep, run_as},
        witness,
    },
    host::{
        elf, low_memory, schedule,
        thread::{self, Context},
    },
    kernel::{proc, shortage},
};

#[derive(Default)]
struct Queue {
    name: String,
    /// Tasks, the next one first.
    tasks: Vec<usize>,
    /// Tasks that run, and in which thread.
    running: Vec<(usize, u64)>,
    threads: usize,
    handles: Vec<JoinHandle<()>>,
    ends: bool,
}

static QUEUES: Mutex<BTreeMap<usize, Queue>> = Mutex::new(BTreeMap::new());
static CHANGED: Condvar = Condvar::new();

/// The queues' threads begin no task; [`QUEUES`] guards it.
static HELD: AtomicBool = AtomicBool::new(false);

/// Keeps the queues' threads busy elsewhere while `on`: queued tasks stay queued.
/// Waits for tasks that have begun.
pub fn hold(on: bool) {
    let mut queues = QUEUES.lock().unwrap();
    HELD.store(on, Ordering::Relaxed);
    while on && queues.values().any(|queue| !queue.running.is_empty()) {
        queues = CHANGED.wait(queues).unwrap();
    }
    CHANGED.notify_all();
}

/// Whether no task is queued or runs.
pub fn idle() -> bool {
    let queues = QUEUES.lock().unwrap();
    queues.values().all(|queue| queue.tasks.is_empty() && queue.running.is_empty())
}

/// Queues that are alive.
pub fn queues() -> usize {
    QUEUES.lock().unwrap().len()
}

/// Whether a task in this memory is queued, or runs in another thread.
pub fn queued_within(memory: std::ops::Range<usize>) -> bool {
    QUEUES.lock().unwrap().values().any(|queue| {
        queue.tasks.iter().any(|task| memory.contains(task))
            || queue
                .running
                .iter()
                .any(|(task, by)| memory.contains(task) && *by != thread::number())
    })
}

fn ready(queue: &Queue) -> bool {
    !queue.tasks.is_empty() && queue.running.len() < queue.threads
}

/// Queues that could run a task now; for [`schedule`].
pub fn waiting() -> usize {
    QUEUES.lock().unwrap().values().filter(|queue| ready(queue)).count()
}

/// Run one task of the first queue that has one.
pub fn run_one() -> bool {
    let at = QUEUES.lock().unwrap().iter().find(|(_, queue)| ready(queue)).map(|(at, _)| *at);
    at.is_some_and(run_next)
}

/// Run the next task of a queue; false when it has none.
fn run_next(at: usize) -> bool {
    let (task, pending) = {
        let mut queues = QUEUES.lock().unwrap();
        let ready = |queue: &&mut Queue| !queue.tasks.is_empty() && !HELD.load(Ordering::Relaxed);
        let Some(queue) = queues.get_mut(&at).filter(ready) else {
            return false;
        };
        let task = queue.tasks.remove(0);
        queue.running.push((task, thread::number()));
        // SAFETY: a task stays where it is while it is queued.
        let task = unsafe { &mut *(task as *mut sys::task) };
        task.ta_flags &= !(sys::TASK_ENQUEUED as u8);
        let pending = std::mem::replace(&mut task.ta_pending, 0);
        ((&raw const *task, task.ta_func, task.ta_context), pending)
    };
    let (address, handler, context) = task;
    record("taskqueue_run", format_args!("task {address:?} pending {pending}"));
    // SAFETY: the handler and context that were given together.
    run_as(Context::Task, "task handler", || unsafe {
        handler.map(|handler| handler(context, c_int::from(pending)))
    });
    if let Some(queue) = QUEUES.lock().unwrap().get_mut(&at) {
        let done = queue.running.iter().position(|(task, _)| *task == address as usize);
        done.map(|done| queue.running.remove(done));
    }
    CHANGED.notify_all();
    true
}

/// A thread of a queue; it ends when the queue does and nothing is left to do.
fn work(at: usize) {
    proc::attach();
    loop {
        if run_next(at) {
            continue;
        }
        let queues = QUEUES.lock().unwrap();
        let Some(queue) = queues.get(&at) else { return };
        if !queue.tasks.is_empty() && !HELD.load(Ordering::Relaxed) {
            continue;
        }
        if queue.ends && queue.tasks.is_empty() {
            return;
        }
        drop(CHANGED.wait(queues).unwrap());
    }
}

fn live<'a>(call: &str, queues: &'a mut BTreeMap<usize, Queue>, at: *mut c_void) -> &'a mut Queue {
    let Some(queue) = queues.get_mut(&(at as usize)) else {
        violation(call, format_args!("{at:?} is not a live taskqueue"));
    };
    queue
}

/// `taskqueue_create`.
pub unsafe extern "C" fn taskqueue_create(
    name: *const c_char,
    flags: c_int,
    enqueue: *const c_void,
    _context: *mut c_void,
) -> *mut c_void {
    let call = "taskqueue_create";
    rule(
        call,
        elf::behind_stub(enqueue as usize) == taskqueue_thread_enqueue as *const () as usize,
        "a queue without threads of its own: the testbed does not know that",
    );
    if flags & sys::M_WAITOK != 0 {
        may_sleep(call);
    } else if shortage::out_of_memory() {
        return std::ptr::null_mut();
    }
    // SAFETY: a C string.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    // The queue's own mutex has its name.
    witness::class(&name, "sleep mutex");
    let at = low_memory::zeroed::<u64>() as usize;
    QUEUES.lock().unwrap().insert(at, Queue { name, ..Queue::default() });
    at as *mut c_void
}

/// `taskqueue_start_threads`; the name of the threads is ignored.
pub unsafe extern "C" fn taskqueue_start_threads(
    queue: *mut *mut c_void,
    count: c_int,
    _priority: c_int,
    _name: *const c_char,
) -> c_int {
    let call = "taskqueue_start_threads";
    may_sleep(call);
    rule(call, count > 0, "no threads");
    // SAFETY: the caller's pointer.
    let at = unsafe { *queue };
    let mut queues = QUEUES.lock().unwrap();
    let queue = live(call, &mut queues, at);
    rule(call, queue.threads == 0, "the queue has threads already");
    queue.threads = count as usize;
    if !schedule::is_one_thread() {
        let at = at as usize;
        queue.handles = (0..count).map(|_| std::thread::spawn(move || work(at))).collect();
    }
    0
}

/// `taskqueue_thread_enqueue`, which the queue calls by itself.
pub extern "C" fn taskqueue_thread_enqueue(_: *mut c_void) {
    CHANGED.notify_all();
}

/// `taskqueue_enqueue`.
pub unsafe extern "C" fn taskqueue_enqueue(at: *mut c_void, task: *mut sys::task) -> c_int {
    let call = "taskqueue_enqueue";
    let mut queues = QUEUES.lock().unwrap();
    let queue = live(call, &mut queues, at);
    rule(call, queue.threads > 0, format_args!("the queue {} has no thread yet", queue.name));
    rule(call, !queue.ends, format_args!("the queue {} is being freed", queue.name));
    // SAFETY: the caller's task; QUEUES guards its fields.
    let fields = unsafe { &mut *task };
    rule(call, fields.ta_func.is_some(), "a task that is not initialized");
    record(call, format_args!("task {task:?} queued before {} times", fields.ta_pending));
    if fields.ta_pending > 0 {
        rule(call, queue.tasks.contains(&(task as usize)), "the task is in another queue");
        fields.ta_pending = fields.ta_pending.saturating_add(1);
        return 0;
    }
    // Higher priorities first, and first come first served.
    let before = queue.tasks.iter().position(|other| {
        // SAFETY: a queued task.
        let other = unsafe { &*(*other as *const sys::task) };
        other.ta_priority < fields.ta_priority
    });
    queue.tasks.insert(before.unwrap_or(queue.tasks.len()), task as usize);
    fields.ta_pending = 1;
    fields.ta_flags |= sys::TASK_ENQUEUED as u8;
    CHANGED.notify_all();
    0
}

/// `taskqueue_cancel`.
pub unsafe extern "C" fn taskqueue_cancel(
    at: *mut c_void,
    task: *mut sys::task,
    pending: *mut u32,
) -> c_int {
    let call = "taskqueue_cancel";
    let mut queues = QUEUES.lock().unwrap();
    let queue = live(call, &mut queues, at);
    queue.tasks.retain(|other| *other != task as usize);
    // SAFETY: the caller's task, and its place or NULL.
    unsafe {
        (*task).ta_flags &= !(sys::TASK_ENQUEUED as u8);
        let before = std::mem::replace(&mut (*task).ta_pending, 0);
        if let Some(pending) = pending.as_mut() {
            *pending = u32::from(before);
        }
    }
    let running = queue.running.iter().any(|(other, _)| *other == task as usize);
    if running { sys::EBUSY } else { 0 }
}

fn wait_until(call: &str, at: *mut c_void, done: impl Fn(&Queue) -> bool) {
    may_sleep(call);
    let mut queues = QUEUES.lock().unwrap();
    while !done(live(call, &mut queues, at)) {
        if schedule::is_one_thread() {
            drop(queues);
            rule(call, schedule::pump(), "deadlock: the task never ends");
            queues = QUEUES.lock().unwrap();
        } else {
            queues = CHANGED.wait(queues).unwrap();
        }
    }
}

/// `taskqueue_drain`.
pub extern "C" fn taskqueue_drain(at: *mut c_void, task: *mut sys::task) {
    let call = "taskqueue_drain";
    let task = task as usize;
    wait_until(call, at, |queue| {
        let running = queue.running.iter().find(|(other, _)| *other == task);
        rule(
            call,
            running.is_none_or(|(_, by)| *by != thread::number()),
            "draining a task from its own handler",
        );
        running.is_none() && !queue.tasks.contains(&task)
    });
}

/// `taskqueue_drain_all`.
pub extern "C" fn taskqueue_drain_all(at: *mut c_void) {
    wait_until("taskqueue_drain_all", at, |queue| {
        queue.running.is_empty() && queue.tasks.is_empty()
    });
}

/// `taskqueue_free`: what is queued still runs.
pub extern "C" fn taskqueue_free(at: *mut c_void) {
    let call = "taskqueue_free";
    may_sleep(call);
    let handles = {
        let mut queues = QUEUES.lock().unwrap();
        let queue = live(call, &mut queues, at);
        let own = queue.running.iter().any(|(_, by)| *by == thread::number());
        rule(call, !own, "freeing a queue from its own thread");
        queue.ends = true;
        std::mem::take(&mut queue.handles)
    };
    CHANGED.notify_all();
    for handle in handles {
        rule(call, handle.join().is_ok(), "a thread of the queue panicked");
    }
    if schedule::is_one_thread() {
        while run_next(at as usize) {}
    }
    QUEUES.lock().unwrap().remove(&(at as usize));
}
