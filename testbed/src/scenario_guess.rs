// SPDX-License-Identifier: BSD-2-Clause
//! Scenarios of pages that are read before the block map tells where they are.

use std::{ops::Range, path::Path, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use asyncpager::kpi::sys;

use crate::{
    bed::{Bed, Run},
    clock,
    disk::Manners,
    indirect::DIRECT,
    kernel,
    locks::VnodeLocked,
    scenario_ahead::{BLOCK, P, cold, ready, send, settle, slow, wait_until},
    sysctl::{self, ahead, counter},
    taskqueue,
    vfs::{File, Mount},
    vm,
};

/// Pages of the blocks whose places are in the inode.
const FIRST: u64 = DIRECT * BLOCK / P;
/// Behind what a consumer may be left to ask for itself.
const BEHIND: u64 = FIRST + 40;
/// A page that is surely read with the map.
const LAST: u64 = FIRST + 400;
/// Where the indirect block of a straight file lies.
const MAP: Range<u64> = (AT + DIRECT) * BLOCK..(AT + DIRECT + 1) * BLOCK;
/// Blocks of the files here.
const BLOCKS: u64 = 200;
const SIZE: u64 = BLOCKS * BLOCK - 700;
/// Where on the disk they begin.
const AT: u64 = 10;

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
    ("map-untrusted", map_untrusted),
    ("map-async-mount", map_async_mount),
    ("map-gone-on", map_gone_on),
];

/// A file whose indirect block is at block `indirect` of the disk, and what
/// that leads to at block `rest`.
fn file(bed: &Bed, indirect: u64, rest: u64) -> Arc<File> {
    let map: Vec<_> = (AT..AT + DIRECT).chain(rest..rest + BLOCKS - DIRECT).map(Some).collect();
    let mut top = ((indirect + 1) * BLOCK) as usize;
    bed.planted("guess", BLOCK, &map, SIZE, true, &mut top)
}

/// As FFS lays it out.
fn straight(bed: &Bed) -> Arc<File> {
    file(bed, AT + DIRECT, AT + DIRECT + 1)
}

/// Somewhere else.
fn crooked(bed: &Bed) -> Arc<File> {
    file(bed, AT + DIRECT, AT + DIRECT + 2)
}

/// Send the beginning of a file, and wait for all that comes of it.
fn begin(bed: &Bed, file: &File) -> Result<()> {
    send(bed, file, 0, 16 * P, 100)?;
    settle()?;
    wait_until("no page is in flight", || !vm::is_paging(file.object))
}

fn busied(file: &File, pindex: u64) -> bool {
    vm::resident(file.object, pindex).is_some_and(|page| page.is_busy())
}

/// Send the beginning of a file of which what lies in `late` does not come.
fn begin_late(bed: &Bed, file: &File, late: Range<u64>) -> Result<()> {
    let late = Some((late, Duration::from_secs(600)));
    bed.disk.behave(Manners { late, ..manners() });
    taskqueue::hold(true);
    send(bed, file, 0, 16 * P, 100)?;
    taskqueue::hold(false);
    wait_until("what lies behind is read", || (BEHIND..=LAST).all(|page| busied(file, page)))
}

fn manners() -> Manners {
    Manners { latency: Duration::from_millis(5).into(), ..Manners::default() }
}

/// Let everything come, and find it there.
fn there(bed: &Bed, file: &File) -> Result<()> {
    bed.disk.behave(manners());
    bed.disk.hurry();
    settle()?;
    let there = || (BEHIND..=LAST).all(|pindex| ready(file, pindex));
    wait_until("it is there", there)?;
    send(bed, file, 0, SIZE, 0)?;
    settle()?;
    ensure!(ahead("mistaken") == 0, "{:?}", sysctl::counters());
    Ok(())
}

/// What the first indirect block leads to is read together with it, and may
/// be back before it.
fn guess(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    let file = straight(bed);
    begin_late(bed, &file, MAP)?;
    wait_until("only the map is missing", || bed.disk.waiting() == 1)?;
    there(bed, &file)
}

/// What is right is not waited for.
fn guess_late(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    let file = straight(bed);
    begin_late(bed, &file, MAP.end..MAP.end + (LAST + 1) * P)?;
    settle()?;
    drop(VnodeLocked::new(file.vnode, true, "VOP_LOCK"));
    ensure!(busied(&file, LAST), "it is not on its way any more");
    there(bed, &file)
}

