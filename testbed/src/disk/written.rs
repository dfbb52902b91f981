// SPDX-License-Identifier: BSD-2-Clause
//! Sectors that were written, over the disk's image.

use std::{collections::HashMap, sync::Mutex};

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// Sectors that were written, by their number.
#[derive(Default)]
pub struct Written(Mutex<HashMap<u64, [u8; SECTOR as usize]>>);

impl Written {
    /// The new bytes of the sector at byte `at`.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        let mut sector = [0; SECTOR as usize];
        sector.copy_from_slice(bytes);
        self.0.lock().unwrap().insert(at / SECTOR, sector);
    }

    /// Puts written sectors over bytes of the image from `start` on.
    pub fn apply(&self, start: u64, bytes: &mut [u8]) {
        let all = self.0.lock().unwrap();
        if all.is_empty() {
            return;
        }
        for (i, to) in (start / SECTOR..).zip(bytes.chunks_mut(SECTOR as usize)) {
            if let Some(sector) = all.get(&i) {
                to.copy_from_slice(&sector[..to.len()]);
            }
        }
    }
}
