// SPDX-License-Identifier: BSD-2-Clause
//! Direct calls of the VOPs: each scenario is one promise of the contract.

use std::{path::Path, sync::atomic::Ordering, time::Duration};

use anyhow::{Result, anyhow, ensure};
use asyncpager::kpi::sys;

use crate::{
    consumers::sendfile::{self, Sending, getpages, getpages_async},
    disk::behaviour::Behaviour,
    ffs::vnodeops::ORIGINAL,
    host::memory::PAGE,
    kernel::{
        pmap,
        resident::{self, Page},
        sysctl::{self, counter},
        vm_object,
        vnode::VnodeLocked,
    },
    scenarios::{
        fixture::{Fixture, Run},
        steps::{DISK, P, check_bytes, good, grab, release, straight},
    },
};

/// All of them, by name.
pub const ALL: &[(&str, Run)] = &[
    ("bogus-inside", bogus_inside),
    ("last-partly-valid", last_partly_valid),
    ("holes", holes),
    ("several-runs", several_runs),
    ("behind-and-ahead", behind_and_ahead),
    ("maxphys", maxphys),
    ("end-of-file", end_of_file),
    ("small-blocks", small_blocks),
    ("no-iodone", no_iodone),
    ("sync", sync),
    ("mapped", mapped),
    ("never-waits", never_waits),
];

fn bogus_inside(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(32768, &straight(4), 4 * 32768, true);
    for unmapped in [true, false] {
        let file = if unmapped {
            file.clone()
        } else {
            fixture.synthetic(32768, &straight(4), 4 * 32768, false)
        };
        let mut pages = grab(&file, 2, 9);
        let before = [pages[3], pages[4], pages[6]];
        for page in before {
            page.fields().valid = u8::MAX;
            // SAFETY: the page's own memory.
            unsafe { page.data().write_bytes(7, PAGE) };
            page.unbusy("test");
        }
        for i in [3, 4, 6] {
            pages[i] = Page::bogus();
        }
        let outcome = getpages_async(&file, &pages, 0, 0);
        ensure!(outcome.error == 0, "{outcome:?}");
        check_bytes(fixture, &file, 2, &pages)?;
        for page in before {
            // SAFETY: as above.
            ensure!(unsafe { *page.data() } == 7, "a page that was valid already was read over");
            resident::unwire(page, true);
        }
        release(&pages);
    }
    Ok(())
}

fn last_partly_valid(fixture: &mut Fixture, _: &Path) -> Result<()> {
    for count in [1, 2, 5] {
        let file = fixture.synthetic(4096, &straight(5), 4 * P + 1000, true);
        let pages = grab(&file, 5 - count, count);
        let last = pages[count as usize - 1];
        last.fields().valid = 0b11;
        for at in 0..1024 {
            // SAFETY: within the page.
            unsafe {
                *last.data().add(at) =
                    if at < 1000 { fixture.byte(&file, 4 * P + at as u64) } else { 0 }
            };
        }
        // A count that lacks the last page, or a second read of it, is caught in iodone or by the disk.
        let outcome = getpages_async(&file, &pages, 4, 4);
        ensure!(outcome.code == 0 && outcome.error == 0, "{outcome:?}");
        ensure!(last.fields().valid == u8::MAX, "the last page is not valid as a whole");
        check_bytes(fixture, &file, 5 - count, &pages)?;
        release(&pages);
    }
    Ok(())
}

fn holes(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let map = [None, Some(7), None, None, Some(9)];
    let file = fixture.synthetic(32768, &map, 5 * 32768, true);
    for (first, count) in [(0, 1), (0, 8), (17, 3), (30, 1), (6, 5), (12, 28)] {
        good(fixture, &file, first, count, 3, 3)?;
        vm_object::drop_pages(file.object);
    }
    ensure!(counter("zeroed_bytes") > 0, "no holes were counted");
    Ok(())
}