/// Where the map says something else nothing of it is kept, and it is not
/// tried again at once.
fn guess_wrong(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    let file = crooked(bed);
    // It is still on its way when the map is there.
    let late = Some((MAP.end..MAP.end + (LAST + 1) * P, Duration::from_millis(200)));
    bed.disk.behave(Manners { late, ..manners() });
    begin(bed, &file)?;
    bed.disk.behave(manners());
    let (guessed, mistaken) = (ahead("guessed"), ahead("mistaken"));
    ensure!(guessed > 0 && mistaken == guessed, "{:?}", sysctl::counters());
    send(bed, &file, 0, SIZE, 0)?;
    settle()?;
    let file = crooked(bed);
    begin(bed, &file)?;
    send(bed, &file, 0, SIZE, 0)?;
    ensure!(ahead("guessed") == guessed, "it is tried again: {:?}", sysctl::counters());
    Ok(())
}

/// Who has been wrong tries again after having been right in silence, twice.
fn guess_luck(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    begin(bed, &crooked(bed))?;
    let guessed = ahead("guessed");
    ensure!(guessed > 0, "nothing was tried: {:?}", sysctl::counters());
    for (round, more) in [false, false, true].into_iter().enumerate() {
        begin(bed, &straight(bed))?;
        let tried = ahead("guessed") > guessed;
        ensure!(tried == more, "round {round}: {:?}", sysctl::counters());
    }
    Ok(())
}

/// A bad sector under it fails only who needs it, and so does a map that
/// cannot be read.
fn guess_error(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    let data = (AT + DIRECT + 1) * BLOCK + 20 * P;
    let map = (AT + DIRECT) * BLOCK;
    for (bad, lost) in [(data..data + 512, FIRST + 20), (map..map + BLOCK, FIRST)] {
        let file = straight(bed);
        mount_anew(&file, lost as i32);
        let bad = vec![(bad, libc::EIO)];
        let latency = Duration::from_millis(5).into();
        bed.disk.behave(Manners { latency, bad, ..Manners::default() });
        let guessed = ahead("guessed");
        begin(bed, &file)?;
        ensure!(ahead("guessed") > guessed, "nothing was tried: {:?}", sysctl::counters());
        ensure!(vm::resident(file.object, lost).is_none(), "page {lost} is still there");
        send(bed, &file, 0, FIRST * P, 0)?;
        bed.disk.behave(Manners { latency, ..Manners::default() });
        send(bed, &file, 0, SIZE, 0)?;
        settle()?;
    }
    Ok(())
}

/// Make the file's filesystem one that was mounted just now.
fn mount_anew(file: &File, generation: i32) {
    // SAFETY: a live mount that nobody else looks at now.
    unsafe { (*(*file.vnode).v_mount).mnt_gen += generation };
}

/// Where a speculative read fails, nothing is printed, and no other is sent
/// until the filesystem is mounted anew.
fn guess_barred(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    let data = (AT + DIRECT + 1) * BLOCK;
    let bad = vec![(data..data + 400 * P, libc::EINVAL)];
    bed.disk.behave(Manners { bad, ..manners() });
    let said = kernel::messages().len();
    let mut guessed = ahead("guessed");
    for (generation, tried) in [(0, true), (0, false), (0, false), (7, true), (7, false)] {
        let file = straight(bed);
        mount_anew(&file, generation);
        begin(bed, &file)?;
        let before = std::mem::replace(&mut guessed, ahead("guessed"));
        ensure!((guessed > before) == tried, "{generation}: {:?}", sysctl::counters());
    }
    let said = kernel::messages().split_off(said);
    ensure!(said.is_empty(), "printed for a read that nobody asked for: {said:?}");
    Ok(())
}

/// Nothing is speculated on below a provider that verifies what it reads: sectors
/// that were never written are errors there, and it says so on the console.
fn guess_verified(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    for (generation, class, tried) in [(3, c"ELI", false), (4, c"MIRROR", true), (5, c"ELI", false)]
    {
        bed.disk.set_class(class);
        let guessed = ahead("guessed");
        let file = straight(bed);
        mount_anew(&file, generation);
        begin(bed, &file)?;
        ensure!((ahead("guessed") > guessed) == tried, "{class:?}: {:?}", sysctl::counters());
    }
    Ok(())
}

