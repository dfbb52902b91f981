// SPDX-License-Identifier: BSD-2-Clause
//! What has been set up on the system is taken down again, last first, whatever
//! happens: at the normal end, after an error or a signal, and in a panic.

use std::sync::{Mutex, Once, TryLockError};

use anyhow::Result;

type Step = (String, Box<dyn FnOnce() -> Result<()> + Send>);

static STEPS: Mutex<Vec<Step>> = Mutex::new(Vec::new());

/// Do `step` at the end.
pub fn later(what: impl Into<String>, step: impl FnOnce() -> Result<()> + Send + 'static) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            before(info);
            // The process aborts after this, and no destructor runs.
            let _ = all();
        }));
    });
    if let Ok(mut steps) = STEPS.lock() {
        steps.push((what.into(), Box::new(step)));
    }
}

/// Do all steps now. Each is done once; one that fails does not stop the others.
pub fn all() -> Result<()> {
    let mut failed = Vec::new();
    loop {
        let step = match STEPS.try_lock() {
            Ok(mut steps) => steps.pop(),
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner().pop(),
            // Held for no longer than a push or a pop.
            Err(TryLockError::WouldBlock) => {
                std::thread::yield_now();
                continue;
            }
        };
        let Some((what, step)) = step else { break };
        if let Err(error) = step() {
            eprintln!("sendbench: cannot {what}: {error:#}");
            failed.push(what);
        }
    }
    anyhow::ensure!(failed.is_empty(), "left behind: could not {}", failed.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_first_once_and_past_failures() {
        static ORDER: Mutex<Vec<u32>> = Mutex::new(Vec::new());
        for n in 0..3 {
            later(format!("step {n}"), move || {
                ORDER.lock().unwrap().push(n);
                anyhow::ensure!(n != 1, "no");
                Ok(())
            });
        }
        let error = all().unwrap_err().to_string();
        assert!(error.contains("step 1") && !error.contains("step 2"), "{error}");
        assert_eq!(*ORDER.lock().unwrap(), [2, 1, 0]);
        assert!(all().is_ok());
        assert_eq!(ORDER.lock().unwrap().len(), 3);
    }
}
