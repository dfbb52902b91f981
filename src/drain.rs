// SPDX-License-Identifier: BSD-2-Clause
//! Waits until no thread executes the module's code, before the kernel removes
//! it.
//!
//! A thread may have loaded the pointer in a slot and not yet counted itself
//! in, or have counted itself out and not yet returned. No counter shows it in
//! these two windows of a few instructions. It does not sleep in them, but it
//! can be preempted:
//!
//! 1. [`outlast_threads`] first runs a thread of the module on every CPU,
//!    behind all threads that are runnable there. A thread in a window leaves
//!    it before the module's thread runs (the pass).
//! 2. Threads of the idle class, idprio(1)'s, run only when no other thread
//!    does, so the pass overtakes them. After it each runnable one must be seen
//!    asleep, gone, or [switched out often enough](SWITCHES).
//!
//! Each wait is bounded: a real-time thread may occupy its CPU for ever, and a
//! busy machine may never run the idle class. When a bound is reached,
//! unloading fails with EBUSY and a message names the cause.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::{
    kpi::{
        errno::Errno,
        proc::IdleClass,
        smp, systm,
        taskqueue::{Queue, Task, Work},
    },
    kprintln,
};

/// Bound on each wait for promised runs, threads inside, and bufs.
/// Milliseconds.
const COUNT_MS: u32 = 30_000;
/// Bound on a pass over the CPUs. Milliseconds.
const PASS_MS: u32 = 30_000;
/// Bound on the wait for the idle class. Milliseconds.
const IDLE_MS: u32 = 10_000;
const STEP_MS: u32 = 10;

/// Switches after which a thread has left its window, since it ran between two
/// of them. A pending interrupt can reduce one run to no instruction at all,
/// but not several in a row.
const SWITCHES: u32 = 4;

/// The pass over the CPUs. A thread of the module makes it, so a CPU that never
/// runs that thread does not hold kldunload(8) for ever.
struct Pass {
    task: Task,
    running: AtomicBool,
    /// The CPU that the pass waits for.
    cpu: AtomicU32,
}

static PASS: Pass =
    Pass { task: Task::new(), running: AtomicBool::new(false), cpu: AtomicU32::new(0) };
static QUEUE: Queue = Queue::new();

impl Work for Pass {
    fn task(&self) -> &Task {
        &self.task
    }

    fn work(&self) {
        smp::pass_every_cpu(|cpu| self.cpu.store(cpu, Ordering::Relaxed));
        self.running.store(false, Ordering::Release);
    }
}

/// Starts the thread that passes over the CPUs. Called from MOD_LOAD. Sleeps:
/// yes.
pub fn start() {
    PASS.task.init(&PASS);
    QUEUE.start(c"asyncpager drain", 1);
}

/// Ends the thread. No pass is running. Sleeps: yes.
pub fn end() {
    QUEUE.stop();
}

/// Waits until every thread has left its window. Called when no thread enters a
/// window any more. Sleeps: yes. Errors: EBUSY.
pub fn outlast_threads() -> Result<(), Errno> {
    // The first list has the threads that leave the idle class during the pass.
    let before = IdleClass::awake();
    start_pass();
    outlast_pass()?;
    outlast_idle_class([before, IdleClass::awake()])
}

fn start_pass() {
    if !PASS.running.swap(true, Ordering::AcqRel) {
        QUEUE.enqueue(&PASS);
    }
}

/// Waits for the running pass, if any: an earlier unload may have left it
/// stuck. Sleeps: yes. Errors: EBUSY.
pub fn outlast_pass() -> Result<(), Errno> {
    if wait_until(PASS_MS, || !PASS.running.load(Ordering::Acquire)) {
        return Ok(());
    }
    let (cpu, seconds) = (PASS.cpu.load(Ordering::Relaxed), PASS_MS / 1000);
    kprintln!(
        "CPU {cpu} did not run the module's thread for {seconds} s: a real-time thread occupies \
         it; end that thread or lower its priority with rtprio(1), then unload again"
    );
    Err(Errno::EBUSY)
}

fn outlast_idle_class(mut threads: [IdleClass; 2]) -> Result<(), Errno> {
    let mut first = None;
    let gone = wait_until(IDLE_MS, || {
        threads.iter_mut().for_each(|threads| threads.forget_switched(SWITCHES));
        first = threads.iter().find_map(IdleClass::first);
        // A pass switches out a thread that has its CPU to itself.
        if first.is_some() {
            start_pass();
        }
        first.is_none()
    });
    outlast_pass()?;
    let Some(thread) = first.filter(|_| !gone) else { return Ok(()) };
    let (pid, tid, seconds) = (thread.pid, thread.tid, IDLE_MS / 1000);
    kprintln!(
        "thread {tid} of process {pid} is in the idle class and hardly ran for {seconds} s: it \
         may be about to call the module; end it or raise its priority with idprio(1), then \
         unload again"
    );
    Err(Errno::EBUSY)
}

/// Waits until `count` is 0. `what`: the things counted, for the message.
/// Sleeps: yes. Errors: EBUSY.
pub fn outlast(what: &str, count: impl Fn() -> u64) -> Result<(), Errno> {
    if wait_until(COUNT_MS, || count() == 0) {
        return Ok(());
    }
    let (n, seconds) = (count(), COUNT_MS / 1000);
    kprintln!("{n} {what} are still inside after {seconds} s: not unloading");
    Err(Errno::EBUSY)
}

/// Checks `done` every [`STEP_MS`]. False when `bound_ms` has passed. Sleeps:
/// yes.
fn wait_until(bound_ms: u32, mut done: impl FnMut() -> bool) -> bool {
    let end = systm::uptime_us().saturating_add(u64::from(bound_ms) * 1000);
    loop {
        if done() {
            return true;
        }
        if systm::uptime_us() >= end {
            return false;
        }
        systm::pause(STEP_MS);
    }
}
