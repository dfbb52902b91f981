// SPDX-License-Identifier: BSD-2-Clause
//! Files that the original VOPs serve, or the module in another way; switches.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use asyncpager::kpi::sys;

use crate::{
    consumers::sendfile::{self, getpages_async},
    disk::{behaviour::Behaviour, indirect::Indirect, ufs::Inode},
    ffs::{
        file::{Bmap, File, Mount},
        vnodeops::{EMULATED, ORIGINAL, vectors},
    },
    host::memory::PAGE,
    kernel::{
        resident::{self, Page},
        sysctl::{self, counter},
        vm_object,
        vm_pager::{Block, swap_free, swap_out},
    },
    kld::{module::Module, options::Options},
    scenarios::{
        fixture::{Fixture, Run},
        steps::{DISK, good, grab, release, straight},
    },
};

/// All of them, by name.
pub const ALL: &[(&str, Run)] = &[
    ("no-bmap", no_bmap),
    ("bmap-fails", bmap_fails),
    ("doomed", doomed),
    ("large-sector", large_sector),
    ("disabled", disabled),
    ("tunables", tunables),
    ("replaced-since", replaced_since),
    ("swap-pager", swap_pager),
    ("stock-model", stock_model),
];

fn odd_bmap(fixture: &Fixture, bmap: Bmap) -> Arc<File> {
    let map = (10..14).map(|b| Some(b * 64)).collect();
    let inode = Inode {
        path: "odd".into(),
        number: 5,
        size: 4 * 32768,
        map,
        indirect: Indirect::default(),
    };
    fixture.open(inode, Mount { block: 32768, unmapped: true, flags: 0, bmap }, false)
}

fn no_bmap(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = odd_bmap(fixture, Bmap::Unsupported);
    let before = ORIGINAL[0].load(Ordering::Relaxed);
    good(fixture, &file, 3, 7, 2, 2)?;
    ensure!(
        ORIGINAL[0].load(Ordering::Relaxed) == before + 1 && counter("calls_emulated") == 1,
        "not emulated"
    );
    Ok(())
}

fn bmap_fails(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = odd_bmap(fixture, Bmap::Fails);
    let pages = grab(&file, 3, 7);
    let outcome = getpages_async(&file, &pages, 2, 2);
    ensure!(outcome.code == sys::VM_PAGER_ERROR && outcome.error == libc::EIO, "{outcome:?}");
    ensure!(
        counter("failed") == 1 && fixture.disk.transfers.load(Ordering::Relaxed) == 0,
        "something was read"
    );
    release(&pages);
    Ok(())
}

