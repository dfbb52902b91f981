// SPDX-License-Identifier: BSD-2-Clause
//! SIGINT, SIGTERM and SIGHUP end a benchmark in good order.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use anyhow::{Context, Result, bail};

static COME: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// A signal has come.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Catch them from now on.
pub fn install() -> Result<()> {
    let come = COME.get_or_init(Arc::default);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        signal_hook::flag::register(signal, come.clone()).context("cannot catch signals")?;
    }
    Ok(())
}

/// An error if one has come.
pub fn check() -> Result<()> {
    if COME.get().is_some_and(|come| come.load(Ordering::Relaxed)) {
        bail!(Interrupted);
    }
    Ok(())
}
