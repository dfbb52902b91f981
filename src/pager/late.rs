// SPDX-License-Identifier: BSD-2-Clause
//! What a completed buf has to do that its completion thread must not:
//! starting another I/O allocates a bio, and that may sleep (g_alloc_bio()).

use crate::kpi::{
    buf::{Line, Pbuf},
    mutex::Mutex,
    taskqueue::{Queue, Task, Work},
};

/// Threads for it. They wait for memory only, and never for a disk.
const THREADS: i32 = 2;

struct Late {
    line: Mutex<Line>,
    task: Task,
}

static LATE: Late = Late { line: Mutex::new(Line::new()), task: Task::new() };
static QUEUE: Queue = Queue::new();

/// Start the threads. May sleep.
pub fn start() {
    LATE.line.init(c"asyncpager late");
    LATE.task.init(&LATE);
    QUEUE.start(c"asyncpager late", THREADS);
}

/// Have a thread that may sleep go on with a completed buf. Does not sleep.
pub fn later(part: Pbuf, go_on: fn(Pbuf)) {
    LATE.line.lock().push(part, go_on);
    QUEUE.enqueue(&LATE);
}

/// Wait until nothing is left to do. No buf is in flight. May sleep.
pub fn drain() {
    QUEUE.drain(&LATE);
}

/// End the threads, after [`drain`]. May sleep.
pub fn end() {
    QUEUE.stop();
    LATE.line.destroy();
}

impl Work for Late {
    fn task(&self) -> &Task {
        &self.task
    }

    fn work(&self) {
        loop {
            let next = self.line.lock().pop();
            let Some((part, go_on)) = next else { return };
            go_on(part);
        }
    }
}
