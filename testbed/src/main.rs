// SPDX-License-Identifier: BSD-2-Clause
//! The testbed's command line.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use asyncpager_testbed::{Common, breach, compare, scenario, serve, torture};
use clap::{Parser, Subcommand};

/// Run asyncpager.ko in userspace.
///
/// Exit codes: 0 all is well, 1 bad input or a failed check, 2 the module
/// broke a rule of the kernel.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// kldload and kldunload, and nothing between them.
    Load {
        #[command(flatten)]
        common: Common,
        /// One thread only.
        #[arg(long)]
        deterministic: bool,
    },
    /// Make a filesystem with files of all shapes and serve it.
    Demo(Common),
    /// Serve every file of a UFS image, check each byte against the source files.
    Serve {
        #[command(flatten)]
        common: Common,
        /// The UFS1 or UFS2 image.
        #[arg(long)]
        image: PathBuf,
        /// The directory that the image was made from.
        #[arg(long)]
        source: PathBuf,
    },
    /// Random mixes of all that can happen, until the time or the calls are over.
    Torture {
        #[command(flatten)]
        common: Common,
        /// Stop after so many minutes.
        #[arg(long, default_value_t = 1.0)]
        minutes: f64,
        /// Stop after so many calls of the VOPs for each seed.
        #[arg(long, default_value_t = 50_000)]
        calls: u64,
        /// Seeds, from --seed on.
        #[arg(long, default_value_t = 1)]
        seeds: u64,
        /// One thread only: the same seed gives the same run.
        #[arg(long)]
        deterministic: bool,
        /// Where a violation is saved.
        #[arg(long, default_value = "asyncpager-violation.json")]
        save: PathBuf,
    },
    /// Do again what torture has saved.
    Replay {
        #[command(flatten)]
        common: Common,
        /// What torture has saved.
        file: PathBuf,
    },
    /// Show how it came to the violation that torture has saved.
    Explain {
        /// What torture has saved.
        file: PathBuf,
        /// Only events that contain this text: a page, a buf, an object.
        #[arg(long)]
        about: Option<String>,
    },
    /// The same requests through stock 14.2, the emulation, and the module.
    Compare {
        #[command(flatten)]
        common: Common,
        /// How many.
        #[arg(long, default_value_t = 2000)]
        requests: u64,
    },
    /// Break a rule of the testbed's own KPI on purpose: it must end with exit code 2.
    Breach {
        /// List the names, and what the violation has to say, and stop.
        #[arg(long)]
        list: bool,
        /// The rule to break.
        #[arg(required_unless_present = "list")]
        name: Option<String>,
    },
    /// Check promises of the VOP's contract one by one.
    Check {
        #[command(flatten)]
        common: Common,
        /// List the names and stop.
        #[arg(long)]
        list: bool,
        /// What to check; all when none is named.
        names: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("asyncpager-testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Load { common, deterministic } => serve::load(&common, deterministic),
        Command::Demo(common) => serve::demo(&common),
        Command::Serve { common, image, source } => serve::serve(&common, &image, &source),
        Command::Torture { common, minutes, calls, seeds, deterministic, save } => {
            torture::run(&common, torture::Plan { minutes, calls, seeds, deterministic }, &save)
        }
        Command::Replay { common, file } => torture::replay(&common, &file),
        Command::Explain { file, about } => torture::explain(&file, about.as_deref()),
        Command::Compare { common, requests } => compare::run(&common, requests),
        Command::Breach { name: Some(name), list: false } => breach::run(&name),
        Command::Breach { .. } => {
            breach::ALL.iter().for_each(|(name, says, _)| println!("{name}: {says}"));
            Ok(())
        }
        Command::Check { list: true, .. } => {
            scenario::all().for_each(|(name, _)| println!("{name}"));
            Ok(())
        }
        Command::Check { common, names, .. } => {
            let all = scenario::all().map(|(name, _)| name.to_string());
            let names = if names.is_empty() { all.collect() } else { names };
            let mut failed = Vec::new();
            for name in &names {
                match scenario::run(name, &common.ko, common.seed) {
                    Ok(()) => println!("{name}: ok"),
                    Err(error) => {
                        println!("{name}: FAILED: {error:#}");
                        failed.push(name.clone());
                    }
                }
            }
            if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
        }
    }
}
