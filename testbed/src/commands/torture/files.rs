// SPDX-License-Identifier: BSD-2-Clause
//! Files of the torture, and what it has done to them.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use crate::{
    ffs::file::File, host::memory::PAGE, kld::options::Options, scenarios::fixture::Fixture,
};

/// Bytes of the disk that files are on.
pub const DISK: usize = 8 << 20;

/// Bytes behind them for indirect blocks, which no file overwrites.
pub const MAPS: usize = 9 << 20;

/// The path of the one file that is truncated and extended.
pub const CUT: &str = "cut";

/// The path of the one file that is written to, on blocks of its own.
pub const WRITTEN: &str = "written";
pub const WRITTEN_SIZE: u64 = 300 << 10;

/// Counts of a run's operations.
#[derive(Default)]
pub struct Tally {
    pub sent: AtomicU64,
    pub failed: AtomicU64,
    pub faulted: AtomicU64,
    pub reclaimed: AtomicU64,
    pub reloads: AtomicU64,
    pub switched: AtomicU64,
    pub resized: AtomicU64,
    pub unmounted: AtomicU64,
    pub shared: AtomicU64,
    pub written: AtomicU64,
    pub swapped: AtomicU64,
    pub refused: AtomicU64,
}

/// A place for a file, which is opened there anew after an unmount; and the offset of
/// its sequential reader.
pub struct Slot(Mutex<Arc<File>>, AtomicU64);

impl Slot {
    pub fn new(file: Arc<File>) -> Self {
        Self(Mutex::new(file), AtomicU64::new(0))
    }

    /// The offset at which a sequential reader continues, with `len` bytes.
    pub fn next(&self, size: u64, len: u64) -> u64 {
        let at = self.1.fetch_add(len, Ordering::Relaxed);
        if at < size {
            return at;
        }
        self.1.store(len, Ordering::Relaxed);
        0
    }

    pub fn open(&self) -> Arc<File> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Take the file away in the middle of its use, and open it anew.
    pub fn remount(&self, fixture: &Fixture, ufs2: bool) {
        let old = self.open();
        // Requests in between are refused.
        let new = fixture.remount(&old, ufs2);
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = new;
    }
}

/// Every latency is worth hiding, in small windows and as fast as it goes.
pub fn options() -> Options {
    let tunables = [
        // So few that requests wait for them.
        ("vfs.asyncpager.bufs", "24"),
        ("vfs.asyncpager.readahead.latency_min", "0"),
        ("vfs.asyncpager.readahead.initial", "131072"),
        ("vfs.asyncpager.readahead.max", "524288"),
        ("vfs.asyncpager.readahead.poll", "500"),
        ("vfs.asyncpager.readahead.streams", "16"),
    ]
    .map(|(name, value)| (name.to_string(), value.to_string()))
    .to_vec();
    Options { tunables, ..Options::default() }
}

/// A file of random shape.
pub fn file(fixture: &Fixture, path: &str, sector: u64, rng: &mut fastrand::Rng) -> Arc<File> {
    let block = [512, 1024, 4096, 8192, 32768, 65536][rng.usize(..6)].max(sector);
    let order = [12, 16, 20][rng.usize(..3)];
    let size = rng.u64(1..1 << order);
    let blocks = size.div_ceil(block);
    let per_page = (PAGE as u64 / block).max(1);
    let most = DISK as u64 / block;
    let mut at = rng.u64(..most);
    let map: Vec<_> = (0..blocks)
        .map(|i| {
            at = if rng.u8(..5) == 0 { rng.u64(..most) } else { (at + 1) % most };
            // vnode_pager_haspage() cannot tell a page that begins with a
            // hole from one that is nothing else.
            (i % per_page == 0 && per_page > 1 || rng.u8(..10) > 0).then_some(at)
        })
        .collect();
    if rng.bool() {
        return fixture.straight(path, block, &map, size, rng.bool());
    }
    fixture.named(path, block, &map, size, rng.bool())
}

/// A file on blocks of its own, out of order.
pub fn written(fixture: &Fixture, rng: &mut fastrand::Rng) -> Arc<File> {
    let block = [4096, 8192, 32768][rng.usize(..3)];
    let first = DISK as u64 / block;
    let mut blocks: Vec<_> = (first..first + WRITTEN_SIZE / block).collect();
    let (a, b) = (rng.usize(..blocks.len()), rng.usize(..blocks.len()));
    blocks.swap(a, b);
    blocks.rotate_left(a);
    let size = blocks.len() as u64 * block - rng.u64(..block);
    let map: Vec<_> = blocks.into_iter().map(Some).collect();
    fixture.named(WRITTEN, block, &map, size, rng.bool())
}
