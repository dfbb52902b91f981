// SPDX-License-Identifier: BSD-2-Clause
//! Explains a saved violation: the events that led to it.

use std::path::Path;

use anyhow::{Context, Result};

/// Show how a saved violation came about: what touched the same thing.
pub fn explain(file: &Path, about: Option<&str>) -> Result<()> {
    let saved = read_saved(file)?;
    let violation = saved["violation"].as_str().unwrap_or("?");
    println!("violation: {violation}\nrun: {}", saved["run"]);
    let events = saved["events"].as_array().context("the file holds no events")?;
    let events = events.iter().enumerate().filter_map(|(i, e)| Some((i, e.as_str()?)));
    for (i, event) in events.filter(|(_, event)| about.is_none_or(|about| event.contains(about))) {
        println!("{i:5}  {event}");
    }
    Ok(())
}

/// Reads a saved violation.
pub fn read_saved(file: &Path) -> Result<serde_json::Value> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not what torture saves", file.display()))
}
