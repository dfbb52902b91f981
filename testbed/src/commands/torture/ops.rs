// SPDX-License-Identifier: BSD-2-Clause
//! Operations of consumers: sendfile(2), write(2), page faults.

use std::sync::{Arc, atomic::Ordering};

use anyhow::{Result, ensure};

use crate::{
    commands::torture::files::{CUT, Slot, Tally, WRITTEN},
    consumers::{
        sendfile::{self, Sending},
        write::{self, CHUNK},
    },
    ffs::file::File,
    host::memory::PAGE,
    kernel::resident,
    scenarios::fixture::Fixture,
};

/// An operation of a consumer.
pub struct Op {
    file: Arc<File>,
    offset: u64,
    len: u64,
    behind: i32,
    ahead: i32,
    nocache: bool,
    fault: bool,
    write: bool,
    sync: bool,
}

/// An [`Op`] that has begun, and the versions of its bytes that were there.
pub struct Begun(Op, Option<Sending>, Vec<u32>);

impl Op {
    pub fn draw(files: &[Slot], rng: &mut fastrand::Rng) -> Self {
        let slot = &files[rng.usize(..files.len())];
        let file = slot.open();
        let order = [8, 14, 17][rng.usize(..3)];
        let (len, stream) = (rng.u64(1..1 << order), rng.u8(..3) == 0);
        let size = file.inode.size;
        Self {
            offset: if stream { slot.next(size, len) } else { rng.u64(..size) },
            write: file.inode.path == WRITTEN && rng.u8(..3) == 0,
            file,
            len,
            behind: rng.i32(0..9),
            ahead: rng.i32(0..if stream { 100 } else { 40 }),
            nocache: rng.u8(..4) > 0 && !stream,
            fault: rng.u8(..10) == 0,
            sync: rng.bool(),
        }
    }

    pub fn begin(self, fixture: &Fixture) -> Begun {
        let versions = match self.file.inode.path.as_str() {
            WRITTEN => fixture.versions.now(self.offset..self.offset + self.len),
            _ => Vec::new(),
        };
        let sending = (!self.fault && !self.write)
            .then(|| Sending::begin(&self.file, self.offset, self.len, self.ahead))
            .flatten();
        Begun(self, sending, versions)
    }
}

impl Begun {
    pub fn end(self, fixture: &Fixture, tally: &Tally) -> Result<()> {
        let Self(op, sending, versions) = self;
        if op.write {
            return write(fixture, &op, tally);
        }
        let Some(sending) = sending else {
            let count =
                if op.fault && fault(fixture, &op)? { &tally.faulted } else { &tally.refused };
            count.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        let (mut at, mut wrong) = (op.offset, None);
        let result = sending.finish(op.nocache, |bytes| {
            wrong =
                wrong.or_else(|| wrong_byte(fixture, &op.file, at, bytes, op.offset, &versions));
            at += bytes.len() as u64;
        });
        let size = op.file.inode.size;
        ensure!(wrong.is_none(), "byte {wrong:?} of a file of {size} is wrong");
        let count = if result.is_ok() { &tally.sent } else { &tally.failed };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// The first of the bytes read at `at` that is not the file's. `versions` are
/// those that the file's bytes from `since` on had before, if it is written to.
/// A byte that was cut off for a while may read as zero, during and after.
fn wrong_byte(
    fixture: &Fixture,
    file: &File,
    at: u64,
    bytes: &[u8],
    since: u64,
    versions: &[u32],
) -> Option<u64> {
    let originals = fixture.bytes(file, at, bytes.len());
    let (cut, written) = (file.inode.path == CUT, file.inode.path == WRITTEN);
    if !written && bytes == originals {
        return None;
    }
    let right = |at, byte, original| match byte {
        _ if at >= file.inode.size => byte == 0,
        _ if written => fixture.versions.right(since, versions, at, byte, original),
        _ => byte == original || cut && byte == 0,
    };
    let each = (at..).zip(bytes.iter().zip(originals));
    each.into_iter().find(|(at, (byte, original))| !right(*at, **byte, *original)).map(|(at, _)| at)
}

/// write(2) of whole chunks.
fn write(fixture: &Fixture, op: &Op, tally: &Tally) -> Result<()> {
    let chunks = op.offset / CHUNK..(op.offset + op.len.min(20_000)).div_ceil(CHUNK);
    let count = match write::write(&op.file, &fixture.versions, chunks) {
        Some(Ok(())) => &tally.written,
        Some(Err(_)) => &tally.failed,
        None => &tally.refused,
    };
    count.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// A page fault: one page through the sync VOP, with pages around it. Whether
/// the file was still there.
fn fault(fixture: &Fixture, op: &Op) -> Result<bool> {
    let Some(_entered) = op.file.enter("vm_fault") else { return Ok(false) };
    if op.offset >= op.file.size() {
        return Ok(true);
    }
    let page = resident::grab(op.file.object, op.offset / PAGE as u64);
    if page.fields().valid == 0 {
        let outcome = sendfile::getpages(&op.file, &[page], op.behind, op.ahead, !op.sync);
        let valid = page.fields().valid != 0;
        ensure!(valid == (outcome.code == 0), "{outcome:?}, and the page is valid: {valid}");
        let start = op.offset / PAGE as u64 * PAGE as u64;
        // The vnode's lock keeps writers away.
        let versions = match op.file.inode.path.as_str() {
            WRITTEN => fixture.versions.now(start..start + PAGE as u64),
            _ => Vec::new(),
        };
        let count = (0..PAGE).step_by(512).take_while(|at| page.is_valid(*at, 1)).count() * 512;
        // SAFETY: the page is busied by this thread.
        let bytes = unsafe { std::slice::from_raw_parts(page.data(), count) };
        let wrong = wrong_byte(fixture, &op.file, start, bytes, start, &versions);
        ensure!(wrong.is_none(), "byte {wrong:?} is wrong after a fault");
    }
    page.unbusy("vm_fault");
    resident::unwire(page, !op.nocache);
    Ok(true)
}
