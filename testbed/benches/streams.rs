// SPDX-License-Identifier: BSD-2-Clause
//! What a call of the pager costs with one followed stream, and with ten
//! thousand: the time from a sendfile's begin to its I/O being on the way.
#![allow(missing_docs)] // what criterion_group! makes

use std::{
    path::Path,
    time::{Duration, Instant},
};

use asyncpager_testbed::bench::{self, Bench};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const BLOCK: u64 = 32768;
const PAGE: u64 = 4096;

fn streams(criterion: &mut Criterion) {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kmod/14-amd64/asyncpager.ko");
    let ko = std::env::var_os("ASYNCPAGER_KO").map_or(built, Into::into);
    bench::attach();
    let mut group = criterion.benchmark_group("call with followed streams");
    for count in [1, 100, 10_000] {
        let tunables = [
            ("vfs.asyncpager.readahead.streams", "16384"),
            ("vfs.asyncpager.readahead.latency_min", "0"),
        ];
        let bed = Bench::with(&ko, vec![1; 64 * BLOCK as usize], BLOCK, 1, &tunables)
            .expect("the module is built: `make kmod`");
        let map: Vec<_> = (0..12).map(|i| Some(10 + i)).collect();
        let files: Vec<_> =
            (0..count).map(|i| bed.file(&format!("{i}"), &map, 12 * BLOCK)).collect();
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
        bed.finish().expect("everything balances");
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30);
    targets = streams
}
criterion_main!(benches);