fn several_runs(fixture: &mut Fixture, _: &Path) -> Result<()> {
    // No two neighbours together, so that each block is a buf of its own.
    let map: Vec<_> = (0..40).map(|i| (i % 7 != 3).then_some(200 - i * 3)).collect();
    let file = fixture.synthetic(4096, &map, 39 * P + 77, true);
    fixture
        .disk
        .behave(Behaviour { latency: Duration::from_millis(1).into(), ..Behaviour::default() });
    for (first, count) in [(0, 40), (2, 3), (3, 30), (39, 1)] {
        good(fixture, &file, first, count, 8, 8)?;
        vm_object::drop_pages(file.object);
    }
    // One part fails: the whole request does, after all parts have come back.
    fixture
        .disk
        .behave(Behaviour { bad: vec![(194 * P..195 * P, libc::EIO)], ..Behaviour::default() });
    let pages = grab(&file, 0, 10);
    let outcome = getpages_async(&file, &pages, 0, 0);
    ensure!(outcome.error == libc::EIO, "{outcome:?}");
    release(&pages);
    Ok(())
}

fn behind_and_ahead(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(32768, &straight(8), 8 * 32768, true);
    let outcome = good(fixture, &file, 10, 4, 3, 5)?;
    ensure!((outcome.behind, outcome.ahead) == (3, 5), "{outcome:?}");
    for i in 7..19 {
        let page =
            resident::resident(file.object, i).ok_or_else(|| anyhow!("page {i} was not read"))?;
        ensure!(!page.is_busy() && page.fields().valid == u8::MAX, "page {i} is not ready");
        check_bytes(fixture, &file, i, &[page])?;
    }
    // A page that is there already ends the way in both directions.
    let outcome = good(fixture, &file, 20, 2, 9, 9)?;
    ensure!((outcome.behind, outcome.ahead) == (1, 9), "{outcome:?}");
    vm_object::drop_pages(file.object);
    good(fixture, &file, 30, 1, 0, 0)?;
    let outcome = good(fixture, &file, 20, 2, 0, 60)?;
    ensure!(outcome.ahead == 8, "{outcome:?}");
    // Neither the file's begin nor its end is passed.
    vm_object::drop_pages(file.object);
    let outcome = good(fixture, &file, 2, 1, 50, 0)?;
    ensure!(outcome.behind == 2, "{outcome:?}");
    let outcome = good(fixture, &file, 62, 1, 0, 50)?;
    ensure!(outcome.ahead == 1, "{outcome:?}");
    Ok(())
}

fn maxphys(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(65536, &straight(100), 100 * 65536, true);
    let outcome = good(fixture, &file, 512, 32, 1000, 1000)?;
    ensure!(outcome.behind + outcome.ahead + 32 == 256, "{outcome:?}");
    vm_object::drop_pages(file.object);
    let outcome = good(fixture, &file, 0, 256, 10, 10)?;
    ensure!(outcome.behind == 0, "{outcome:?}");
    ensure!(counter("calls_original") == 0, "a plan that does not fit: {:?}", sysctl::counters());
    Ok(())
}

fn end_of_file(fixture: &mut Fixture, _: &Path) -> Result<()> {
    for size in [1, 511, 512, 513, 4095, 4096, 4097, 8191, 12289] {
        for unmapped in [true, false] {
            let file = fixture.synthetic(4096, &straight(4), size, unmapped);
            let count = size.div_ceil(P);
            let pages = grab(&file, 0, count);
            let outcome = getpages_async(&file, &pages, 5, 5);
            ensure!(outcome.error == 0, "size {size}: {outcome:?}");
            check_bytes(fixture, &file, 0, &pages)?;
            let tail = (size % P) as usize;
            if tail > 0 {
                // SAFETY: the last page's own memory.
                let rest = unsafe {
                    std::slice::from_raw_parts(
                        pages[count as usize - 1].data().add(tail),
                        PAGE - tail,
                    )
                };
                ensure!(
                    rest.iter().all(|b| *b == 0),
                    "size {size}: the last page holds bytes of the disk behind the file's end"
                );
            }
            release(&pages);
        }
    }
    Ok(())
}

fn small_blocks(fixture: &mut Fixture, _: &Path) -> Result<()> {
    for block in [512, 1024, 2048] {
        for unmapped in [true, false] {
            // Every kind of neighbour: joined, apart, a hole.
            let map: Vec<_> = (0..64u64).map(|i| (i % 5 != 2).then_some(400 + i + i / 3)).collect();
            let file = fixture.synthetic(block, &map, 64 * block - 300, unmapped);
            let count = file.inode.size.div_ceil(P);
            good(fixture, &file, 0, count, 4, 4)?;
            vm_object::drop_pages(file.object);
            // A block that is valid already may be newer than the disk.
            let pages = grab(&file, 0, count);
            pages[1].fields().valid = 0b1111;
            // SAFETY: within the page.
            unsafe { pages[1].data().write_bytes(9, 2048) };
            let outcome = getpages_async(&file, &pages, 0, 0);
            ensure!(outcome.error == 0, "{outcome:?}");
            // SAFETY: as above.
            let kept = unsafe { std::slice::from_raw_parts(pages[1].data(), 2048) };
            ensure!(kept.iter().all(|b| *b == 9), "valid blocks of {block} bytes were read over");
            check_bytes(fixture, &file, 2, &pages[2..])?;
            release(&pages);
        }
    }
    Ok(())
}

