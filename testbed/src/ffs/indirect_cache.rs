// SPDX-License-Identifier: BSD-2-Clause
//! Indirect blocks of a file that the buffer cache has.

use std::{collections::HashSet, sync::Mutex, time::Duration};

use crate::{
    checks::sleep,
    disk::{
        device::{self, Disk},
        indirect::Indirect,
    },
    host::schedule,
};

/// Which of a file's indirect blocks are in the buffer cache.
#[derive(Debug, Default)]
pub struct IndirectCache(Mutex<Blocks>);

#[derive(Debug, Default)]
pub struct Blocks {
    there: HashSet<i64>,
    /// Reads in flight.
    reading: HashSet<i64>,
}

impl IndirectCache {
    /// Whether the buffer cache has the block. A file without indirect blocks has them all.
    pub fn has(&self, indirect: &Indirect, number: i64) -> bool {
        indirect.is_empty() || self.0.lock().unwrap().there.contains(&number)
    }

    /// Waits until no read of the block is in flight; whether it is in the cache.
    pub fn settle(&self, indirect: &Indirect, number: i64) -> bool {
        let reading = || self.0.lock().unwrap().reading.contains(&number);
        if reading() {
            sleep::waits("bwait");
        }
        while reading() {
            if !schedule::pump() {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        self.has(indirect, number)
    }

    /// A read of the block begins.
    pub fn begin(&self, number: i64) {
        self.0.lock().unwrap().reading.insert(number);
    }

    /// The read has ended; `there`: without an error.
    pub fn end(&self, number: i64, there: bool) {
        let mut blocks = self.0.lock().unwrap();
        blocks.reading.remove(&number);
        if there {
            blocks.there.insert(number);
        }
    }

    /// Reads all indirect blocks that lead to block `lbn`, and waits for each that is not in the
    /// cache.
    pub fn bring(&self, disk: &Disk, indirect: &Indirect, lbn: u64, block: u64) -> device::Outcome {
        for number in indirect.on_the_way(lbn) {
            if !self.settle(indirect, number) {
                let start = indirect.place(number).unwrap_or(0) as u64 * 512;
                disk.read_and_wait(start..start + block)?;
                self.0.lock().unwrap().there.insert(number);
            }
        }
        Ok(Vec::new())
    }

    /// Drops all of them, as the buffer cache does to make room.
    pub fn forget(&self) {
        self.0.lock().unwrap().there.clear();
    }
}
