// SPDX-License-Identifier: BSD-2-Clause
//! Checks that cannot be made when the module is loaded are made at first use.

use std::{path::Path, ptr, sync::Arc, time::Duration};

use anyhow::{Result, anyhow, ensure};
use asyncpager::kpi::sys;

use crate::{
    checks::sleep,
    disk::behaviour::Behaviour,
    ffs::file::File,
    kernel::sysctl::{self, ahead, counter},
    kld::{module::Module, options::Options},
    scenarios::{
        fixture::{Fixture, Run},
        steps::{BLOCK, begin_forgotten, cold, contiguous, finish, send, slow},
    },
};

/// All of them, by name.
pub const ALL: &[(&str, Run)] =
    &[("loaded-at-boot", loaded_at_boot), ("structures-at-use", structures_at_use)];

/// The loader makes no system call and finds no filesystem mounted: sendfile(2)
/// waits for a block map until it has been recognized once.
fn loaded_at_boot(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    fixture
        .disk
        .behave(Behaviour { latency: Duration::from_millis(5).into(), ..Behaviour::default() });
    for boot in [false, true] {
        if let Some(module) = fixture.module.take() {
            module.unload().map_err(|errno| anyhow!("kldunload, errno {errno}"))?;
        }
        fixture.module = Some(Module::load(ko, &Options { boot, ..Options::default() })?);
        let file = contiguous(fixture);
        let waited = sleep::waited();
        let sending = begin_forgotten(&file, 20 * BLOCK, BLOCK)?;
        let waited = sleep::waited() > waited;
        finish(fixture, &file, sending, 20 * BLOCK, BLOCK)?;
        ensure!(waited == boot, "boot {boot}: sendfile waited: {waited}");
        ensure!((counter("maps_read") == 0) == boot, "boot {boot}: {:?}", sysctl::counters());
        cold(fixture, &file, 40 * BLOCK, BLOCK)?;
    }
    Ok(())
}

/// When the structures of a file differ from the headers, the filesystem's own VOPs
/// answer for it.
fn structures_at_use(fixture: &mut Fixture, _: &Path) -> Result<()> {
    type Break = fn(&mut sys::ufsmount, &mut sys::fs, &mut sys::inode);
    let breaks: [(&str, Break); 5] = [
        ("um_mountp", |ump, _, _| ump.um_mountp = ptr::null_mut()),
        ("um_nindir", |ump, _, _| ump.um_nindir /= 2),
        ("um_rdonly", |ump, _, _| ump.um_rdonly = None),
        ("fs_magic", |_, fs, _| fs.fs_magic = 0),
        ("i_vnode", |_, _, ip| ip.i_vnode = ptr::null_mut()),
    ];
    slow(fixture, 5)?;
    let file = contiguous(fixture);
    cold(fixture, &file, 20 * BLOCK, BLOCK)?;
    ensure!(counter("maps_read") > 0, "no map is read: {:?}", sysctl::counters());
    for (field, break_it) in breaks {
        let file: Arc<File> = contiguous(fixture);
        // SAFETY: a live file that no other thread uses now.
        unsafe {
            let ump = (*(*file.vnode).v_mount).mnt_data.cast::<sys::ufsmount>();
            break_it(&mut *ump, &mut *(*ump).um_fs, &mut *(*file.vnode).v_data.cast());
        }
        let before = (counter("maps_read"), ahead("guessed"));
        let sending = begin_forgotten(&file, 20 * BLOCK, BLOCK)?;
        finish(fixture, &file, sending, 20 * BLOCK, BLOCK)?;
        send(fixture, &file, 0, 4 * BLOCK, 0)?;
        let after = (counter("maps_read"), ahead("guessed"));
        ensure!(before == after, "{field} is not right, and the map is read: {after:?}");
    }
    Ok(())
}
