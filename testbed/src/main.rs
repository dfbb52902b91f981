// SPDX-License-Identifier: BSD-2-Clause
//! The testbed's command line.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use asyncpager_testbed::commands::{
    check, compare, explain, options::Common, replay, rules, serve, torture,
};
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
    /// kldload, then kldunload.
    Load {
        #[command(flatten)]
        common: Common,
        /// One host thread plays all threads.
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
    /// Random mixes of operations and faults, until the time or the calls are over.
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
        /// One host thread plays all threads: the same seed gives the same run.
        #[arg(long)]
        deterministic: bool,
        /// The file that a violation is saved in.
        #[arg(long, default_value = "asyncpager-violation.json")]
        save: PathBuf,
    },
    /// Repeat the run in which torture has saved a violation.
    Replay {
        #[command(flatten)]
        common: Common,
        /// The file that torture has saved.
        file: PathBuf,
    },
    /// Show the events that led to a saved violation.
    Explain {
        /// The file that torture has saved.
        file: PathBuf,
        /// Only events that contain this text: a page, a buf, an object.
        #[arg(long)]
        about: Option<String>,
    },
    /// Send the same requests through stock 14.2, the emulation, and the module.
    Compare {
        #[command(flatten)]
        common: Common,
        /// How many requests.
        #[arg(long, default_value_t = 2000)]
        requests: u64,
    },
    /// Break a rule of the simulated kernel on purpose: this must end with exit code 2.
    #[command(alias = "breach")]
    Rules {
        /// List the names, with words of each violation, and stop.
        #[arg(long)]
        list: bool,
        /// The rule to break.
        #[arg(required_unless_present = "list")]
        name: Option<String>,
    },
    /// Run scenarios: each checks one promise of the module.
    Check {
        #[command(flatten)]
        common: Common,
        /// List the names and stop.
        #[arg(long)]
        list: bool,
        /// Scenarios to run; all when none is named.
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
        Command::Replay { common, file } => replay::replay(&common, &file),
        Command::Explain { file, about } => explain::explain(&file, about.as_deref()),
        Command::Compare { common, requests } => compare::run(&common, requests),
        Command::Rules { name: Some(name), list: false } => rules::run(&name),
        Command::Rules { .. } => {
            rules::list();
            Ok(())
        }
        Command::Check { list: true, .. } => {
            check::list();
            Ok(())
        }
        Command::Check { common, names, .. } => check::run(&common, names),
    }
}
