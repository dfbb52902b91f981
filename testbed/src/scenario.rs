// SPDX-License-Identifier: BSD-2-Clause
//! Direct calls of the VOPs: each scenario is one promise of the contract.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use asyncpager::kpi::sys;

use crate::{
    bed::{Bed, Run},
    cpu,
    disk::Manners,
    indirect::Indirect,
    kernel::{Module, Options},
    locks::VnodeLocked,
    pager::{Block, swap_free, swap_out},
    scenario_ahead, scenario_bufs, scenario_guess, scenario_load, scenario_unload,
    sendfile::{self, Outcome, Sending, getpages, getpages_async},
    sysctl::{self, counter},
    ufs::Inode,
    uma,
    vfs::{Bmap, EMULATED, File, Mount, ORIGINAL, vectors},
    vm::{self, PAGE, Page},
};

/// Bytes of the scenarios' disk.
const DISK: usize = 16 << 20;
const P: u64 = PAGE as u64;

/// All scenarios, by name.
pub fn all() -> impl Iterator<Item = &'static (&'static str, Run)> {
    ALL.iter()
        .chain(scenario_ahead::ALL)
        .chain(scenario_guess::ALL)
        .chain(scenario_bufs::ALL)
        .chain(scenario_load::ALL)
        .chain(scenario_unload::ALL)
}

const ALL: &[(&str, Run)] = &[
    ("bogus-inside", bogus_inside),
    ("last-partly-valid", last_partly_valid),
    ("holes", holes),
    ("several-runs", several_runs),
    ("behind-and-ahead", behind_and_ahead),
    ("maxphys", maxphys),
    ("end-of-file", end_of_file),
    ("error", error),
    ("error-only-ahead", error_only_ahead),
    ("device-gone", device_gone),
    ("short-transfer", short_transfer),
    ("no-bmap", no_bmap),
    ("bmap-fails", bmap_fails),
    ("no-memory", no_memory),
    ("small-blocks", small_blocks),
    ("doomed", doomed),
    ("large-sector", large_sector),
    ("no-iodone", no_iodone),
    ("sync", sync),
    ("mapped", mapped),
    ("disabled", disabled),
    ("tunables", tunables),
    ("unload-under-load", unload_under_load),
    ("replaced-since", replaced_since),
    ("parallel", parallel),
    ("forced-unmount", forced_unmount),
    ("swap-pager", swap_pager),
    ("stock-model", stock_model),
    ("never-waits", never_waits),
];

/// Run one scenario in a freshly loaded module.
pub fn run(name: &str, ko: &Path, seed: u64) -> Result<()> {
    let (_, run) = all()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| anyhow!("no scenario {name}: `check --list` names them"))?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let image: Vec<u8> = std::iter::repeat_with(|| rng.u8(1..)).take(DISK).collect();
    let mut bed = Bed::new(Some(ko), &Options::default(), image, 512, seed, true)?;
    run(&mut bed, ko)?;
    uma::NO_MEMORY.store(false, Ordering::Relaxed);
    vm::NO_MEMORY.store(false, Ordering::Relaxed);
    bed.finish()
}

/// Busied pages from `first` on, as sendfile(2) grabs them.
pub fn grab(file: &File, first: u64, count: u64) -> Vec<Page> {
    (first..first + count).map(|i| vm::grab(file.object, i)).collect()
}

