// SPDX-License-Identifier: BSD-2-Clause
//! What a completed buf has to do that its completion thread must not: sending
//! another I/O allocates a bio, and that may sleep (g_alloc_bio()).

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

/// Threads for it. They wait for memory, and for a device that does its I/O in
/// the thread that sends it, as a zvol does.
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
/// Whether there are starved bufs.
static STARVED: AtomicBool = AtomicBool::new(false);

/// Start the threads. May sleep.
pub fn start() {
    WORKER.bufs.init(c"asyncpager ready");
    WORKER.task.init(&WORKER);
    IN_USE.init(c"asyncpager workers");
    QUEUE.start(c"asyncpager worker", THREADS as i32);
}

/// Have a thread that may sleep go on with a completed buf. Does not sleep.
pub fn push(buf: Buf) {
    stats::IN_FLIGHT.enter(1);
    WORKER.bufs.lock().ready.push(buf);
    QUEUE.enqueue(&WORKER);
}

/// Go on with a completed buf as soon as there is another buf. Does not sleep.
fn starve(buf: Buf) {
    stats::WAITED_BUF.add(1);
    stats::IN_FLIGHT.enter(1);
    WORKER.bufs.lock().starved.push(buf);
    STARVED.store(true, Ordering::SeqCst);
    // One may have come back before that was to be seen.
    if bufs::any_free() {
        buf_is_back();
    }
}

/// A buf has come back. Does not sleep.
pub fn buf_is_back() {
    if STARVED.load(Ordering::SeqCst) && STARVED.swap(false, Ordering::SeqCst) {
        QUEUE.enqueue(&WORKER);
    }
}

/// Wait until nothing is left to do. No buf is in flight. May sleep.
pub fn drain() {
    QUEUE.drain(&WORKER);
}

/// End the threads, after [`drain`]. May sleep.
pub fn end() {
    QUEUE.stop();
    WORKER.bufs.destroy();
    IN_USE.destroy();
}

impl Worker {
    /// The first buf whose device may have another thread. The others stay: a
    /// thread that works for their devices looks again when it is done.
    fn pop(&self, starved: bool) -> Option<(Buf, Working<THREADS>)> {
        let mut bufs = self.bufs.lock();
        let fifo = if starved { &mut bufs.starved } else { &mut bufs.ready };
        for _ in 0..fifo.len() {
            let buf = fifo.pop()?;
            // A loaded buf has a device; 0 stands for a free thread.
            let device = buf.device().map_or(1, |device| device.id());
            match IN_USE.enter(device) {
                Some(working) => return Some((buf, working)),
                None => fifo.push(buf),
            }
        }
        None
    }

    /// A buf to go on with: the oldest first. One that is starved again waits for
    /// the next buf that comes back.
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
            // Another thread looks at the rest: a task that is enqueued while it
            // runs, runs in two threads at once.
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
