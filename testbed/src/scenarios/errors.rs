// SPDX-License-Identifier: BSD-2-Clause
//! Disks that fail, and memory that is short.

use std::{path::Path, sync::atomic::Ordering};

use anyhow::{Result, ensure};

use crate::{
    consumers::sendfile::{Outcome, getpages_async},
    disk::behaviour::Behaviour,
    kernel::{
        resident, shortage,
        sysctl::{self, counter},
        systm,
    },
    scenarios::{
        fixture::{Fixture, Run},
        steps::{P, check_bytes, good, grab, release, straight},
    },
};

/// All of them, by name.
pub const ALL: &[(&str, Run)] = &[
    ("error", error),
    ("error-only-ahead", error_only_ahead),
    ("device-gone", device_gone),
    ("short-transfer", short_transfer),
    ("no-memory", no_memory),
];

fn error(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(32768, &straight(8), 8 * 32768, true);
    let at = 10 * 32768 + 12 * P;
    fixture.disk.behave(Behaviour { bad: vec![(at..at + 512, libc::EIO)], ..Behaviour::default() });
    let pages = grab(&file, 10, 4);
    let outcome = getpages_async(&file, &pages, 3, 5);
    ensure!(outcome.code == 0 && outcome.error == libc::EIO, "{outcome:?}");
    ensure!(pages.iter().all(|page| page.fields().valid == 0), "a page of a failed read is valid");
    for i in (7..10).chain(14..19) {
        ensure!(
            resident::resident(file.object, i).is_none(),
            "page {i} was read around and is left behind"
        );
    }
    release(&pages);
    ensure!(counter("errors") == 1 && counter("retries") == 1, "{:?}", sysctl::counters());
    let said =
        systm::messages().into_iter().any(|m| m.contains("inode 4") && m.contains("errno 5"));
    ensure!(said, "no message that names inode and errno");
    Ok(())
}

fn error_only_ahead(fixture: &mut Fixture, _: &Path) -> Result<()> {
    for (unmapped, bad) in [(true, 15), (true, 8), (false, 15), (false, 8)] {
        let file = fixture.synthetic(32768, &straight(8), 8 * 32768, unmapped);
        let at = 10 * 32768 + bad * P;
        fixture
            .disk
            .behave(Behaviour { bad: vec![(at..at + 512, libc::EIO)], ..Behaviour::default() });
        good(fixture, &file, 10, 4, 3, 5)?;
        ensure!(
            resident::resident(file.object, bad).is_none(),
            "a page that could not be read is there"
        );
    }
    ensure!(counter("errors") == 0 && counter("retries") == 4, "{:?}", sysctl::counters());
    Ok(())
}

fn device_gone(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(32768, &straight(8), 8 * 32768, true);
    fixture.disk.behave(Behaviour { gone: true, ..Behaviour::default() });
    let pages = grab(&file, 10, 4);
    let outcome = getpages_async(&file, &pages, 3, 5);
    ensure!(outcome.error == libc::ENXIO, "{outcome:?}");
    ensure!(counter("retries") == 0, "a device that is gone was asked again");
    release(&pages);
    Ok(())
}

fn short_transfer(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(32768, &straight(8), 8 * 32768, true);
    fixture.disk.behave(Behaviour { short: true, ..Behaviour::default() });
    let pages = grab(&file, 10, 4);
    let outcome = getpages_async(&file, &pages, 0, 0);
    ensure!(
        outcome.error == libc::EIO,
        "bytes that were never read are taken for data: {outcome:?}"
    );
    release(&pages);
    Ok(())
}

fn no_memory(fixture: &mut Fixture, _: &Path) -> Result<()> {
    let file = fixture.synthetic(32768, &straight(8), 8 * 32768, true);
    let pages = grab(&file, 10, 4);
    shortage::NO_MEMORY.store(true, Ordering::Relaxed);
    let outcome = getpages_async(&file, &pages, 3, 5);
    ensure!(outcome == Outcome { code: 0, error: 0, behind: 0, ahead: 0 }, "{outcome:?}");
    check_bytes(fixture, &file, 10, &pages)?;
    release(&pages);
    Ok(())
}
