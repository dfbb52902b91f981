// SPDX-License-Identifier: BSD-2-Clause
//! write(2) through a stand-in for the buffer cache: a block that is written in part
//! is read first, shares its pages with the object, and goes to the disk later. A
//! reader may get any version from the last one finished before its read began to the
//! last one begun.

use std::{
    ops::Range,
    sync::atomic::{AtomicU32, Ordering},
};

use asyncpager::kpi::sys;

use crate::{
    checks::rules::record,
    ffs::{file::File, stock},
    host::memory::PAGE,
    kernel::resident::{self, Page},
};

/// Bytes that are written together.
pub const CHUNK: u64 = 512;

/// How often a chunk's writing was begun, and finished.
#[derive(Default)]
struct Chunk {
    begun: AtomicU32,
    finished: AtomicU32,
}

/// The versions that a file's bytes have had.
#[derive(Default)]
pub struct Versions(Vec<Chunk>);

impl Versions {
    /// Of a file of `size` bytes to which nothing has been written.
    pub fn new(size: u64) -> Self {
        Self((0..size.div_ceil(CHUNK)).map(|_| Chunk::default()).collect())
    }

    /// The versions of these bytes that are there to be read now.
    pub fn now(&self, bytes: Range<u64>) -> Vec<u32> {
        let chunks = bytes.start / CHUNK..bytes.end.div_ceil(CHUNK).min(self.0.len() as u64);
        chunks.map(|i| self.0[i as usize].finished.load(Ordering::Acquire)).collect()
    }

    /// Whether a byte that was read after [`Self::now`] of the bytes from
    /// `start` on is one that was written; `original` is version 0.
    pub fn right(&self, start: u64, then: &[u32], at: u64, byte: u8, original: u8) -> bool {
        let chunk = at / CHUNK;
        let Some(first) = then.get((chunk - start / CHUNK) as usize) else { return false };
        let last = self.0[chunk as usize].begun.load(Ordering::Acquire);
        (*first..=last).any(|version| content(version, at, original) == byte)
    }
}

/// The byte at `at` in a version of a file.
fn content(version: u32, at: u64, original: u8) -> u8 {
    match version {
        0 => original,
        // Neighbouring versions and bytes differ.
        version => ((u64::from(version) * 37 + at * 11 + at / CHUNK * 101) % 251) as u8 + 1,
    }
}

/// Write new versions of whole chunks. EIO when a block that is written in
/// part cannot be read; `None` when the file is gone.
pub fn write(file: &File, versions: &Versions, chunks: Range<u64>) -> Option<Result<(), i32>> {
    let call = "VOP_WRITE";
    let _entered = file.enter_exclusive(call)?;
    let end = (chunks.end * CHUNK).min(file.size());
    let mut at = chunks.start * CHUNK;
    while at < end {
        let start = at / PAGE as u64 * PAGE as u64;
        let part = at..end.min(start + PAGE as u64);
        let page = resident::grab(file.object, start / PAGE as u64);
        let error = write_page(file, versions, page, start, part.clone());
        page.unbusy(call);
        resident::unwire(page, true);
        if error != 0 {
            return Some(Err(error));
        }
        at = part.end;
    }
    Some(Ok(()))
}

/// Write part of a busied page; an errno.
fn write_page(file: &File, versions: &Versions, page: Page, start: u64, part: Range<u64>) -> i32 {
    if page.fields().valid != u8::MAX && stock::bread(file, page) != sys::VM_PAGER_OK {
        return sys::EIO;
    }
    let chunk = |at: u64| &versions.0[(at / CHUNK) as usize];
    let each = || part.clone().step_by(CHUNK as usize);
    for at in each() {
        chunk(at).begun.fetch_add(1, Ordering::AcqRel);
    }
    for at in part.clone() {
        let byte = content(chunk(at).begun.load(Ordering::Relaxed), at, 0);
        // SAFETY: within a busied page.
        unsafe { page.data().add((at - start) as usize).write_volatile(byte) };
    }
    page.fields().dirty = u8::MAX;
    for at in each() {
        chunk(at).finished.fetch_add(1, Ordering::AcqRel);
    }
    record("bdwrite", format_args!("{page} bytes {part:?}"));
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_tell_old_from_new() {
        let versions = Versions::new(2000);
        let (then, at) = (versions.now(0..2000), 700);
        assert_eq!(then, [0; 4]);
        let right = |then: &[u32], byte| versions.right(0, then, at, byte, 9);
        assert!(right(&then, 9) && !right(&then, content(1, at, 9)));
        versions.0[1].begun.store(1, Ordering::Relaxed);
        // While it is written, either is right.
        assert!(right(&then, 9) && right(&then, content(1, at, 9)));
        versions.0[1].finished.store(1, Ordering::Relaxed);
        let now = versions.now(0..2000);
        assert!(right(&then, 9) && !right(&now, 9) && right(&now, content(1, at, 9)));
        assert!(!right(&now, content(2, at, 9)));
    }
}