/// The bytes of valid pages are the file's, zero behind its end.
fn check_bytes(bed: &Bed, file: &File, first: u64, pages: &[Page]) -> Result<()> {
    for (i, page) in pages.iter().enumerate().filter(|(_, page)| **page != Page::bogus()) {
        for at in 0..P {
            let offset = (first + i as u64) * P + at;
            if page.is_valid(at as usize, 1) {
                // SAFETY: within the page.
                let got = unsafe { *page.data().add(at as usize) };
                let want = bed.byte(file, offset);
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
    pages.iter().filter(|page| **page != Page::bogus()).for_each(|page| vm::unwire(*page, true));
}

/// Ask for pages, expect success, check and release them.
pub fn good(
    bed: &Bed,
    file: &File,
    first: u64,
    count: u64,
    behind: i32,
    ahead: i32,
) -> Result<Outcome> {
    let pages = grab(file, first, count);
    let outcome = getpages_async(file, &pages, behind, ahead);
    ensure!(outcome.code == 0 && outcome.error == 0, "failed: {outcome:?}");
    check_bytes(bed, file, first, &pages)?;
    release(&pages);
    Ok(outcome)
}

fn straight(blocks: u64) -> Vec<Option<u64>> {
    (10..10 + blocks).map(Some).collect()
}

fn bogus_inside(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(32768, &straight(4), 4 * 32768, true);
    for unmapped in [true, false] {
        let file = if unmapped {
            file.clone()
        } else {
            bed.synthetic(32768, &straight(4), 4 * 32768, false)
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
        check_bytes(bed, &file, 2, &pages)?;
        for page in before {
            // SAFETY: as above.
            ensure!(unsafe { *page.data() } == 7, "a page that was valid already was read over");
            vm::unwire(page, true);
        }
        release(&pages);
    }
    Ok(())
}

fn last_partly_valid(bed: &mut Bed, _: &Path) -> Result<()> {
    for count in [1, 2, 5] {
        let file = bed.synthetic(4096, &straight(5), 4 * P + 1000, true);
        let pages = grab(&file, 5 - count, count);
        let last = pages[count as usize - 1];
        last.fields().valid = 0b11;
        for at in 0..1024 {
            // SAFETY: within the page.
            unsafe {
                *last.data().add(at) =
                    if at < 1000 { bed.byte(&file, 4 * P + at as u64) } else { 0 }
            };
        }
        // A count that lacks the last page, or a second read of it, is caught in iodone or by the disk.
        let outcome = getpages_async(&file, &pages, 4, 4);
        ensure!(outcome.code == 0 && outcome.error == 0, "{outcome:?}");
        ensure!(last.fields().valid == u8::MAX, "the last page is not valid as a whole");
        check_bytes(bed, &file, 5 - count, &pages)?;
        release(&pages);
    }
    Ok(())
}

fn holes(bed: &mut Bed, _: &Path) -> Result<()> {
    let map = [None, Some(7), None, None, Some(9)];
    let file = bed.synthetic(32768, &map, 5 * 32768, true);
    for (first, count) in [(0, 1), (0, 8), (17, 3), (30, 1), (6, 5), (12, 28)] {
        good(bed, &file, first, count, 3, 3)?;
        vm::drop_pages(file.object);
    }
    ensure!(counter("zeroed_bytes") > 0, "no holes were counted");
    Ok(())
}

fn several_runs(bed: &mut Bed, _: &Path) -> Result<()> {
    // No two neighbours together, so that each block is a buf of its own.
    let map: Vec<_> = (0..40).map(|i| (i % 7 != 3).then_some(200 - i * 3)).collect();
    let file = bed.synthetic(4096, &map, 39 * P + 77, true);
    bed.disk.behave(Manners { latency: Duration::from_millis(1).into(), ..Manners::default() });
    for (first, count) in [(0, 40), (2, 3), (3, 30), (39, 1)] {
        good(bed, &file, first, count, 8, 8)?;
        vm::drop_pages(file.object);
    }
    // One part fails: the whole request does, after all parts have come back.
    bed.disk.behave(Manners { bad: vec![(194 * P..195 * P, libc::EIO)], ..Manners::default() });
    let pages = grab(&file, 0, 10);
    let outcome = getpages_async(&file, &pages, 0, 0);
    ensure!(outcome.error == libc::EIO, "{outcome:?}");
    release(&pages);
    Ok(())
}

fn behind_and_ahead(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(32768, &straight(8), 8 * 32768, true);
    let outcome = good(bed, &file, 10, 4, 3, 5)?;
    ensure!((outcome.behind, outcome.ahead) == (3, 5), "{outcome:?}");
    for i in 7..19 {
        let page = vm::resident(file.object, i).ok_or_else(|| anyhow!("page {i} was not read"))?;
        ensure!(!page.is_busy() && page.fields().valid == u8::MAX, "page {i} is not ready");
        check_bytes(bed, &file, i, &[page])?;
    }
    // A page that is there already ends the way in both directions.
    let outcome = good(bed, &file, 20, 2, 9, 9)?;
    ensure!((outcome.behind, outcome.ahead) == (1, 9), "{outcome:?}");
    vm::drop_pages(file.object);
    good(bed, &file, 30, 1, 0, 0)?;
    let outcome = good(bed, &file, 20, 2, 0, 60)?;
    ensure!(outcome.ahead == 8, "{outcome:?}");
    // Neither the file's begin nor its end is passed.
    vm::drop_pages(file.object);
    let outcome = good(bed, &file, 2, 1, 50, 0)?;
    ensure!(outcome.behind == 2, "{outcome:?}");
    let outcome = good(bed, &file, 62, 1, 0, 50)?;
    ensure!(outcome.ahead == 1, "{outcome:?}");
    Ok(())
}

fn maxphys(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(65536, &straight(100), 100 * 65536, true);
    let outcome = good(bed, &file, 512, 32, 1000, 1000)?;
    ensure!(outcome.behind + outcome.ahead + 32 == 256, "{outcome:?}");
    vm::drop_pages(file.object);
    let outcome = good(bed, &file, 0, 256, 10, 10)?;
    ensure!(outcome.behind == 0, "{outcome:?}");
    ensure!(counter("calls_original") == 0, "a plan that does not fit: {:?}", sysctl::counters());
    Ok(())
}

fn end_of_file(bed: &mut Bed, _: &Path) -> Result<()> {
    for size in [1, 511, 512, 513, 4095, 4096, 4097, 8191, 12289] {
        for unmapped in [true, false] {
            let file = bed.synthetic(4096, &straight(4), size, unmapped);
            let count = size.div_ceil(P);
            let pages = grab(&file, 0, count);
            let outcome = getpages_async(&file, &pages, 5, 5);
            ensure!(outcome.error == 0, "size {size}: {outcome:?}");
            check_bytes(bed, &file, 0, &pages)?;
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

fn error(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(32768, &straight(8), 8 * 32768, true);
    let at = 10 * 32768 + 12 * P;
    bed.disk.behave(Manners { bad: vec![(at..at + 512, libc::EIO)], ..Manners::default() });
    let pages = grab(&file, 10, 4);
    let outcome = getpages_async(&file, &pages, 3, 5);
    ensure!(outcome.code == 0 && outcome.error == libc::EIO, "{outcome:?}");
    ensure!(pages.iter().all(|page| page.fields().valid == 0), "a page of a failed read is valid");
    for i in (7..10).chain(14..19) {
        ensure!(
            vm::resident(file.object, i).is_none(),
            "page {i} was read around and is left behind"
        );
    }
    release(&pages);
    ensure!(counter("errors") == 1 && counter("retries") == 1, "{:?}", sysctl::counters());
    let said = crate::kernel::messages()
        .into_iter()
        .any(|m| m.contains("inode 4") && m.contains("errno 5"));
    ensure!(said, "no message that names inode and errno");
    Ok(())
}

fn error_only_ahead(bed: &mut Bed, _: &Path) -> Result<()> {
    for (unmapped, bad) in [(true, 15), (true, 8), (false, 15), (false, 8)] {
        let file = bed.synthetic(32768, &straight(8), 8 * 32768, unmapped);
        let at = 10 * 32768 + bad * P;
        bed.disk.behave(Manners { bad: vec![(at..at + 512, libc::EIO)], ..Manners::default() });
        good(bed, &file, 10, 4, 3, 5)?;
        ensure!(vm::resident(file.object, bad).is_none(), "a page that could not be read is there");
    }
    ensure!(counter("errors") == 0 && counter("retries") == 4, "{:?}", sysctl::counters());
    Ok(())
}

fn device_gone(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(32768, &straight(8), 8 * 32768, true);
    bed.disk.behave(Manners { gone: true, ..Manners::default() });
    let pages = grab(&file, 10, 4);
    let outcome = getpages_async(&file, &pages, 3, 5);
    ensure!(outcome.error == libc::ENXIO, "{outcome:?}");
    ensure!(counter("retries") == 0, "a device that is gone was asked again");
    release(&pages);
    Ok(())
}

fn short_transfer(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(32768, &straight(8), 8 * 32768, true);
    bed.disk.behave(Manners { short: true, ..Manners::default() });
    let pages = grab(&file, 10, 4);
    let outcome = getpages_async(&file, &pages, 0, 0);
    ensure!(
        outcome.error == libc::EIO,
        "bytes that were never read are taken for data: {outcome:?}"
    );
    release(&pages);
    Ok(())
}

fn odd_bmap(bed: &Bed, bmap: Bmap) -> Arc<File> {
    let map = (10..14).map(|b| Some(b * 64)).collect();
    let inode = Inode {
        path: "odd".into(),
        number: 5,
        size: 4 * 32768,
        map,
        indirect: Indirect::default(),
    };
    bed.open(inode, Mount { block: 32768, unmapped: true, flags: 0, bmap }, false)
}

fn no_bmap(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = odd_bmap(bed, Bmap::Unsupported);
    let before = ORIGINAL[0].load(Ordering::Relaxed);
    good(bed, &file, 3, 7, 2, 2)?;
    ensure!(
        ORIGINAL[0].load(Ordering::Relaxed) == before + 1 && counter("calls_emulated") == 1,
        "not emulated"
    );
    Ok(())
}

fn bmap_fails(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = odd_bmap(bed, Bmap::Fails);
    let pages = grab(&file, 3, 7);
    let outcome = getpages_async(&file, &pages, 2, 2);
    ensure!(outcome.code == sys::VM_PAGER_ERROR && outcome.error == libc::EIO, "{outcome:?}");
    ensure!(
        counter("failed") == 1 && bed.disk.transfers.load(Ordering::Relaxed) == 0,
        "something was read"
    );
    release(&pages);
    Ok(())
}

fn no_memory(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(32768, &straight(8), 8 * 32768, true);
    let pages = grab(&file, 10, 4);
    vm::NO_MEMORY.store(true, Ordering::Relaxed);
    let outcome = getpages_async(&file, &pages, 3, 5);
    ensure!(outcome == Outcome { code: 0, error: 0, behind: 0, ahead: 0 }, "{outcome:?}");
    check_bytes(bed, &file, 10, &pages)?;
    release(&pages);
    Ok(())
}

fn small_blocks(bed: &mut Bed, _: &Path) -> Result<()> {
    for block in [512, 1024, 2048] {
        for unmapped in [true, false] {
            // Every kind of neighbour: joined, apart, a hole.
            let map: Vec<_> = (0..64u64).map(|i| (i % 5 != 2).then_some(400 + i + i / 3)).collect();
            let file = bed.synthetic(block, &map, 64 * block - 300, unmapped);
            let count = file.inode.size.div_ceil(P);
            good(bed, &file, 0, count, 4, 4)?;
            vm::drop_pages(file.object);
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
            check_bytes(bed, &file, 2, &pages[2..])?;
            release(&pages);
        }
    }
    Ok(())
}

fn doomed(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(32768, &straight(8), 8 * 32768, true);
    let pages = grab(&file, 10, 4);
    // SAFETY: the scenario's own vnode.
    unsafe {
        let mount = std::mem::replace(&mut (*file.vnode).v_mount, std::ptr::null_mut());
        (*file.vnode).v_irflag = 1; // VIRF_DOOMED
        let outcome = getpages_async(&file, &pages, 3, 5);
        ensure!(outcome.code == sys::VM_PAGER_BAD && outcome.error != 0, "{outcome:?}");
        (*file.vnode).v_mount = mount;
    }
    release(&pages);
    Ok(())
}

fn large_sector(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(32768, &straight(8), 8 * 32768, true);
    // SAFETY: no buf is in flight.
    unsafe { (*bed.disk.bufobj).bo_bsize = 8192 };
    let before = ORIGINAL[1].load(Ordering::Relaxed);
    good(bed, &file, 10, 4, 3, 5)?;
    ensure!(ORIGINAL[1].load(Ordering::Relaxed) == before + 1, "not handed over to the original");
    Ok(())
}

fn no_iodone(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(32768, &straight(8), 8 * 32768, true);
    let pages = grab(&file, 10, 4);
    let locked = VnodeLocked::new(file.vnode, false, "vm_fault");
    let outcome = getpages(&file, &pages, 3, 5, true);
    drop(locked);
    ensure!(outcome.code == 0 && (outcome.behind, outcome.ahead) == (3, 5), "{outcome:?}");
    check_bytes(bed, &file, 10, &pages)?;
    pages.iter().for_each(|page| page.unbusy("test"));
    release(&pages);
    Ok(())
}

fn sync(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(32768, &straight(8), 8 * 32768, true);
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
    check_bytes(bed, &file, 8, &pages)?;
    let_go(pages);
    bed.disk.behave(Manners { bad: vec![(0..DISK as u64, libc::EIO)], ..Manners::default() });
    let (code, pages) = sync_call(24, 4)?;
    ensure!(code == sys::VM_PAGER_ERROR, "code {code}");
    let_go(pages);
    bed.disk.behave(Manners::default());
    ensure!(sysctl::write("vfs.asyncpager.sync", false) == 0, "sysctl");
    let_go(sync_call(40, 0)?.1);
    ensure!(counter("calls_sync") == 2, "still taken over");
    Ok(())
}

fn mapped(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(32768, &straight(8), 7 * 32768 + 5000, false);
    good(bed, &file, 10, 4, 3, 5)?;
    vm::drop_pages(file.object);
    good(bed, &file, 50, 8, 3, 5)?;
    ensure!(vm::MAPPED.load(Ordering::Relaxed) == 0, "pages are left mapped");
    Ok(())
}

fn disabled(bed: &mut Bed, _: &Path) -> Result<()> {
    let file = bed.synthetic(32768, &straight(8), 8 * 32768, true);
    ensure!(sysctl::write("vfs.asyncpager.enabled", false) == 0, "sysctl");
    good(bed, &file, 0, 4, 0, 0)?;
    ensure!(counter("calls_async") == 0 && counter("bufs") == 0, "still at work");
    ensure!(sysctl::write("vfs.asyncpager.enabled", true) == 0, "sysctl");
    good(bed, &file, 10, 4, 0, 0)?;
    ensure!(counter("calls_async") == 1, "not at work again");
    Ok(())
}

fn tunables(bed: &mut Bed, ko: &Path) -> Result<()> {
    let reload = |bed: &mut Bed, enabled: &str| -> Result<()> {
        if let Some(module) = bed.module.take() {
            module.unload().map_err(|errno| anyhow!("kldunload, errno {errno}"))?;
        }
        let tunables = vec![("vfs.asyncpager.enabled".to_string(), enabled.to_string())];
        bed.module = Some(Module::load(ko, &Options { tunables, ..Options::default() })?);
        Ok(())
    };
    for (value, served) in [("0", 0), ("1", 1), ("many", 1)] {
        reload(bed, value)?;
        let file = bed.synthetic(32768, &straight(2), 2 * 32768, true);
        good(bed, &file, 0, 4, 0, 0)?;
        ensure!(counter("calls_async") == served, "enabled={value}: {:?}", sysctl::counters());
    }
    Ok(())
}

/// Threads that send random ranges of their files for as long as `during`
/// runs, which sees how many requests were served and how many have failed.
/// Bytes that were sent are always right.
fn senders<T>(
    bed: &Bed,
    files: &[Arc<File>],
    during: impl FnOnce(&AtomicU64, &AtomicU64) -> T,
) -> Result<(u64, u64, T)> {
    let stop = AtomicBool::new(false);
    let (sent, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|n| {
                let (stop, sent, failed) = (&stop, &sent, &failed);
                scope.spawn(move || -> Result<()> {
                    cpu::attach();
                    let mut rng = fastrand::Rng::with_seed(n);
                    while !stop.load(Ordering::Relaxed) {
                        let file = &files[rng.usize(..files.len())];
                        let offset = rng.u64(..file.inode.size);
                        let mut bytes = Vec::new();
                        let result = sendfile::sendfile(
                            file,
                            offset,
                            rng.u64(1..200_000),
                            rng.i32(0..40),
                            true,
                            |b| bytes.extend_from_slice(b),
                        );
                        match result {
                            Ok(()) => sent.fetch_add(1, Ordering::Relaxed),
                            Err(_) => failed.fetch_add(1, Ordering::Relaxed),
                        };
                        for (i, byte) in bytes.iter().enumerate() {
                            let at = offset + i as u64;
                            ensure!(*byte == bed.byte(file, at), "byte {at} is wrong");
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        let result = during(&sent, &failed);
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().map_err(|_| anyhow!("a sender panicked"))??;
        }
        Ok((sent.load(Ordering::Relaxed), failed.load(Ordering::Relaxed), result))
    })
}

fn busy_files(bed: &Bed) -> Vec<Arc<File>> {
    let scattered: Vec<_> = (0..100).map(|i| (i % 9 != 4).then_some(i * 7 % 400)).collect();
    // vnode_pager_haspage() takes a page whose first block is a hole for one
    // that is nothing else, so sendfile sends such a page as zeros, with any pager.
    let small: Vec<_> =
        (0..100).map(|i| (i % 4 == 0 || i % 9 != 4).then_some(i * 7 % 400)).collect();
    vec![
        bed.synthetic(32768, &straight(40), 40 * 32768 - 700, true),
        bed.synthetic(4096, &scattered, 99 * P + 77, true),
        bed.synthetic(32768, &straight(40), 40 * 32768 - 700, false),
        bed.synthetic(1024, &small, 99 * 1024 + 77, true),
    ]
}

fn unload_under_load(bed: &mut Bed, ko: &Path) -> Result<()> {
    let (files, own) = (busy_files(bed), bed.synthetic(32768, &straight(4), 4 * 32768, true));
    let [quick, slow] = [3, 40].map(|ms| Duration::from_millis(ms).into());
    bed.disk.behave(Manners { latency: quick, ..Manners::default() });
    let module = std::sync::Mutex::new(bed.module.take());
    let (sent, failed, done) = senders(bed, &files, |sent, failed| -> Result<()> {
        // However slow the host is, there is some load.
        let quiet = || sent.load(Ordering::Relaxed) + failed.load(Ordering::Relaxed) <= 50;
        for _ in (0..).take_while(|round| *round < 15 || *round < 500 && quiet()) {
            std::thread::sleep(Duration::from_millis(40));
            // Whatever the senders are at, one buf is in flight for long.
            vm::drop_pages(own.object);
            bed.disk.behave(Manners { latency: slow, ..Manners::default() });
            let sending = Sending::begin(&own, 0, 9 * P, 0);
            bed.disk.behave(Manners { latency: quick, ..Manners::default() });
            let mut module = module.lock().unwrap();
            if let Some(module) = module.take() {
                module.unload().map_err(|errno| anyhow!("kldunload under load, errno {errno}"))?;
            }
            *module = Some(Module::load(ko, &Options::default())?);
            let sent = sending.map(|sending| sending.finish(true, |_| ()));
            ensure!(sent == Some(Ok(())), "in flight during kldunload: {sent:?}");
        }
        Ok(())
    })?;
    done?;
    bed.module = module.into_inner().unwrap();
    ensure!(sent > 50 && failed == 0, "{sent} requests sent, {failed} failed");
    Ok(())
}

fn replaced_since(bed: &mut Bed, _: &Path) -> Result<()> {
    let [_, two] = vectors();
    // SAFETY: the scenario is the only user of the vectors.
    unsafe {
        unsafe extern "C" fn other(_: *mut sys::vop_getpages_async_args) -> i32 {
            sys::VM_PAGER_ERROR
        }
        let ours = (*two).vop_getpages_async.replace(other);
        let refused = bed.module.as_ref().map(Module::unload);
        ensure!(refused == Some(Err(libc::EBUSY)), "{refused:?}");
        (*two).vop_getpages_async = ours;
    }
    // Everything is at work again, in both vectors.
    let file = bed.synthetic(32768, &straight(8), 8 * 32768, true);
    good(bed, &file, 0, 4, 0, 0)?;
    let file = odd_bmap(bed, Bmap::Good);
    good(bed, &file, 0, 4, 0, 0)?;
    ensure!(counter("calls_async") == 2, "not at work after a refused unload");
    Ok(())
}

fn parallel(bed: &mut Bed, _: &Path) -> Result<()> {
    let files = busy_files(bed);
    bed.disk.behave(Manners {
        latency: Duration::from_micros(300).into(),
        fail_percent: 10,
        bad: vec![(2 << 20..(2 << 20) + 512, libc::EIO)],
        ..Manners::default()
    });
    let (sent, failed, ()) = senders(bed, &files, |sent, failed| {
        let begin = Instant::now();
        let seconds = |n| begin.elapsed() >= Duration::from_secs(n);
        let few = || sent.load(Ordering::Relaxed) <= 100 || failed.load(Ordering::Relaxed) == 0;
        while !seconds(3) || few() && !seconds(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
    })?;
    ensure!(sent > 100 && failed > 0, "{sent} requests sent, {failed} failed");
    Ok(())
}

/// The file, its mount and its memory go while bufs are in flight, and whoever
/// has been told of the end of his request must not be waited for.
fn forced_unmount(bed: &mut Bed, _: &Path) -> Result<()> {
    bed.disk.behave(Manners { latency: Duration::from_millis(4).into(), ..Manners::default() });
    let mut file = bed.synthetic(32768, &straight(40), 40 * 32768 - 700, true);
    for round in 0..20 {
        let first = round * 16 * P;
        // Until the file is gone, or for ever in a module that waits for this.
        sendfile::LINGER.store(5_000_000, Ordering::Relaxed);
        let sending = Sending::begin(&file, first, 9 * P, 20)
            .ok_or_else(|| anyhow!("refused before the unmount"))?;
        let new = bed.remount(&file, round % 2 == 0);
        ensure!(Sending::begin(&file, 0, P, 0).is_none(), "a file that is gone is sent");
        let mut got = Vec::new();
        let sent = sending.finish(false, |bytes| got.extend_from_slice(bytes));
        let want = (first..first + 9 * P).map(|at| bed.byte(&new, at));
        ensure!(sent == Ok(()) && want.eq(got.iter().copied()), "round {round}: {sent:?}");
        sendfile::linger_no_more();
        file = new;
    }
    Ok(())
}

/// The swap pager's emulation: its answers, and what iodone is told of them.
fn swap_pager(_: &mut Bed, _: &Path) -> Result<()> {
    let object = vm::new_swap_object(8);
    for i in 0..4 {
        swap_out(object, i, Block::Data(vec![i as u8 + 1; PAGE]));
    }
    swap_out(object, 4, Block::Bad);
    for (first, count, code, error) in [
        (0, 3, sys::VM_PAGER_OK, 0),
        (3, 2, sys::VM_PAGER_ERROR, libc::EIO),
        // What the second page lacks is not a hole of the first.
        (2, 4, sys::VM_PAGER_ERROR, libc::EIO),
        (6, 1, sys::VM_PAGER_FAIL, libc::EINVAL),
    ] {
        let pages: Vec<Page> = (first..first + count).map(|i| vm::grab(object, i)).collect();
        let outcome = sendfile::swap_getpages(object, &pages);
        ensure!((outcome.code, outcome.error) == (code, error), "pages from {first}: {outcome:?}");
        for (i, page) in (first..).zip(&pages) {
            let there = i < 4 && code != sys::VM_PAGER_FAIL;
            ensure!(there == (page.fields().valid == u8::MAX), "page {i}: {outcome:?}");
            // SAFETY: a wired page's own memory.
            let right = !there || unsafe { *page.data().add(PAGE - 1) } == i as u8 + 1;
            ensure!(right, "page {i} is wrong");
        }
        pages.iter().for_each(|page| vm::unwire(*page, false));
    }
    swap_free(object);
    vm::destroy(object);
    Ok(())
}

/// The models of what the module replaces keep the same promises, where 14.2
/// does not forget its caller.
fn stock_model(bed: &mut Bed, _: &Path) -> Result<()> {
    ensure!(sysctl::write("vfs.asyncpager.enabled", false) == 0, "sysctl");
    for emulated in [false, true] {
        EMULATED.store(emulated, Ordering::Relaxed);
        bed.disk
            .behave(Manners { latency: Duration::from_micros(300).into(), ..Manners::default() });
        let file = bed.synthetic(32768, &straight(8), 8 * 32768 - 700, true);
        let outcome = good(bed, &file, 10, 4, 3, 5)?;
        let around = if emulated { (0, 0) } else { (3, 5) };
        ensure!((outcome.behind, outcome.ahead) == around, "{outcome:?}");
        good(bed, &file, 60, 4, 0, 9)?;
        let holes = bed.synthetic(32768, &[None, Some(7), None], 3 * 32768, true);
        good(bed, &holes, 3, 1, 2, 2)?;
        good(bed, &holes, 8, 8, 2, 2)?;
        let small = bed.synthetic(1024, &[Some(3), None, Some(9), Some(1), Some(0)], 5000, true);
        good(bed, &small, 0, 2, 0, 0)?;
        bed.disk.behave(Manners { bad: vec![(0..DISK as u64, libc::EIO)], ..Manners::default() });
        let pages = grab(&file, 20, 4);
        let outcome = getpages_async(&file, &pages, 2, 2);
        ensure!(outcome.error != 0, "{outcome:?}");
        ensure!(vm::resident(file.object, 24).is_none(), "a page read ahead is left behind");
        release(&pages);
    }
    EMULATED.store(false, Ordering::Relaxed);
    ensure!(counter("calls_async") == 0, "the module was at work");
    Ok(())
}

/// No call waits for the data that it asks for, whoever is in front of it.
fn never_waits(bed: &mut Bed, _: &Path) -> Result<()> {
    bed.disk.behave(Manners { latency: Duration::from_millis(20).into(), ..Manners::default() });
    let file = bed.synthetic(32768, &straight(40), 40 * 32768 - 700, true);
    let waited = sendfile::CALLS_WAITED.load(Ordering::Relaxed);
    let all: Vec<_> =
        (0..12).filter_map(|i| Sending::begin(&file, i * 100_000, 20_000, 8)).collect();
    ensure!(all.len() == 12, "{} of 12 have begun", all.len());
    let waited = sendfile::CALLS_WAITED.load(Ordering::Relaxed) - waited;
    ensure!(waited == 0, "{waited} calls waited for the disk");
    for (i, sending) in (0..).zip(all) {
        let mut got = Vec::new();
        let sent = sending.finish(false, |bytes| got.extend_from_slice(bytes));
        let want = (i * 100_000..i * 100_000 + 20_000).map(|at| bed.byte(&file, at));
        ensure!(sent == Ok(()) && want.eq(got.iter().copied()), "request {i}: {sent:?}");
    }
    Ok(())
}
