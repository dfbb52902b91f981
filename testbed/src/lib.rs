// SPDX-License-Identifier: BSD-2-Clause
//! asyncpager-testbed: runs asyncpager.ko, the very file that kldload takes,
//! in userspace, with a disk, files and a sendfile of its own, and watches
//! that it keeps the kernel's rules.

mod bed;
pub mod bench;
pub mod breach;
mod buf;
mod bufcache;
mod callout;
mod clock;
pub mod compare;
mod condvar;
mod cpu;
mod differs;
mod disk;
mod elf;
mod graves;
mod indirect;
mod kernel;
mod locks;
mod low;
mod malloc;
mod mount;
mod pager;
mod rules;
pub mod scenario;
mod scenario_ahead;
mod scenario_bufs;
mod scenario_guess;
mod scenario_load;
mod scenario_unload;
mod schedule;
mod sendfile;
pub mod serve;
mod stock;
mod sysctl;
mod taskqueue;
pub mod torture;
mod ufs;
mod uma;
mod vfs;
mod vm;
mod vnode;
mod witness;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

/// What all commands take.
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
    /// Of 100 transfers, how many fail with EIO.
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
    /// In what the kernel differs from the headers that the module was built with.
    #[arg(long)]
    pub differs: Option<differs::Difference>,
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