/// Unloading does not wait for a speculative read that does not come back.
fn guess_hung(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    // What the map leads to is far from where it is expected.
    let file = file(bed, AT + DIRECT, 300);
    let expected = MAP.end..MAP.end + BLOCKS * BLOCK;
    bed.disk.behave(Manners { late: Some((expected, Duration::from_secs(600))), ..manners() });
    send(bed, &file, 0, 16 * P, 100)?;
    wait_until("a speculative read hangs", || busied(&file, LAST) && bed.disk.waiting() > 0)?;
    clock::hurry(true);
    let refused = bed.module.as_ref().map(|module| module.unload());
    clock::hurry(false);
    ensure!(refused == Some(Err(libc::EBUSY)), "kldunload with a disk that hangs: {refused:?}");
    bed.disk.behave(manners());
    bed.disk.hurry();
    settle()?;
    send(bed, &file, 0, SIZE, 0)?;
    // Everything is at work again.
    let before = ahead("windows");
    begin(bed, &straight(bed))?;
    ensure!(ahead("windows") > before, "nothing is read ahead: {:?}", sysctl::counters());
    Ok(())
}

/// Behind the end of the filesystem nothing is read.
fn guess_end(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    let last = bed.disk.image().len() as u64 / BLOCK - 1;
    for before in [0, 1] {
        let file = file(bed, last - before, AT + DIRECT);
        begin(bed, &file)?;
        send(bed, &file, 0, SIZE, 0)?;
        settle()?;
    }
    ensure!(ahead("guessed") == 0, "{:?}", sysctl::counters());
    Ok(())
}

/// What is switched off is not tried.
fn guess_off(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    ensure!(sysctl::number("vfs.asyncpager.readahead.guess", 0) == 0, "sysctl");
    let file = straight(bed);
    begin(bed, &file)?;
    ensure!(ahead("guessed") == 0, "{:?}", sysctl::counters());
    send(bed, &file, 0, SIZE, 0)
}

unsafe extern "C" fn checked(_: *mut sys::mount, _: u64, _: i64, _: i32) -> i32 {
    0
}

/// On an untrusted mount the filesystem looks at each pointer itself.
fn map_untrusted(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    let (plain, untrusted) = (straight(bed), straight(bed));
    // SAFETY: a live mount that nobody else looks at now.
    unsafe {
        let ump = (*(*untrusted.vnode).v_mount).mnt_data.cast::<sys::ufsmount>();
        (*ump).um_check_blkno = Some(checked);
    }
    map_left_to_the_filesystem(bed, &plain, &untrusted)
}

/// On a mount that writes asynchronously, a pointer reaches the disk before
/// the block that it leads to.
fn map_async_mount(bed: &mut Bed, _: &Path) -> Result<()> {
    slow(bed, 5)?;
    for flag in [sys::MNT_ASYNC, sys::MNT_GJOURNAL] {
        let plain = straight(bed);
        let mount = Mount { flags: flag as u64, ..plain.mount };
        let file = bed.open(plain.inode.clone(), mount, true);
        map_left_to_the_filesystem(bed, &plain, &file)?;
    }
    Ok(())
}

/// The module reads the block map of `plain` by itself, and that of `other`
/// through the filesystem only.
fn map_left_to_the_filesystem(bed: &Bed, plain: &File, other: &File) -> Result<()> {
    let before = counter("maps_read");
    cold(bed, plain, 20 * BLOCK, BLOCK)?;
    let read = counter("maps_read");
    ensure!(read > before, "no map is read: {:?}", sysctl::counters());
    settle()?;
    let guessed = ahead("guessed");
    begin(bed, other)?;
    send(bed, other, 20 * BLOCK, BLOCK, 0)?;
    ensure!(
        (counter("maps_read"), ahead("guessed")) == (read, guessed),
        "its pointers are read past the filesystem: {:?}",
        sysctl::counters()
    );
    Ok(())
}

/// Who has gone on while a window waited for the block map gets another one:
/// before it a gap is left, which it can ask for itself.
fn map_gone_on(bed: &mut Bed, _: &Path) -> Result<()> {
    ensure!(sysctl::number("vfs.asyncpager.readahead.guess", 0) == 0, "sysctl");
    // Only a thread that is late itself leaves a gap at first: not every time.
    for _ in 0..10 {
        slow(bed, 60)?;
        let file = straight(bed);
        let late = Some((MAP, Duration::from_secs(600)));
        bed.disk.behave(Manners { late, ..manners() });
        send(bed, &file, 0, 16 * P, 100)?;
        wait_until("only the map is missing", || bed.disk.waiting() == 1)?;
        bed.disk.behave(manners());
        bed.disk.hurry();
        settle()?;
        wait_until("it is there", || ready(&file, BEHIND))?;
        let left = (FIRST..FIRST + 8).all(|pindex| vm::resident(file.object, pindex).is_none());
        ensure!(left, "the consumer finds its next pages busied");
    }
    Ok(())
}
