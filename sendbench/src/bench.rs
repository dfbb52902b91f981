// SPDX-License-Identifier: BSD-2-Clause
//! A benchmark: every workload at every latency, in rounds in which the variants
//! take turns.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{
    cli, engine,
    host::Host,
    interrupt,
    result::{FORMAT, Measured, Results, Run, SendOptions, Variant},
    workload::Workload,
};

/// Run it all.
pub fn bench<H: Host>(host: &H, args: &cli::Bench, variants: &[Variant]) -> Result<Results> {
    let (scale, names) = (args.scale(), args.workloads());
    let files = scale.files(&names);
    let machine = host.machine()?;
    let show = |text: &str| {
        if !args.quiet {
            eprintln!("sendbench: {text}");
        }
    };
    show(&format!("{}, {} CPUs, disk: {}", machine.system, machine.cpus, machine.disk));
    machine.warnings.iter().for_each(|warning| eprintln!("sendbench: warning: {warning}"));
    let latencies: Vec<Option<u64>> = match args.latency[..] {
        [] => vec![None],
        _ => args.latency.iter().map(|ms| Some(ms.0)).collect(),
    };
    if latencies != [None] {
        host.latency(0)?;
    }
    let total = files.iter().map(|file| file.size).sum();
    let bar = progress(args.quiet, total, "making files")?;
    let fragments = host.prepare(&files, args.seed, &|bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    if let Some(fragments) = fragments {
        show(&format!("the fragmented file lies in {fragments} extents"));
    }
    let mut results = Results {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        began: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        machine,
        size: scale.size,
        seed: args.seed,
        send: args.send_options(),
        fragments,
        runs: Vec::new(),
    };
    let runs = latencies.len() * names.len() * args.rounds as usize * variants.len();
    for latency_ms in latencies {
        if let Some(ms) = latency_ms {
            host.latency(ms)?;
        }
        for name in &names {
            let workload = scale.workload(*name);
            for round in 0..args.rounds {
                // What comes first has the advantage, or not: in turn.
                let mut order = variants.to_vec();
                if round % 2 == 1 {
                    order.reverse();
                }
                for variant in order {
                    let at = latency_ms.map_or(String::new(), |ms| format!(" at {ms} ms"));
                    let what = format!(
                        "{}/{runs} {}{at}, round {}, {}",
                        results.runs.len() + 1,
                        name.as_str(),
                        round + 1,
                        variant.as_str()
                    );
                    let measured = once(host, args, &workload, variant, &what)
                        .with_context(|| what.clone())?;
                    results.runs.push(Run {
                        workload: *name,
                        variant,
                        latency_ms,
                        round,
                        measured,
                    });
                }
            }
        }
    }
    Ok(results)
}

/// One run.
fn once<H: Host>(
    host: &H,
    args: &cli::Bench,
    workload: &Workload,
    variant: Variant,
    what: &str,
) -> Result<Measured> {
    interrupt::check()?;
    host.switch(variant)?;
    let options = args.send_options();
    let engine = engine::Bench { host, workload, seed: args.seed, options: &options };
    if workload.cold {
        host.make_cold(&workload.files)?;
    } else {
        // As fast as can be.
        let options = SendOptions { rate: None, stagger_ms: 0, ..options };
        let engine = engine::Bench { options: &options, ..engine };
        engine.run(&AtomicU64::new(0)).context("warming up")?;
    }
    let bar = progress(args.quiet, workload.bytes(), what)?;
    let (done, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let measured = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                bar.set_position(done.load(Ordering::Relaxed));
                std::thread::park_timeout(Duration::from_millis(250));
            }
        });
        let measured = engine.run(&done);
        over.store(true, Ordering::Relaxed);
        watcher.thread().unpark();
        measured
    });
    bar.finish_and_clear();
    measured
}

fn progress(quiet: bool, total: u64, what: &str) -> Result<ProgressBar> {
    // Twice a second: a serial console is slow, and drawing takes CPU from what is measured.
    let target =
        if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(2) };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    bar.set_style(ProgressStyle::with_template(
        "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}",
    )?);
    bar.set_message(what.to_string());
    Ok(bar)
}
