// SPDX-License-Identifier: BSD-2-Clause
//! Options that all commands take.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::kernel::differences::Difference;

/// Options that all commands take.
#[derive(Args, Clone)]
pub struct Common {
    /// The module.
    #[arg(long, default_value = "target/kmod/14-amd64/asyncpager.ko")]
    pub ko: PathBuf,
    /// The disk's latency in milliseconds.
    #[arg(long, default_value_t = 2)]
    pub latency: u64,
    /// Threads that send files.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=64))]
    pub threads: u64,
    /// Percentage of transfers that fail with EIO.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub fail: u8,
    /// Mount without MNTK_UNMAPPED_BUFS.
    #[arg(long)]
    pub mapped: bool,
    /// Seed of everything random.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The kernel's osreldate.
    #[arg(long, default_value_t = 1_402_000)]
    pub osreldate: i32,
    /// How the kernel differs from the headers that the module was built with.
    #[arg(long)]
    pub differs: Option<Difference>,
    /// A loader tunable, name=value.
    #[arg(long, value_parser = tunable)]
    pub tunable: Vec<(String, String)>,
    /// Print the result as JSON.
    #[arg(long)]
    pub json: bool,
}

fn tunable(text: &str) -> Result<(String, String)> {
    let Some((name, value)) = text.split_once('=') else {
        bail!("not name=value");
    };
    Ok((name.to_string(), value.to_string()))
}