fn doomed(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(32768, &straight(8), 8 * 32768, true);
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

fn large_sector(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(32768, &straight(8), 8 * 32768, true);
    // SAFETY: no buf is in flight.
    unsafe { (*fixture.disk.bufobj).bo_bsize = 8192 };
    let before = ORIGINAL[1].load(Ordering::Relaxed);
    good(fixture, &file, 10, 4, 3, 5)?;
    ensure!(ORIGINAL[1].load(Ordering::Relaxed) == before + 1, "not handed over to the original");
    Ok(())
}

fn disabled(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(32768, &straight(8), 8 * 32768, true);
    ensure!(sysctl::write("vfs.asyncpager.enabled", false) == 0, "sysctl");
    good(fixture, &file, 0, 4, 0, 0)?;
    ensure!(counter("calls_async") == 0 && counter("bufs") == 0, "still at work");
    ensure!(sysctl::write("vfs.asyncpager.enabled", true) == 0, "sysctl");
    good(fixture, &file, 10, 4, 0, 0)?;
    ensure!(counter("calls_async") == 1, "not at work again");
    Ok(())
}

fn tunables(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    let reload = |fixture: &mut Fixture, enabled: &str| -> Result<()> {
        if let Some(module) = fixture.module.take() {
            module.unload().map_err(|errno| anyhow!("kldunload, errno {errno}"))?;
        }
        let tunables = vec![("vfs.asyncpager.enabled".to_string(), enabled.to_string())];
        fixture.module = Some(Module::load(ko, &Options { tunables, ..Options::default() })?);
        Ok(())
    };
    for (value, served) in [("0", 0), ("1", 1), ("many", 1)] {
        reload(fixture, value)?;
        let file = fixture.synthetic(32768, &straight(2), 2 * 32768, true);
        good(fixture, &file, 0, 4, 0, 0)?;
        ensure!(counter("calls_async") == served, "enabled={value}: {:?}", sysctl::counters());
    }
    Ok(())
}

fn replaced_since(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let [_, two] = vectors();
    // SAFETY: the scenario is the only user of the vectors.
    unsafe {
        unsafe extern "C" fn other(_: *mut sys::vop_getpages_async_args) -> i32 {
            sys::VM_PAGER_ERROR
        }
        let ours = (*two).vop_getpages_async.replace(other);
        let refused = fixture.module.as_ref().map(Module::unload);
        ensure!(refused == Some(Err(libc::EBUSY)), "{refused:?}");
        (*two).vop_getpages_async = ours;
    }
    // Everything is at work again, in both vectors.
    let file = fixture.synthetic(32768, &straight(8), 8 * 32768, true);
    good(fixture, &file, 0, 4, 0, 0)?;
    let file = odd_bmap(fixture, Bmap::Good);
    good(fixture, &file, 0, 4, 0, 0)?;
    ensure!(counter("calls_async") == 2, "not at work after a refused unload");
    Ok(())
}

/// The swap pager's emulation: its answers, and what iodone is told of them.
fn swap_pager(_: &mut Fixture, _: &Path) -> Result<()> {
    let object = vm_object::new_swap_object(8);
    for i in 0..4 {
        swap_out(object, i, Block::Data(vec![i as u8 + 1; PAGE]));
    }
    swap_out(object, 4, Block::Bad);
    for (first, count, code, error) in [
        (0, 3, sys::VM_PAGER_OK, 0),
        (3, 2, sys::VM_PAGER_ERROR, libc::EIO),
        // A missing second page is not a hole of the first.
        (2, 4, sys::VM_PAGER_ERROR, libc::EIO),
        (6, 1, sys::VM_PAGER_FAIL, libc::EINVAL),
    ] {
        let pages: Vec<Page> = (first..first + count).map(|i| resident::grab(object, i)).collect();
        let outcome = sendfile::swap_getpages(object, &pages);
        ensure!((outcome.code, outcome.error) == (code, error), "pages from {first}: {outcome:?}");
        for (i, page) in (first..).zip(&pages) {
            let there = i < 4 && code != sys::VM_PAGER_FAIL;
            ensure!(there == (page.fields().valid == u8::MAX), "page {i}: {outcome:?}");
            // SAFETY: a wired page's own memory.
            let right = !there || unsafe { *page.data().add(PAGE - 1) } == i as u8 + 1;
            ensure!(right, "page {i} is wrong");
        }
        pages.iter().for_each(|page| resident::unwire(*page, false));
    }
    swap_free(object);
    vm_object::destroy(object);
    Ok(())
}

/// The models of stock 14.2 keep the same contract, except where 14.2 forgets its
/// caller.
fn stock_model(fixture: &mut Fixture, _: &Path) -> Result<()> {
    ensure!(sysctl::write("vfs.asyncpager.enabled", false) == 0, "sysctl");
    for emulated in [false, true] {
        EMULATED.store(emulated, Ordering::Relaxed);
        fixture.disk.behave(Behaviour {
            latency: Duration::from_micros(300).into(),
            ..Behaviour::default()
        });
        let file = fixture.synthetic(32768, &straight(8), 8 * 32768 - 700, true);
        let outcome = good(fixture, &file, 10, 4, 3, 5)?;
        let around = if emulated { (0, 0) } else { (3, 5) };
        ensure!((outcome.behind, outcome.ahead) == around, "{outcome:?}");
        good(fixture, &file, 60, 4, 0, 9)?;
        let holes = fixture.synthetic(32768, &[None, Some(7), None], 3 * 32768, true);
        good(fixture, &holes, 3, 1, 2, 2)?;
        good(fixture, &holes, 8, 8, 2, 2)?;
        let small =
            fixture.synthetic(1024, &[Some(3), None, Some(9), Some(1), Some(0)], 5000, true);
        good(fixture, &small, 0, 2, 0, 0)?;
        fixture
            .disk
            .behave(Behaviour { bad: vec![(0..DISK as u64, libc::EIO)], ..Behaviour::default() });
        let pages = grab(&file, 20, 4);
        let outcome = getpages_async(&file, &pages, 2, 2);
        ensure!(outcome.error != 0, "{outcome:?}");
        ensure!(resident::resident(file.object, 24).is_none(), "a page read ahead is left behind");
        release(&pages);
    }
    EMULATED.store(false, Ordering::Relaxed);
    ensure!(counter("calls_async") == 0, "the module was at work");
    Ok(())
}
