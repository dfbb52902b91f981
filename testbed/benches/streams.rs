// SPDX-License-Identifier: BSD-2-Clause
//! The cost of followed streams, one to ten thousand: a call of the pager, from the
//! begin of a sendfile(2) until its I/O is in flight, and a run of the timer.
#![allow(missing_docs)] // what criterion_group! makes

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use asyncpager_testbed::bench::{self, Bench};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const BLOCK: u64 = 32768;
const PAGE: u64 = 4096;

const COUNTS: [u64; 5] = [1, 10, 100, 1_000, 10_000];

fn module() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kmod/14-amd64/asyncpager.ko");
    std::env::var_os("ASYNCPAGER_KO").map_or(built, Into::into)
}

/// The time that a run of the timer takes while `count` streams are followed.
fn timer(_: &mut Criterion) {
    bench::attach();
    println!("{:>8} {:>8} {:>10} {:>10}", "streams", "runs", "mean", "longest");
    for count in COUNTS {
        let tunables = [
            ("vfs.asyncpager.readahead.streams", "16384"),
            ("vfs.asyncpager.readahead.latency_min", "0"),
        ];
        let bench = Bench::with(&module(), vec![1; 64 * BLOCK as usize], PAGE, 1, &tunables)
            .expect("the module is built: `make kmod`");
        // Two pages, and a hole that no stream comes to the end of.
        let map: Vec<_> = (0..600).map(|i| (i < 2).then_some(10 + i)).collect();
        let files: Vec<_> =
            (0..count).map(|i| bench.file(&format!("{i}"), &map, 600 * PAGE)).collect();
        let send = |page: u64| {
            for file in &files {
                let transfer = file.send(page * PAGE, PAGE, 0).expect("the file is there");
                transfer.finish(false, |_| ()).expect("the disk reads");
            }
        };
        send(0);
        // A call that comes sooner counts as part of the one before.
        std::thread::sleep(Duration::from_millis(5));
        bench.timer();
        // From here on they are followed.
        send(1);
        std::thread::sleep(Duration::from_millis(500));
        let (runs, all, longest) = bench.timer();
        let mean = all / runs.max(1) as u32;
        println!("{count:>8} {runs:>8} {mean:>10.1?} {longest:>10.1?}");
        drop(files);
        bench.finish().expect("everything balances");
    }
}

fn streams(criterion: &mut Criterion) {
    bench::attach();
    let mut group = criterion.benchmark_group("call with followed streams");
    for count in COUNTS {
        let tunables = [
            ("vfs.asyncpager.readahead.streams", "16384"),
            ("vfs.asyncpager.readahead.latency_min", "0"),
        ];
        let bench = Bench::with(&module(), vec![1; 64 * BLOCK as usize], BLOCK, 1, &tunables)
            .expect("the module is built: `make kmod`");
        let map: Vec<_> = (0..12).map(|i| Some(10 + i)).collect();
        let files: Vec<_> =
            (0..count).map(|i| bench.file(&format!("{i}"), &map, 12 * BLOCK)).collect();
        let begin = |at: u64| {
            let file = &files[(at % count) as usize];
            file.forget();
            let offset = at / count % 12 * BLOCK;
            let start = Instant::now();
            let transfer = file.send(offset, 4 * PAGE, 0).expect("the file is there");
            let took = start.elapsed();
            transfer.finish(false, |_| ()).expect("the disk reads");
            took
        };
        // Every stream has begun.
        (0..count).for_each(|at| {
            begin(at);
        });
        let mut at = 0;
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter_custom(|times| {
                let mut took = Duration::ZERO;
                for _ in 0..times {
                    at += 1;
                    took += begin(at);
                }
                took
            });
        });
        drop(files);
        bench.finish().expect("everything balances");
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = timer, streams
}
criterion_main!(benches);
