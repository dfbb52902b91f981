// SPDX-License-Identifier: BSD-2-Clause
//! sendbench: what asyncpager does for an event loop that sends files.

mod bench;
mod cli;
mod content;
mod distribution;
mod engine;
mod host;
mod interrupt;
mod pace;
mod plot;
mod ratio;
mod report;
mod result;
mod table;
#[cfg_attr(target_os = "linux", allow(dead_code, reason = "the testbed sets nothing up"))]
mod undo;
mod unusable;
mod workload;

use std::{io::Write, path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::{
    cli::{Cli, Command},
    result::{FORMAT, Results, Variant},
};

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let result = run(command);
    // Nothing is left to do after a success.
    let undone = undo::all();
    match result.and(undone) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match code(&error) {
                // Where it was is of no interest.
                130 => eprintln!("sendbench: interrupted"),
                _ => eprintln!("sendbench: {error:#}"),
            }
            ExitCode::from(code(&error))
        }
    }
}

/// The exit code that an error stands for.
fn code(error: &anyhow::Error) -> u8 {
    if error.is::<engine::WrongBytes>() {
        3
    } else if error.is::<unusable::Unusable>() {
        4
    } else if error.is::<interrupt::Interrupted>() {
        130
    } else {
        1
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Compare { bench } => measure(&bench, &[Variant::Stock, Variant::Asyncpager]),
        Command::Run { variant, bench } => measure(&bench, &[variant]),
        Command::Report { from, page } => {
            let text = std::fs::read_to_string(&from)
                .with_context(|| format!("cannot read {}", from.display()))?;
            let results: Results = serde_json::from_str(&text)
                .with_context(|| format!("{} is not what --json writes", from.display()))?;
            ensure!(
                results.format == FORMAT,
                "{} has format {}, and this sendbench reads {FORMAT}",
                from.display(),
                results.format
            );
            match page {
                Some(page) => write_page(&results, &page),
                None => {
                    print!("{}", table::table(&results));
                    Ok(())
                }
            }
        }
    }
}

fn measure(args: &cli::Bench, variants: &[Variant]) -> Result<()> {
    interrupt::install()?;
    let results = on_host(args, variants)?;
    if let Some(path) = &args.save {
        std::fs::write(path, serde_json::to_string(&results)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.report {
        write_page(&results, path)?;
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer(&mut out, &results)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", table::table(&results))?;
    }
    Ok(())
}

fn write_page(results: &Results, path: &Path) -> Result<()> {
    std::fs::write(path, report::page(results)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(target_os = "freebsd")]
fn on_host(args: &cli::Bench, variants: &[Variant]) -> Result<Results> {
    use host::{
        Host,
        freebsd::{FreeBsd, Place, Wish},
    };

    if variants.contains(&Variant::Asyncpager) && !FreeBsd::module_loaded() {
        return Err(unusable::unusable("asyncpager is not loaded: kldload asyncpager.ko"));
    }
    let place = match (&args.disk.dir, &args.disk.device) {
        (Some(dir), _) => Place::Directory(dir.clone()),
        (None, Some(device)) => Place::Device(device.clone()),
        (None, None) => Place::Memory,
    };
    let files = args.scale().files(&args.workloads());
    let host = FreeBsd::new(&Wish {
        place,
        latency: args.latency.iter().any(|ms| ms.0 > 0),
        newfs: !args.disk.no_newfs,
        wire: args.disk.wire,
        bytes: files.iter().map(|file| file.size).sum::<u64>() + args.scale().size,
    })?;
    let results = bench::bench(&host, args, variants)?;
    host.finish()?;
    Ok(results)
}

#[cfg(target_os = "linux")]
fn on_host(args: &cli::Bench, variants: &[Variant]) -> Result<Results> {
    use host::{Host, testbed::Testbed};

    if !args.testbed.testbed {
        return Err(unusable::unusable(
            "this is not FreeBSD: --testbed runs the module in userspace",
        ));
    }
    let files = args.scale().files(&args.workloads());
    let host = Testbed::new(&args.testbed.ko, &files, args.seed)?;
    let results = bench::bench(&host, args, variants)?;
    host.finish()?;
    Ok(results)
}
