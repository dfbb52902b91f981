// SPDX-License-Identifier: BSD-2-Clause
//! Speculative reads: pages that are read before the block map tells where they are.

use std::{ops::Range, path::Path, sync::Arc, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    disk::{behaviour::Behaviour, indirect::DIRECT},
    ffs::file::File,
    host::clock,
    kernel::{
        resident,
        sysctl::{self, ahead},
        systm, taskqueue, vm_object,
        vnode::VnodeLocked,
    },
    scenarios::{
        fixture::{Fixture, Run},
        steps::{BLOCK, P, ready, send, settle, slow, wait_until},
    },
};

/// All of them, by name.
pub const ALL: &[(&str, Run)] = &[
    ("guess", guess),
    ("guess-late", guess_late),
    ("guess-wrong", guess_wrong),
    ("guess-luck", guess_luck),
    ("guess-error", guess_error),
    ("guess-barred", guess_barred),
    ("guess-hung", guess_hung),
    ("guess-verified", guess_verified),
    ("guess-end", guess_end),
    ("guess-off", guess_off),
];

/// Pages of the blocks whose places are in the inode.
pub const FIRST: u64 = DIRECT * BLOCK / P;

/// The first page behind the gap that is left for the consumer.
pub const BEHIND: u64 = FIRST + 40;

/// A page that is surely read with the map.
const LAST: u64 = FIRST + 400;

/// Where the indirect block of a straight file lies.
pub const MAP: Range<u64> = (AT + DIRECT) * BLOCK..(AT + DIRECT + 1) * BLOCK;

/// Blocks of the files here.
const BLOCKS: u64 = 200;
const SIZE: u64 = BLOCKS * BLOCK - 700;

/// Where on the disk they begin.
const AT: u64 = 10;

/// A file whose indirect block is at block `indirect` of the disk, and what
/// that leads to at block `rest`.
fn file(fixture: &Fixture, indirect: u64, rest: u64) -> Arc<File> {
    let map: Vec<_> = (AT..AT + DIRECT).chain(rest..rest + BLOCKS - DIRECT).map(Some).collect();
    let mut top = ((indirect + 1) * BLOCK) as usize;
    fixture.laid_out("guess", BLOCK, &map, SIZE, true, &mut top)
}

/// As FFS lays it out.
pub fn straight(fixture: &Fixture) -> Arc<File> {
    file(fixture, AT + DIRECT, AT + DIRECT + 1)
}

/// Somewhere else.
fn crooked(fixture: &Fixture) -> Arc<File> {
    file(fixture, AT + DIRECT, AT + DIRECT + 2)
}

/// Send the beginning of a file, and wait for all that comes of it.
pub fn begin(fixture: &Fixture, file: &File) -> Result<()> {
    send(fixture, file, 0, 16 * P, 100)?;
    settle()?;
    wait_until("no page is in flight", || !vm_object::is_paging(file.object))
}

fn busied(file: &File, pindex: u64) -> bool {
    resident::resident(file.object, pindex).is_some_and(|page| page.is_busy())
}

/// Sends the beginning of a file while reads of the range `late` hang.
fn begin_late(fixture: &Fixture, file: &File, late: Range<u64>) -> Result<()> {
    let slow = Some((late, Duration::from_secs(600)));
    fixture.disk.behave(Behaviour { slow, ..behaviour() });
    taskqueue::hold(true);
    send(fixture, file, 0, 16 * P, 100)?;
    taskqueue::hold(false);
    wait_until("what lies behind is read", || (BEHIND..=LAST).all(|page| busied(file, page)))
}

pub fn behaviour() -> Behaviour {
    Behaviour { latency: Duration::from_millis(5).into(), ..Behaviour::default() }
}

/// Let everything come, and find it there.
fn there(fixture: &Fixture, file: &File) -> Result<()> {
    fixture.disk.behave(behaviour());
    fixture.disk.complete_now();
    settle()?;
    let there = || (BEHIND..=LAST).all(|pindex| ready(file, pindex));
    wait_until("it is there", there)?;
    send(fixture, file, 0, SIZE, 0)?;
    settle()?;
    ensure!(ahead("mistaken") == 0, "{:?}", sysctl::counters());
    Ok(())
}

/// The blocks behind the first indirect block are read together with it, and may
/// complete before it.
fn guess(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    let file = straight(fixture);
    begin_late(fixture, &file, MAP)?;
    wait_until("only the map is missing", || fixture.disk.waiting() == 1)?;
    there(fixture, &file)
}

/// A correct speculative read is accepted while it is in flight: it delays no other
/// thread.
fn guess_late(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    let file = straight(fixture);
    begin_late(fixture, &file, MAP.end..MAP.end + (LAST + 1) * P)?;
    settle()?;
    drop(VnodeLocked::new(file.vnode, true, "VOP_LOCK"));
    ensure!(busied(&file, LAST), "it is not on its way any more");
    there(fixture, &file)
}

/// When the block map disagrees, no speculative page is kept, and the next file is not
/// read speculatively.
fn guess_wrong(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    let file = crooked(fixture);
    // It is still in flight when the map is there.
    let slow = Some((MAP.end..MAP.end + (LAST + 1) * P, Duration::from_millis(200)));
    fixture.disk.behave(Behaviour { slow, ..behaviour() });
    begin(fixture, &file)?;
    fixture.disk.behave(behaviour());
    let (guessed, mistaken) = (ahead("guessed"), ahead("mistaken"));
    ensure!(guessed > 0 && mistaken == guessed, "{:?}", sysctl::counters());
    send(fixture, &file, 0, SIZE, 0)?;
    settle()?;
    let file = crooked(fixture);
    begin(fixture, &file)?;
    send(fixture, &file, 0, SIZE, 0)?;
    ensure!(ahead("guessed") == guessed, "it is tried again: {:?}", sysctl::counters());
    Ok(())
}

