// SPDX-License-Identifier: BSD-2-Clause
//! Breaks one rule of the simulated kernel on purpose, to show that it is checked.

use anyhow::Result;

use crate::rule_tests;

/// Prints each rule's name, and words of its violation.
pub fn list() {
    rule_tests::ALL.iter().for_each(|(name, says, _)| println!("{name}: {says}"));
}

/// Breaks the rule `name`. It returns only if no violation comes of that.
pub fn run(name: &str) -> Result<()> {
    rule_tests::run(name)
}
