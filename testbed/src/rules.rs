// SPDX-License-Identifier: BSD-2-Clause
//! What a kernel forbids: a violation names the rule and the call, and ends the run.

use std::{
    cell::Cell,
    collections::VecDeque,
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use serde_json::json;

use crate::{cpu, witness};

/// Exit code of a run that broke a rule.
pub const EXIT_VIOLATION: i32 = 2;

/// What kind of kernel thread is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// A process, or a thread of the module's own.
    Thread,
    /// The disk's completion thread; nothing in it may sleep.
    Completion,
    /// A softclock thread, which runs callouts; nothing in it may sleep.
    Callout,
    /// A taskqueue's thread; it may sleep.
    Task,
}

impl Context {
    fn name(self) -> &'static str {
        match self {
            Self::Thread => "thread",
            Self::Completion => "completion",
            Self::Callout => "callout",
            Self::Task => "task",
        }
    }

    fn may_sleep(self) -> bool {
        matches!(self, Self::Thread | Self::Task)
    }
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
    static CONTEXT: Cell<Context> = const { Cell::new(Context::Thread) };
    static THREAD: u64 = THREADS.fetch_add(1, Ordering::Relaxed);
}

/// The number of the calling thread.
pub fn thread() -> u64 {
    THREAD.with(|id| *id)
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
        history.events.push_back(format!("{} {} {call}: {what}", CONTEXT.get().name(), thread()));
    }
}

/// Report a broken rule and stop at once: the state is not to be trusted any more.
pub fn violation(call: &str, rule: impl std::fmt::Display) -> ! {
    eprintln!("violation: {call}: {rule}");
    // A fault may have come while this very thread was writing history.
    let history = HISTORY.try_lock().ok().and_then(|mut history| history.take());
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

/// Run `f` as another kernel thread does: with none of this one's locks, and
/// without any when it returns.
pub fn run_as<T>(context: Context, call: &str, f: impl FnOnce() -> T) -> T {
    let before = CONTEXT.replace(context);
    let result = witness::without_locks(call, f);
    CONTEXT.set(before);
    result
}

/// The call is about to sleep, or may.
pub fn may_sleep(call: &str) {
    let context = CONTEXT.get();
    rule(call, context.may_sleep(), format_args!("sleeping in a {} thread", context.name()));
    cpu::preemptible(call);
    witness::sleeping(call);
}

/// The call must not be made with a lock held that forbids to sleep.
pub fn no_lock(call: &str) {
    witness::lockless(call);
}
