// SPDX-License-Identifier: BSD-2-Clause
//! Waiting until no thread can be in the module's code, before that code goes away.
//!
//! A thread has loaded the pointer in a slot and has not counted itself in yet,
//! or has counted itself out and has not returned yet. No counter shows it in
//! these two windows of a few instructions. It does not sleep in them, but it
//! can be preempted:
//!
//! 1. [`outlast_threads`] first runs a thread of the module's own on every CPU,
//!    behind all that is runnable there: a thread that was in a window leaves it
//!    before ours runs (the pass).
//! 2. Threads of the idle class, idprio(1)'s, run only when nothing else does:
//!    the pass overtakes them. So each one that is awake then has to be seen
//!    asleep, gone, or [switched out often enough](SWITCHES).
//!
//! Each wait is bounded: a real-time thread may keep its CPU for ever, and a busy
//! machine may never run the idle class. When a bound is met, unloading answers
//! EBUSY and a message names the cause.

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

/// Bound on the wait for promised runs, threads inside and bufs, each. Milliseconds.
const COUNT_MS: u32 = 30_000;
/// Bound on a pass over the CPUs. Milliseconds.
const PASS_MS: u32 = 30_000;
/// Bound on the wait for the idle class. Milliseconds.
const IDLE_MS: u32 = 10_000;
const STEP_MS: u32 = 10;

/// Switches after which a thread is in no window any more: between two of them
/// it ran. A pending interrupt can cut one run to no instruction at all, but not
/// several in a row.
const SWITCHES: u32 = 4;

/// The pass over the CPUs. A thread of the module makes it, so that a CPU that
/// never runs it does not hold kldunload(8) for ever.
struct Pass {
    task: Task,
    running: AtomicBool,
    /// The CPU that it waits for.
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

/// Start the thread that passes over the CPUs. May sleep; called from MOD_LOAD.
pub fn start() {
    PASS.task.init(&PASS);
    QUEUE.start(c"asyncpager drain", 1);
}

/// End the thread. No pass is running. May sleep.
pub fn end() {
    QUEUE.stop();
}

/// Wait until every thread that was in a window has left it. Called when no
/// thread enters a window any more. Sleeps. Errors: EBUSY.
pub fn outlast_threads() -> Result<(), Errno> {
    // A thread that leaves the idle class during the pass is in the first list.
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

/// Wait for the running pass, if any: the last unloading may have left it stuck.
/// Sleeps. Errors: EBUSY.
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
        // A thread that has its CPU for itself is switched out by a pass only.
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

/// Wait until there are none of `what`. Sleeps. Errors: EBUSY.
pub fn outlast(what: &str, count: impl Fn() -> u64) -> Result<(), Errno> {
    if wait_until(COUNT_MS, || count() == 0) {
        return Ok(());
    }
    let (n, seconds) = (count(), COUNT_MS / 1000);
    kprintln!("{n} {what} are still inside after {seconds} s: not unloading");
    Err(Errno::EBUSY)
}

/// Look every few milliseconds; false when `bound_ms` is over.
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
