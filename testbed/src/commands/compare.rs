// SPDX-License-Identifier: BSD-2-Clause
//! Sends the same requests through stock 14.2, through the emulation that any
//! filesystem gets, and through the module: how much each reads, and how often it
//! waits.

use std::sync::{Arc, atomic::Ordering};

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::{
    commands::options::Common,
    consumers::sendfile::{self, Sending},
    ffs::{file::File, vnodeops},
    host::memory::PAGE,
    kernel::{proc, vm_object},
    kld::options::Options,
    scenarios::fixture::Fixture,
};

const DISK: usize = 16 << 20;

/// An implementation of VOP_GETPAGES_ASYNC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Stock,
    Emulation,
    Module,
}

/// Serve the same requests in each way and print what that took.
pub fn run(common: &Common, requests: u64) -> Result<()> {
    let mut all = serde_json::Map::new();
    for (name, way) in
        [("stock", Way::Stock), ("emulation", Way::Emulation), ("module", Way::Module)]
    {
        all.insert(name.to_string(), one(common, way, requests)?);
    }
    if common.json {
        println!("{}", Value::Object(all));
        return Ok(());
    }
    println!("{requests} requests, every byte right, seed {}", common.seed);
    println!("{:12}{:>10}{:>10}{:>10}{:>12}", "", "calls", "waiting", "I/Os", "pages read");
    for (name, way) in &all {
        let figure = |name: &str| way[name].as_u64().unwrap_or(0);
        println!(
            "{name:12}{:>10}{:>10}{:>10}{:>12}",
            figure("calls"),
            figure("calls_waiting"),
            figure("transfers"),
            figure("pages_read")
        );
    }
    Ok(())
}

/// Files of all block sizes that begin together on the disk and come apart.
fn files(fixture: &Fixture, rng: &mut fastrand::Rng) -> Vec<Arc<File>> {
    [4096, 8192, 16384, 32768, 32768, 65536]
        .map(|block: u64| {
            let blocks = (2 << 20) / block;
            let most = DISK as u64 / block;
            let mut at = rng.u64(..most);
            let map: Vec<_> = (0..blocks)
                .map(|i| {
                    at = if rng.u8(..24) == 0 { rng.u64(..most) } else { (at + 1) % most };
                    (i % 4 == 0 || rng.u8(..30) > 0).then_some(at)
                })
                .collect();
            fixture.synthetic(block, &map, blocks * block - rng.u64(..block), true)
        })
        .into()
}

fn one(common: &Common, way: Way, requests: u64) -> Result<Value> {
    let mut rng = fastrand::Rng::with_seed(common.seed);
    let image: Vec<u8> = std::iter::repeat_with(|| rng.u8(1..)).take(DISK).collect();
    let ko = (way == Way::Module).then_some(common.ko.as_path());
    // Without read-ahead: only the cost of the request itself counts.
    let tunables = vec![("vfs.asyncpager.readahead.enabled".to_string(), "0".to_string())];
    let options = Options { tunables, ..Options::default() };
    let fixture = Fixture::new(ko, &options, image, 512, common.seed, false)?;
    proc::attach();
    vnodeops::EMULATED.store(way == Way::Emulation, Ordering::Relaxed);
    let files = files(&fixture, &mut rng);
    let before = [&sendfile::CALLS, &sendfile::CALLS_WAITED].map(|n| n.load(Ordering::Relaxed));
    let mut done = 0;
    while done < requests {
        // A client that reads a cold file from somewhere to its end.
        let file = &files[rng.usize(..files.len())];
        vm_object::drop_pages(file.object);
        let mut at = rng.u64(..file.inode.size);
        while at < file.inode.size && done < requests {
            let len = rng.u64(1..256 << 10).min(file.inode.size - at);
            let sending = Sending::begin(file, at, len, rng.i32(0..64))
                .ok_or_else(|| anyhow!("{way:?}: the file is gone"))?;
            let mut got = Vec::new();
            let sent = sending.finish(false, |bytes| got.extend_from_slice(bytes));
            ensure!(sent == Ok(()), "{way:?}: {sent:?}");
            let want = (at..at + len).map(|at| fixture.byte(file, at));
            ensure!(want.eq(got.iter().copied()), "{way:?}: bytes at {at} are wrong");
            at += len;
            done += 1;
        }
    }
    let now = [&sendfile::CALLS, &sendfile::CALLS_WAITED].map(|n| n.load(Ordering::Relaxed));
    let figures = json!({
        "calls": now[0] - before[0],
        "calls_waiting": now[1] - before[1],
        "transfers": fixture.disk.transfers.load(Ordering::Relaxed),
        "pages_read": fixture.disk.bytes.load(Ordering::Relaxed).div_ceil(PAGE as u64),
    });
    fixture.finish()?;
    vnodeops::EMULATED.store(false, Ordering::Relaxed);
    Ok(figures)
}
