// SPDX-License-Identifier: BSD-2-Clause
//! Repeats the run of a saved violation.

use std::path::Path;

use anyhow::{Context, Result};

use crate::commands::{
    explain::read_saved,
    options::Common,
    torture::{self, Plan},
};

/// Do again what a saved violation was found in.
pub fn replay(common: &Common, file: &Path) -> Result<()> {
    let saved = read_saved(file)?;
    let run = &saved["run"];
    let plan = Plan {
        minutes: 60.0,
        calls: run["calls"].as_u64().context("the file names no calls")?,
        seeds: 1,
        deterministic: run["deterministic"].as_bool().unwrap_or(false),
    };
    let common =
        Common { seed: run["seed"].as_u64().context("the file names no seed")?, ..common.clone() };
    if !plan.deterministic {
        eprintln!("the run had threads: the same draws may interleave in another way");
    }
    torture::run(&common, plan, &file.with_extension("replay.json"))
}
