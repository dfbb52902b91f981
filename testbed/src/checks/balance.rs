// SPDX-License-Identifier: BSD-2-Clause
//! The balance at the end: everything that was taken has been given back.

use crate::checks::rules::rule;

/// Checks that none is left of each kind, by name.
pub fn none_left(call: &str, left: &[(&str, usize)]) {
    for (what, n) in left {
        rule(call, *n == 0, format_args!("{n} {what} are left"));
    }
}
