// SPDX-License-Identifier: BSD-2-Clause
//! Rules of the kernel: a violation names the rule and the call, and ends the run.

use std::{collections::VecDeque, path::PathBuf, sync::Mutex};

use serde_json::json;

use crate::host::thread;

/// Exit code of a run that broke a rule.
pub const EXIT_VIOLATION: i32 = 2;

/// The last events, for a violation to save.
#[derive(Default)]
struct History {
    events: VecDeque<String>,
    /// Where to save, and how to repeat the run.
    saved: Option<(PathBuf, serde_json::Value)>,
}

/// Events that are kept.
const EVENTS: usize = 4096;

static HISTORY: Mutex<Option<History>> = Mutex::new(None);

/// Keeps a history from now on. A violation saves it in `file`, together with `run`,
/// which says how to repeat the run.
pub fn keep_history(file: PathBuf, run: serde_json::Value) {
    let history = History { events: VecDeque::new(), saved: Some((file, run)) };
    *HISTORY.lock().unwrap() = Some(history);
}

/// Adds a call to the history.
pub fn record(call: &str, what: std::fmt::Arguments<'_>) {
    let Ok(mut history) = HISTORY.lock() else { return };
    if let Some(history) = history.as_mut() {
        if history.events.len() == EVENTS {
            history.events.pop_front();
        }
        history.events.push_back(format!(
            "{} {} {call}: {what}",
            thread::context().name(),
            thread::number()
        ));
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

/// A violation unless `holds`.
pub fn rule(call: &str, holds: bool, rule: impl std::fmt::Display) {
    if !holds {
        violation(call, rule);
    }
}
