// SPDX-License-Identifier: BSD-2-Clause
//! What a kernel forbids: a violation names the rule and the call, and ends the run.

use std::cell::{Cell, RefCell};

/// Exit code of a run that broke a rule.
pub const EXIT_VIOLATION: i32 = 2;

thread_local! {
    static COMPLETING: Cell<bool> = const { Cell::new(false) };
    static HELD: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Report a broken rule and stop at once: the state is not to be trusted any more.
pub fn violation(call: &str, rule: impl std::fmt::Display) -> ! {
    eprintln!("violation: {call}: {rule}");
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
