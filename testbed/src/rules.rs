// SPDX-License-Identifier: BSD-2-Clause
//! What a kernel forbids: a violation names the rule and the call, and ends the run.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::json;

/// Exit code of a run that broke a rule.
pub const EXIT_VIOLATION: i32 = 2;

thread_local! {
    static COMPLETING: Cell<bool> = const { Cell::new(false) };
    static HELD: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// What has happened lately, and what was asked for; a violation saves it.
#[derive(Default)]
struct History {
    events: VecDeque<String>,
    /// Where to save, and how to repeat the run.
    saved: Option<(PathBuf, serde_json::Value)>,
}

/// Events that are kept.
const EVENTS: usize = 4096;

static HISTORY: Mutex<Option<History>> = Mutex::new(None);
static THREADS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static THREAD: u64 = THREADS.fetch_add(1, Ordering::Relaxed);
}

/// Keep a history from now on; a violation saves it, and `run`, in `file`.
pub fn keep_history(file: PathBuf, run: serde_json::Value) {
    let history = History { events: VecDeque::new(), saved: Some((file, run)) };
    *HISTORY.lock().unwrap() = Some(history);
}

/// Note that a call was made.
pub fn record(call: &str, what: std::fmt::Arguments<'_>) {
    let Ok(mut history) = HISTORY.lock() else { return };
    if let Some(history) = history.as_mut() {
        if history.events.len() == EVENTS {
            history.events.pop_front();
        }
        let where_ = if COMPLETING.get() { "completion" } else { "thread" };
        history.events.push_back(format!("{where_} {} {call}: {what}", THREAD.with(|id| *id)));
    }
}

/// Report a broken rule and stop at once: the state is not to be trusted any more.
pub fn violation(call: &str, rule: impl std::fmt::Display) -> ! {
    eprintln!("violation: {call}: {rule}");
    let history = HISTORY.lock().ok().and_then(|mut history| history.take());
    if let Some(History { events, saved: Some((file, run)) }) = history {
        let text = json!({
            "violation": format!("{call}: {rule}"), "run": run, "events": events,
        });
        match std::fs::write(&file, format!("{text:#}")) {
            Ok(()) => eprintln!(
                "saved in {0}: `asyncpager-testbed explain {0}` shows how it came to this, \
                 `replay {0}` does it again",
                file.display()
            ),
            Err(error) => eprintln!("cannot save {}: {error}", file.display()),
        }
    }
    std::process::exit(EXIT_VIOLATION);
}

/// Stop unless `holds`.
pub fn rule(call: &str, holds: bool, rule: impl std::fmt::Display) {
    if !holds {
        violation(call, rule);
    }
}

/// Run `f` as a disk's completion thread does: nothing in it may sleep.
pub fn completing<T>(f: impl FnOnce() -> T) -> T {
    let before = COMPLETING.replace(true);
    let result = f();
    COMPLETING.set(before);
    result
}

/// The call is about to sleep, or may.
pub fn may_sleep(call: &str) {
    rule(call, !COMPLETING.get(), "sleeping in a completion thread");
    HELD.with_borrow(|held| rule(call, held.is_empty(), "sleeping with an object lock held"));
}

/// The call must not be made with an object lock held.
pub fn no_lock(call: &str) {
    HELD.with_borrow(|held| rule(call, held.is_empty(), "an object lock is held"));
}

/// This thread has taken the lock at `address`.
pub fn locked(call: &str, address: usize) {
    HELD.with_borrow_mut(|held| {
        rule(call, held.is_empty(), "a second object lock, or the same one again");
        held.push(address);
    });
}

/// This thread has released the lock at `address`.
pub fn unlocked(call: &str, address: usize) {
    HELD.with_borrow_mut(|held| {
        let at = held.iter().position(|a| *a == address);
        rule(call, at.is_some(), "releasing a lock that this thread does not hold");
        at.map(|at| held.remove(at));
    });
}

/// Whether this thread holds the lock at `address`.
pub fn holds(address: usize) -> bool {
    HELD.with_borrow(|held| held.contains(&address))
}
