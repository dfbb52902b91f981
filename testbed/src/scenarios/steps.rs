// SPDX-License-Identifier: BSD-2-Clause
//! Steps that scenarios share: files, requests, waiting.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    checks::sleep,
    consumers::sendfile::{Outcome, Sending, getpages_async},
    disk::behaviour::Behaviour,
    ffs::file::File,
    host::{clock::Patience, memory::PAGE},
    kernel::{
        buf,
        resident::{self, Page},
        taskqueue, vm_object,
    },
    scenarios::fixture::Fixture,
};

/// Bytes of the scenarios' disk.
pub const DISK: usize = 16 << 20;

/// Busied pages from `first` on, as sendfile(2) grabs them.
pub fn grab(file: &File, first: u64, count: u64) -> Vec<Page> {
    (first..first + count).map(|i| resident::grab(file.object, i)).collect()
}

/// The bytes of valid pages are the file's, zero behind its end.
pub fn check_bytes(fixture: &Fixture, file: &File, first: u64, pages: &[Page]) -> Result<()> {
    for (i, page) in pages.iter().enumerate().filter(|(_, page)| **page != Page::bogus()) {
        for at in 0..P {
            let offset = (first + i as u64) * P + at;
            if page.is_valid(at as usize, 1) {
                // SAFETY: within the page.
                let got = unsafe { *page.data().add(at as usize) };
                let want = fixture.byte(file, offset);
                ensure!(got == want, "byte {offset} is {got:#x}, not {want:#x}");
            } else {
                ensure!(offset >= file.inode.size, "byte {offset} is not valid");
            }
        }
    }
    Ok(())
}

/// Unwire pages and free them.
pub fn release(pages: &[Page]) {
    pages
        .iter()
        .filter(|page| **page != Page::bogus())
        .for_each(|page| resident::unwire(*page, true));
}

/// Ask for pages, expect success, check and release them.
pub fn good(
    fixture: &Fixture,
    file: &File,
    first: u64,
    count: u64,
    behind: i32,
    ahead: i32,
) -> Result<Outcome> {
    let pages = grab(file, first, count);
    let outcome = getpages_async(file, &pages, behind, ahead);
    ensure!(outcome.code == 0 && outcome.error == 0, "failed: {outcome:?}");
    check_bytes(fixture, file, first, &pages)?;
    release(&pages);
    Ok(outcome)
}

pub fn straight(blocks: u64) -> Vec<Option<u64>> {
    (10..10 + blocks).map(Some).collect()
}

/// Bytes of a page.
pub const P: u64 = PAGE as u64;

/// Blocks of the files here.
pub const BLOCKS: u64 = 120;

/// Bytes of a block.
pub const BLOCK: u64 = 32768;
pub const SIZE: u64 = BLOCKS * BLOCK - 700;

/// Makes the disk so slow that its latency is worth hiding, and lets the module
/// measure that.
pub fn slow(fixture: &Fixture, milliseconds: u64) -> Result<()> {
    let latency = Duration::from_millis(milliseconds).into();
    fixture.disk.behave(Behaviour { latency, ..Behaviour::default() });
    let other = fixture.synthetic(BLOCK, &[Some(400)], BLOCK, true);
    send(fixture, &other, 0, P, 0)
}

/// A file of one run, whose block map is in memory.
pub fn contiguous(fixture: &Fixture) -> Arc<File> {
    contiguous_of(fixture, BLOCKS)
}

pub fn contiguous_of(fixture: &Fixture, blocks: u64) -> Arc<File> {
    let map: Vec<_> = (10..10 + blocks).map(Some).collect();
    let file = fixture.synthetic(BLOCK, &map, blocks * BLOCK - 700, true);
    warm(&file);
    file
}

/// Brings the block map into memory, as read(2) does.
pub fn warm(file: &File) {
    let lbn = file.inode.map.len() as u64 - 1;
    let brought = file.maps.bring(file.disk(), &file.inode.indirect, lbn, file.mount.block);
    assert!(brought.is_ok(), "the disk does not read");
}

fn check(fixture: &Fixture, file: &File, offset: u64, got: &[u8], len: u64) -> Result<()> {
    let len = len.min(file.inode.size.saturating_sub(offset));
    ensure!(got.len() as u64 == len, "{} bytes at {offset}, not {len}", got.len());
    let wrong = (0..len).find(|i| got[*i as usize] != fixture.byte(file, offset + i));
    ensure!(wrong.is_none(), "byte {} is wrong", offset + wrong.unwrap_or(0));
    Ok(())
}

pub fn send(fixture: &Fixture, file: &File, offset: u64, len: u64, wish: i32) -> Result<()> {
    let sending = Sending::begin(file, offset, len, wish).context("the file is gone")?;
    finish(fixture, file, sending, offset, len)
}

/// Wait for a request, and check its bytes.
pub fn finish(
    fixture: &Fixture,
    file: &File,
    sending: Sending,
    offset: u64,
    len: u64,
) -> Result<()> {
    let mut got = Vec::new();
    let sent = sending.finish(false, |bytes| got.extend_from_slice(bytes));
    ensure!(sent == Ok(()), "{len} bytes at {offset}: {sent:?}");
    check(fixture, file, offset, &got, len)
}

/// Wait until something has come about.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let mut patience = Patience::seconds(20);
    let mut step = Instant::now();
    while !done() {
        std::thread::sleep(Duration::from_micros(300));
        if step.elapsed() >= Patience::STEP {
            step = Instant::now();
            ensure!(patience.spend(), "it has not come about that {what}");
        }
    }
    Ok(())
}

/// Wait until the module's threads have done all that they were told to.
pub fn settle() -> Result<()> {
    wait_until("the module's threads are idle", taskqueue::idle)
}

/// Whether a page is there and valid.
pub fn ready(file: &File, pindex: u64) -> bool {
    resident::resident(file.object, pindex).is_some_and(|p| !p.is_busy() && p.fields().valid != 0)
}

/// Do what is spoilt when the host stands still in the middle of it, until it
/// does not.
pub fn undisturbed(mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..20 {
        if done()? {
            return Ok(());
        }
    }
    bail!("the host stands still all the time")
}

/// Begin to send with neither the block map nor a page in memory.
pub fn begin_forgotten(file: &File, offset: u64, len: u64) -> Result<Sending> {
    // Nor does what came before bring it there meanwhile.
    taskqueue::hold(true);
    wait_until("no buf is in flight", || buf::out() == 0)?;
    file.maps.forget();
    vm_object::reclaim(file.object, 1, &mut fastrand::Rng::with_seed(1));
    let sending = Sending::begin(file, offset, len, 0).context("the file is gone")?;
    taskqueue::hold(false);
    Ok(sending)
}

/// The same from a place that sendfile need not wait for.
pub fn begin_cold(file: &File, offset: u64, len: u64) -> Result<Sending> {
    let waited = sleep::waited();
    let sending = begin_forgotten(file, offset, len)?;
    ensure!(sleep::waited() == waited, "sendfile has waited for the block map of {offset}");
    Ok(sending)
}

pub fn cold(fixture: &Fixture, file: &File, offset: u64, len: u64) -> Result<()> {
    let sending = begin_cold(file, offset, len)?;
    finish(fixture, file, sending, offset, len)
}
