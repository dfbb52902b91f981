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
    /// On their way, without anybody waiting.
    reading: HashSet<i64>,
}

impl IndirectCache {
    /// Whether this one is; all are of a file whose map is always at hand.
    pub fn has(&self, indirect: &Indirect, number: i64) -> bool {
        indirect.is_empty() || self.0.lock().unwrap().there.contains(&number)
    }

    /// Wait until nobody is reading this one; whether it is there.
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

    /// It is on its way.
    pub fn begin(&self, number: i64) {
        self.0.lock().unwrap().reading.insert(number);
    }

    /// It has come, or not.
    pub fn end(&self, number: i64, there: bool) {
        let mut blocks = self.0.lock().unwrap();
        blocks.reading.remove(&number);
        if there {
            blocks.there.insert(number);
        }
    }

    /// Bring in all that lead to `lbn`, waiting for each that is not there.
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

    /// The buffer cache needs the room.
    pub fn forget(&self) {
        self.0.lock().unwrap().there.clear();
    }
}