fn no_iodone(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(32768, &straight(8), 8 * 32768, true);
    let pages = grab(&file, 10, 4);
    let locked = VnodeLocked::new(file.vnode, false, "vm_fault");
    let outcome = getpages(&file, &pages, 3, 5, true);
    drop(locked);
    ensure!(outcome.code == 0 && (outcome.behind, outcome.ahead) == (3, 5), "{outcome:?}");
    check_bytes(fixture, &file, 10, &pages)?;
    pages.iter().for_each(|page| page.unbusy("test"));
    release(&pages);
    Ok(())
}

fn sync(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(32768, &straight(8), 8 * 32768, true);
    let sync_call = |first: u64, ahead: i32| -> Result<(i32, Vec<Page>)> {
        let pages = grab(&file, first, 4);
        let _locked = VnodeLocked::new(file.vnode, false, "vm_fault");
        let outcome = getpages(&file, &pages, 2, ahead, false);
        Ok((outcome.code, pages))
    };
    let let_go = |pages: Vec<Page>| {
        pages.iter().for_each(|page| page.unbusy("test"));
        release(&pages);
    };
    let_go(sync_call(0, 0)?.1);
    ensure!(
        counter("calls_sync") == 0 && ORIGINAL[0].load(Ordering::Relaxed) == 1,
        "taken over unasked"
    );
    ensure!(sysctl::write("vfs.asyncpager.sync", true) == 0, "sysctl");
    let (code, pages) = sync_call(8, 4)?;
    ensure!(code == 0 && counter("calls_sync") == 1, "not taken over");
    check_bytes(fixture, &file, 8, &pages)?;
    let_go(pages);
    fixture
        .disk
        .behave(Behaviour { bad: vec![(0..DISK as u64, libc::EIO)], ..Behaviour::default() });
    let (code, pages) = sync_call(24, 4)?;
    ensure!(code == sys::VM_PAGER_ERROR, "code {code}");
    let_go(pages);
    fixture.disk.behave(Behaviour::default());
    ensure!(sysctl::write("vfs.asyncpager.sync", false) == 0, "sysctl");
    let_go(sync_call(40, 0)?.1);
    ensure!(counter("calls_sync") == 2, "still taken over");
    Ok(())
}

fn mapped(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(32768, &straight(8), 7 * 32768 + 5000, false);
    good(fixture, &file, 10, 4, 3, 5)?;
    vm_object::drop_pages(file.object);
    good(fixture, &file, 50, 8, 3, 5)?;
    ensure!(pmap::MAPPED.load(Ordering::Relaxed) == 0, "pages are left mapped");
    Ok(())
}

/// No call waits for the data that it asks for, however many calls are in flight
/// before it.
fn never_waits(fixture: &mut Fixture, _: &Path) -> Result<()> {
    fixture
        .disk
        .behave(Behaviour { latency: Duration::from_millis(20).into(), ..Behaviour::default() });
    let file = fixture.synthetic(32768, &straight(40), 40 * 32768 - 700, true);
    let waited = sendfile::CALLS_WAITED.load(Ordering::Relaxed);
    let all: Vec<_> =
        (0..12).filter_map(|i| Sending::begin(&file, i * 100_000, 20_000, 8)).collect();
    ensure!(all.len() == 12, "{} of 12 have begun", all.len());
    let waited = sendfile::CALLS_WAITED.load(Ordering::Relaxed) - waited;
    ensure!(waited == 0, "{waited} calls waited for the disk");
    for (i, sending) in (0..).zip(all) {
        let mut got = Vec::new();
        let sent = sending.finish(false, |bytes| got.extend_from_slice(bytes));
        let want = (i * 100_000..i * 100_000 + 20_000).map(|at| fixture.byte(&file, at));
        ensure!(sent == Ok(()) && want.eq(got.iter().copied()), "request {i}: {sent:?}");
    }
    Ok(())
}