/// After a mistake, speculative reads resume once the expected layout was found twice.
fn guess_luck(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    begin(fixture, &crooked(fixture))?;
    let guessed = ahead("guessed");
    ensure!(guessed > 0, "nothing was tried: {:?}", sysctl::counters());
    for (round, more) in [false, false, true].into_iter().enumerate() {
        begin(fixture, &straight(fixture))?;
        let tried = ahead("guessed") > guessed;
        ensure!(tried == more, "round {round}: {:?}", sysctl::counters());
    }
    Ok(())
}

/// A bad sector, or a map that cannot be read, fails only the request for it.
fn guess_error(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    let data = (AT + DIRECT + 1) * BLOCK + 20 * P;
    let map = (AT + DIRECT) * BLOCK;
    for (bad, lost) in [(data..data + 512, FIRST + 20), (map..map + BLOCK, FIRST)] {
        let file = straight(fixture);
        mount_anew(&file, lost as i32);
        let bad = vec![(bad, libc::EIO)];
        let latency = Duration::from_millis(5).into();
        fixture.disk.behave(Behaviour { latency, bad, ..Behaviour::default() });
        let guessed = ahead("guessed");
        begin(fixture, &file)?;
        ensure!(ahead("guessed") > guessed, "nothing was tried: {:?}", sysctl::counters());
        ensure!(resident::resident(file.object, lost).is_none(), "page {lost} is still there");
        send(fixture, &file, 0, FIRST * P, 0)?;
        fixture.disk.behave(Behaviour { latency, ..Behaviour::default() });
        send(fixture, &file, 0, SIZE, 0)?;
        settle()?;
    }
    Ok(())
}

/// Make the file's filesystem one that was mounted just now.
fn mount_anew(file: &File, generation: i32) {
    // SAFETY: a live mount that no other thread uses now.
    unsafe { (*(*file.vnode).v_mount).mnt_gen += generation };
}

/// Where a speculative read fails, nothing is printed, and no other is sent
/// until the filesystem is mounted anew.
fn guess_barred(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    let data = (AT + DIRECT + 1) * BLOCK;
    let bad = vec![(data..data + 400 * P, libc::EINVAL)];
    fixture.disk.behave(Behaviour { bad, ..behaviour() });
    let said = systm::messages().len();
    let mut guessed = ahead("guessed");
    for (generation, tried) in [(0, true), (0, false), (0, false), (7, true), (7, false)] {
        let file = straight(fixture);
        mount_anew(&file, generation);
        begin(fixture, &file)?;
        let before = std::mem::replace(&mut guessed, ahead("guessed"));
        ensure!((guessed > before) == tried, "{generation}: {:?}", sysctl::counters());
    }
    let said = systm::messages().split_off(said);
    ensure!(said.is_empty(), "a message about a speculative read: {said:?}");
    Ok(())
}

/// Nothing is read speculatively through a provider that verifies its data: a sector
/// that was never written is an error there, and a message on the console.
fn guess_verified(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    for (generation, class, tried) in [(3, c"ELI", false), (4, c"MIRROR", true), (5, c"ELI", false)]
    {
        fixture.disk.set_class(class);
        let guessed = ahead("guessed");
        let file = straight(fixture);
        mount_anew(&file, generation);
        begin(fixture, &file)?;
        ensure!((ahead("guessed") > guessed) == tried, "{class:?}: {:?}", sysctl::counters());
    }
    Ok(())
}

/// Unloading does not wait for a speculative read that does not come back.
fn guess_hung(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    // The map leads far away from the expected place.
    let file = file(fixture, AT + DIRECT, 300);
    let expected = MAP.end..MAP.end + BLOCKS * BLOCK;
    fixture
        .disk
        .behave(Behaviour { slow: Some((expected, Duration::from_secs(600))), ..behaviour() });
    send(fixture, &file, 0, 16 * P, 100)?;
    wait_until("a speculative read hangs", || busied(&file, LAST) && fixture.disk.waiting() > 0)?;
    clock::shorten_sleeps(true);
    let refused = fixture.module.as_ref().map(|module| module.unload());
    clock::shorten_sleeps(false);
    ensure!(refused == Some(Err(libc::EBUSY)), "kldunload with a disk that hangs: {refused:?}");
    fixture.disk.behave(behaviour());
    fixture.disk.complete_now();
    settle()?;
    send(fixture, &file, 0, SIZE, 0)?;
    // Everything is at work again.
    let before = ahead("windows");
    begin(fixture, &straight(fixture))?;
    ensure!(ahead("windows") > before, "nothing is read ahead: {:?}", sysctl::counters());
    Ok(())
}

/// Nothing is read speculatively beyond the end of the filesystem.
fn guess_end(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    let last = fixture.disk.image().len() as u64 / BLOCK - 1;
    for before in [0, 1] {
        let file = file(fixture, last - before, AT + DIRECT);
        begin(fixture, &file)?;
        send(fixture, &file, 0, SIZE, 0)?;
        settle()?;
    }
    ensure!(ahead("guessed") == 0, "{:?}", sysctl::counters());
    Ok(())
}

/// Nothing is read speculatively while that is switched off.
fn guess_off(fixture: &mut Fixture, _: &Path) -> Result<()> {
    slow(fixture, 5)?;
    ensure!(sysctl::number("vfs.asyncpager.readahead.guess", 0) == 0, "sysctl");
    let file = straight(fixture);
    begin(fixture, &file)?;
    ensure!(ahead("guessed") == 0, "{:?}", sysctl::counters());
    send(fixture, &file, 0, SIZE, 0)
}
