// SPDX-License-Identifier: BSD-2-Clause
//! Scenarios: each checks one promise of the module in a freshly loaded one.

mod bufs;
mod deferred_maps;
mod errors;
mod fallbacks;
pub mod fixture;
mod load;
mod readahead;
mod readahead_limits;
mod requests;
mod speculative;
mod steps;
mod under_load;
mod unload;

use std::path::Path;

use anyhow::{Result, anyhow};

use crate::{
    kernel::shortage,
    kld::options::Options,
    scenarios::{
        fixture::{Fixture, Run},
        steps::DISK,
    },
};

/// All scenarios, by name.
pub fn all() -> impl Iterator<Item = &'static (&'static str, Run)> {
    let all = [
        requests::ALL,
        errors::ALL,
        fallbacks::ALL,
        under_load::ALL,
        readahead::ALL,
        readahead_limits::ALL,
        deferred_maps::ALL,
        speculative::ALL,
        bufs::ALL,
        load::ALL,
        unload::ALL,
    ];
    all.into_iter().flatten()
}

/// Run one scenario in a freshly loaded module.
pub fn run(name: &str, ko: &Path, seed: u64) -> Result<()> {
    let (_, run) = all()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| anyhow!("no scenario {name}: `check --list` names them"))?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let image: Vec<u8> = std::iter::repeat_with(|| rng.u8(1..)).take(DISK).collect();
    let mut fixture = Fixture::new(Some(ko), &Options::default(), image, 512, seed, true)?;
    run(&mut fixture, ko)?;
    shortage::end();
    fixture.finish()
}
