// SPDX-License-Identifier: BSD-2-Clause
//! Runs scenarios, one after the other, each in a freshly loaded module.

use anyhow::{Result, bail};

use crate::{commands::options::Common, scenarios};

/// Prints the scenarios' names.
pub fn list() {
    scenarios::all().for_each(|(name, _)| println!("{name}"));
}

/// Runs the scenarios of these names, or all when there is none.
pub fn run(common: &Common, names: Vec<String>) -> Result<()> {
    let all = scenarios::all().map(|(name, _)| name.to_string());
    let names = if names.is_empty() { all.collect() } else { names };
    let mut failed = Vec::new();
    for name in &names {
        match scenarios::run(name, &common.ko, common.seed) {
            Ok(()) => println!("{name}: ok"),
            Err(error) => {
                println!("{name}: FAILED: {error:#}");
                failed.push(name.clone());
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}
