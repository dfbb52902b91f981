// SPDX-License-Identifier: BSD-2-Clause
//! What a completed buf has to do that its completion thread must not: sending
//! another I/O allocates a bio, and that may sleep (g_alloc_bio()).

use core::sync::atomic::{AtomicBool, Ordering};

use super::{
    bufs::{self, Buf, Context, Job},
    deferred,
};
use crate::{
    kpi::{
        buf::Fifo,
        mutex::Mutex,
        taskqueue::{Queue, Task, Work},
    },
    stats,
};

/// Threads for it. They wait for memory only, and never for a disk.
const THREADS: i32 = 2;

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
    QUEUE.start(c"asyncpager worker", THREADS);
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
    if bufs::available(bufs::Use::Deferred) {
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
}

impl Worker {
    fn pop(&self, starved: bool) -> Option<Buf> {
        let mut bufs = self.bufs.lock();
        if starved { bufs.starved.pop() } else { bufs.ready.pop() }
    }
}

impl Work for Worker {
    fn task(&self) -> &Task {
        &self.task
    }

    fn work(&self) {
        // The oldest first: a buf that is starved again waits for the next call.
        while !STARVED.load(Ordering::SeqCst)
            && let Some(buf) = self.pop(true)
        {
            go_on(buf);
        }
        while let Some(buf) = self.pop(false) {
            go_on(buf);
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
