// SPDX-License-Identifier: BSD-2-Clause
//! Counts the pages that a thread looks up, to bound the work of one handler.

use std::{cell::RefCell, collections::HashMap};

thread_local! {
    /// Pages looked up, by object; `None` while the thread does not count.
    static COUNTS: RefCell<Option<HashMap<usize, usize>>> = const { RefCell::new(None) };
}

/// The calling thread counts its lookups from now on.
pub fn begin() {
    COUNTS.set(Some(HashMap::new()));
}

/// The calling thread looks up a page of this object.
pub fn note(object: usize) {
    COUNTS.with_borrow_mut(|counts| {
        if let Some(counts) = counts {
            *counts.entry(object).or_default() += 1;
        }
    });
}

/// Stops counting: pages looked up since [`begin`], by object.
pub fn end() -> HashMap<usize, usize> {
    COUNTS.take().unwrap_or_default()
}
