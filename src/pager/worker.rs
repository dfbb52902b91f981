// SPDX-License-Identifier: BSD-2-Clause
//! Threads that go on with a completed buf, where the completion thread must
//! not: sending another I/O allocates a bio, and g_alloc_bio() may sleep.

use core::sync::atomic::{AtomicBool, Ordering};

use super::{
    bufs::{self, Buf, Context, Job},
    deferred,
};
use crate::{
    fair::{Threads, Working},
    kpi::{
        buf::Fifo,
        mutex::Mutex,
        taskqueue::{Queue, Task, Work},
    },
    stats,
};

/// Worker threads. A thread waits for memory, and for a device that does its
/// I/O in the sending thread, as a zvol does.
const THREADS: usize = 8;

static IN_USE: Threads<THREADS> = Threads::new();

struct Worker {
    bufs: Mutex<Bufs>,
    task: Task,
}

struct Bufs {
    /// Completed bufs that wait for a thread.
    ready: Fifo<Context>,
    /// Completed bufs whose requests need another buf to go on.
    starved: Fifo<Context>,
}

static WORKER: Worker = Worker {
    bufs: Mutex::new(Bufs { ready: Fifo::new(), starved: Fifo::new() }),
    task: Task::new(),
};
static QUEUE: Queue = Queue::new();
/// Set while a starved buf waits for a buf to come back. Cleared when one does,
/// before the worker tries the starved bufs again.
static STARVED: AtomicBool = AtomicBool::new(false);

/// Starts the threads. Sleeps: yes.
pub fn start() {
    WORKER.bufs.init(c"asyncpager ready");
    WORKER.task.init(&WORKER);
    IN_USE.init(c"asyncpager workers");
    QUEUE.start(c"asyncpager worker", THREADS as i32);
}

/// Hands a completed buf to a worker thread. Sleeps: no.
pub fn push(buf: Buf) {
    stats::IN_FLIGHT.enter(1);
    WORKER.bufs.lock().ready.push(buf);
    QUEUE.enqueue(&WORKER);
}

/// Queues a completed buf until another buf is free. Sleeps: no.
fn starve(buf: Buf) {
    stats::WAITED_BUF.add(1);
    stats::IN_FLIGHT.enter(1);
    WORKER.bufs.lock().starved.push(buf);
    STARVED.store(true, Ordering::SeqCst);
    // A buf may have come back before STARVED was set.
    if bufs::any_free() {
        buf_is_back();
    }
}

/// Reports that a buf has come back to the pool. Sleeps: no.
pub fn buf_is_back() {
    if STARVED.load(Ordering::SeqCst) && STARVED.swap(false, Ordering::SeqCst) {
        QUEUE.enqueue(&WORKER);
    }
}

/// Waits until the queue is empty. No buf is in flight. Sleeps: yes.
pub fn drain() {
    QUEUE.drain(&WORKER);
}

/// Ends the threads, after [`drain`]. Sleeps: yes.
pub fn end() {
    QUEUE.stop();
    WORKER.bufs.destroy();
    IN_USE.destroy();
}

impl Worker {
    /// Takes the first buf whose device may have another thread. The other bufs
    /// stay in the queue: a thread that works for their devices looks again
    /// when it is done.
    fn pop(&self, starved: bool) -> Option<(Buf, Working<THREADS>)> {
        let mut bufs = self.bufs.lock();
        let fifo = if starved { &mut bufs.starved } else { &mut bufs.ready };
        for _ in 0..fifo.len() {
            let buf = fifo.pop()?;
            // A loaded buf has a device. 0 would mean a free thread.
            let device = buf.device().map_or(1, |device| device.id());
            match IN_USE.enter(device) {
                Some(working) => return Some((buf, working)),
                None => fifo.push(buf),
            }
        }
        None
    }

    /// Takes the next buf, a starved one first. While STARVED is set no buf has
    /// come back for the starved ones, so they are skipped.
    fn next(&self) -> Option<(Buf, Working<THREADS>)> {
        let starved = if STARVED.load(Ordering::SeqCst) { None } else { self.pop(true) };
        starved.or_else(|| self.pop(false))
    }
}

impl Work for Worker {
    fn task(&self) -> &Task {
        &self.task
    }

    fn work(&self) {
        while let Some((buf, working)) = self.next() {
            // Let another thread take the next buf: a task that is enqueued
            // while it runs, runs in two threads at once.
            QUEUE.enqueue(self);
            go_on(buf);
            drop(working);
        }
    }
}

fn go_on(buf: Buf) {
    match buf.job {
        Job::Map(_) => {
            if let Some(starved) = deferred::go_on(buf) {
                starve(starved);
            }
        }
        Job::Part { .. } | Job::Idle | Job::Ahead { .. } => bufs::send(buf),
    }
    stats::IN_FLIGHT.leave();
}
