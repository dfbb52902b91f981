// SPDX-License-Identifier: BSD-2-Clause
//! Random mixes of all that can happen to the module, drawn from a seed.
//!
//! The draws repeat with the seed; how threads interleave does not, unless
//! there is only one.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use asyncpager::kpi::sys;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::{
    Common,
    bed::Bed,
    bufcache::{self, CHUNK, Versions},
    cpu,
    disk::{Latency, Manners},
    kernel::{Module, Options},
    pager, rules, schedule,
    sendfile::{self, Sending},
    sysctl, uma,
    vfs::File,
    vm::{self, PAGE},
};

const DISK: usize = 8 << 20;
/// Bytes behind them for indirect blocks, which nobody overwrites.
const MAPS: usize = 9 << 20;
const SENDERS: u64 = 3;
/// The path of the one file that is truncated and extended.
const CUT: &str = "cut";

/// The path of the one file that is written to, on blocks of its own.
const WRITTEN: &str = "written";
const WRITTEN_SIZE: u64 = 300 << 10;

/// What a run has done.
#[derive(Default)]
struct Tally {
    sent: AtomicU64,
    failed: AtomicU64,
    faulted: AtomicU64,
    reclaimed: AtomicU64,
    reloads: AtomicU64,
    switched: AtomicU64,
    resized: AtomicU64,
    unmounted: AtomicU64,
    shared: AtomicU64,
    written: AtomicU64,
    swapped: AtomicU64,
    refused: AtomicU64,
}

/// A file's name, so to speak: what is open there now.
struct Slot(Mutex<Arc<File>>, AtomicU64);

impl Slot {
    fn new(file: Arc<File>) -> Self {
        Self(Mutex::new(file), AtomicU64::new(0))
    }

    /// Where whoever goes through the file goes on, with `len` bytes.
    fn next(&self, size: u64, len: u64) -> u64 {
        let at = self.1.fetch_add(len, Ordering::Relaxed);
        if at < size {
            return at;
        }
        self.1.store(len, Ordering::Relaxed);
        0
    }

    fn open(&self) -> Arc<File> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Take the file away in the middle of its use, and open it anew.
    fn remount(&self, bed: &Bed, ufs2: bool) {
        let old = self.open();
        // Until the new one is there, who comes is refused.
        let new = bed.remount(&old, ufs2);
        *self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = new;
    }
}

/// How to torture.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Stop after so many minutes.
    pub minutes: f64,
    /// Stop after so many calls of the VOPs for each seed.
    pub calls: u64,
    /// Seeds, from the first one on.
    pub seeds: u64,
    /// One thread only, so that a seed gives the same run each time.
    pub deterministic: bool,
}

/// Torture the module with seeds `common.seed..` until time or calls are over.
pub fn run(common: &Common, plan: Plan, save: &Path) -> Result<()> {
    let end = Instant::now() + Duration::from_secs_f64((plan.minutes * 60.0).clamp(0.0, 1e6));
    let total = plan.calls.saturating_mul(plan.seeds);
    let bar = if common.json { ProgressBar::hidden() } else { ProgressBar::new(total) };
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} calls, {msg}")?);
    let tally = Tally::default();
    let (mut errors, mut done) = (0, 0);
    for seed in common.seed..common.seed.saturating_add(plan.seeds) {
        bar.set_message(format!("seed {seed}"));
        let how = json!({
            "seed": seed, "calls": plan.calls, "deterministic": plan.deterministic,
            "ko": common.ko.display().to_string(),
        });
        rules::keep_history(save.to_path_buf(), how);
        errors += one(common, seed, plan, end, &tally, &bar)
            .unwrap_or_else(|error| rules::violation("torture", format!("seed {seed}: {error:#}")));
        done += 1;
        if Instant::now() >= end {
            break;
        }
    }
    bar.finish_and_clear();
    let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let result = json!({
        "seeds": done,
        "vop_calls": get(&sendfile::CALLS),
        "requests_sent": get(&tally.sent),
        "requests_failed": get(&tally.failed),
        "page_faults": get(&tally.faulted),
        "faults_injected": {
            "transfers_failed": errors,
            "page_allocations_failed": get(&vm::ALLOCS_FAILED),
        },
        "pages_reclaimed": get(&tally.reclaimed),
        "reloads": get(&tally.reloads),
        "switches": get(&tally.switched),
        "truncations_and_extensions": get(&tally.resized),
        "forced_unmounts": get(&tally.unmounted),
        "requests_refused": get(&tally.refused),
        "pages_busied_shared": get(&tally.shared),
        "writes": get(&tally.written),
        "swap_requests": get(&tally.swapped),
        "violations": 0,
    });
    if common.json {
        println!("{result}")
    } else {
        println!("{result:#}")
    }
    Ok(())
}

/// Do again what a saved violation was found in.
pub fn replay(common: &Common, file: &Path) -> Result<()> {
    let saved = read_saved(file)?;
    let run = &saved["run"];
    let plan = Plan {
        minutes: 60.0,
        calls: run["calls"].as_u64().context("the file names no calls")?,
        seeds: 1,
        deterministic: run["deterministic"].as_bool().unwrap_or(false),
    };
    let common =
        Common { seed: run["seed"].as_u64().context("the file names no seed")?, ..common.clone() };
    if !plan.deterministic {
        eprintln!("the run had threads: the same draws may interleave in another way");
    }
    self::run(&common, plan, &file.with_extension("replay.json"))
}

/// Show how a saved violation came about: what touched the same thing.
pub fn explain(file: &Path, about: Option<&str>) -> Result<()> {
    let saved = read_saved(file)?;
    let violation = saved["violation"].as_str().unwrap_or("?");
    println!("violation: {violation}\nrun: {}", saved["run"]);
    let events = saved["events"].as_array().context("the file holds no events")?;
    let events = events.iter().enumerate().filter_map(|(i, e)| Some((i, e.as_str()?)));
    for (i, event) in events.filter(|(_, event)| about.is_none_or(|about| event.contains(about))) {
        println!("{i:5}  {event}");
    }
    Ok(())
}

fn read_saved(file: &Path) -> Result<serde_json::Value> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{} is not what torture saves", file.display()))
}

/// One seed; how many transfers the disk has failed.
fn one(
    common: &Common,
    seed: u64,
    plan: Plan,
    end: Instant,
    tally: &Tally,
    bar: &ProgressBar,
) -> Result<u64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let all = DISK + WRITTEN_SIZE as usize + MAPS;
    let image: Vec<u8> = std::iter::repeat_with(|| rng.u8(1..)).take(all).collect();
    let sector = if rng.u8(..4) == 0 { 4096 } else { 512 };
    let options = options();
    let mut bed = Bed::new(Some(&common.ko), &options, image, sector, seed, !plan.deterministic)?;
    let mut files: Vec<_> = ["", "", "", "", "", CUT]
        .map(|path| Slot::new(file(&bed, path, sector as u64, &mut rng)))
        .into_iter()
        .collect();
    let written = written(&bed, &mut rng);
    bed.versions = Versions::new(written.inode.size);
    files.push(Slot::new(written));
    let before = sendfile::CALLS.load(Ordering::Relaxed);
    let over = || {
        bar.set_position(sendfile::CALLS.load(Ordering::Relaxed));
        sendfile::CALLS.load(Ordering::Relaxed) - before >= plan.calls || Instant::now() >= end
    };
    let module = Mutex::new(bed.module.take());
    let result = if plan.deterministic {
        single(common, &bed, &module, &files, &mut rng, tally, over)
    } else {
        threads(common, &bed, &module, &files, &mut rng, tally, over)
    };
    bed.module = module.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    result?;
    uma::NO_MEMORY.store(false, Ordering::Relaxed);
    vm::NO_MEMORY.store(false, Ordering::Relaxed);
    sendfile::LINGER.store(0, Ordering::Relaxed);
    while vm::unbusy_shared() {}
    let errors = bed.disk.errors.load(Ordering::Relaxed);
    bed.finish()?;
    Ok(errors)
}

/// Senders in threads of their own, and disturbances beside them.
fn threads(
    common: &Common,
    bed: &Bed,
    module: &Mutex<Option<Module>>,
    files: &[Slot],
    rng: &mut fastrand::Rng,
    tally: &Tally,
    over: impl Fn() -> bool,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let (stop, mut rng) = (&stop, rng.fork());
                scope.spawn(move || -> Result<()> {
                    cpu::attach();
                    while !stop.load(Ordering::Relaxed) {
                        Op::draw(files, &mut rng).begin(bed).end(bed, tally)?;
                    }
                    Ok(())
                })
            })
            .collect();
        let mut chaos = Ok(());
        while chaos.is_ok() && !over() && !senders.iter().any(|s| s.is_finished()) {
            std::thread::sleep(Duration::from_millis(rng.u64(1..6)));
            chaos = disturb(common, bed, module, files, rng, tally);
        }
        stop.store(true, Ordering::Relaxed);
        while vm::unbusy_shared() {}
        for sender in senders {
            sender.join().map_err(|_| anyhow!("a sender panicked"))??;
        }
        chaos
    })
}

/// All of it in one thread: a few requests under way at once, whose bufs the
/// disk completes whenever somebody waits.
fn single(
    common: &Common,
    bed: &Bed,
    module: &Mutex<Option<Module>>,
    files: &[Slot],
    rng: &mut fastrand::Rng,
    tally: &Tally,
    over: impl Fn() -> bool,
) -> Result<()> {
    cpu::attach();
    let mut under_way = Vec::new();
    while !over() {
        match rng.u8(..16) {
            0 => disturb(common, bed, module, files, rng, tally)?,
            1..=4 => drop(schedule::pump()),
            _ if under_way.len() < 4 && rng.bool() => {
                under_way.push(Op::draw(files, rng).begin(bed));
            }
            _ if under_way.is_empty() => {}
            _ => under_way.swap_remove(rng.usize(..under_way.len())).end(bed, tally)?,
        }
    }
    under_way.into_iter().try_for_each(|op| op.end(bed, tally))
}

/// Every latency is worth hiding, in small windows and as fast as it goes.
fn options() -> Options {
    let tunables = [
        // So few that requests wait for them.
        ("vfs.asyncpager.bufs", "24"),
        ("vfs.asyncpager.readahead.latency_min", "0"),
        ("vfs.asyncpager.readahead.initial", "131072"),
        ("vfs.asyncpager.readahead.max", "524288"),
        ("vfs.asyncpager.readahead.poll", "500"),
        ("vfs.asyncpager.readahead.streams", "16"),
    ]
    .map(|(name, value)| (name.to_string(), value.to_string()))
    .to_vec();
    Options { tunables, ..Options::default() }
}

/// A file of random shape.
fn file(bed: &Bed, path: &str, sector: u64, rng: &mut fastrand::Rng) -> Arc<File> {
    let block = [512, 1024, 4096, 8192, 32768, 65536][rng.usize(..6)].max(sector);
    let order = [12, 16, 20][rng.usize(..3)];
    let size = rng.u64(1..1 << order);
    let blocks = size.div_ceil(block);
    let per_page = (PAGE as u64 / block).max(1);
    let most = DISK as u64 / block;
    let mut at = rng.u64(..most);
    let map: Vec<_> = (0..blocks)
        .map(|i| {
            at = if rng.u8(..5) == 0 { rng.u64(..most) } else { (at + 1) % most };
            // vnode_pager_haspage() cannot tell a page that begins with a
            // hole from one that is nothing else.
            (i % per_page == 0 && per_page > 1 || rng.u8(..10) > 0).then_some(at)
        })
        .collect();
    if rng.bool() {
        return bed.straight(path, block, &map, size, rng.bool());
    }
    bed.named(path, block, &map, size, rng.bool())
}

/// A file whose blocks, out of order, are no other file's.
fn written(bed: &Bed, rng: &mut fastrand::Rng) -> Arc<File> {
    let block = [4096, 8192, 32768][rng.usize(..3)];
    let first = DISK as u64 / block;
    let mut blocks: Vec<_> = (first..first + WRITTEN_SIZE / block).collect();
    let (a, b) = (rng.usize(..blocks.len()), rng.usize(..blocks.len()));
    blocks.swap(a, b);
    blocks.rotate_left(a);
    let size = blocks.len() as u64 * block - rng.u64(..block);
    let map: Vec<_> = blocks.into_iter().map(Some).collect();
    bed.named(WRITTEN, block, &map, size, rng.bool())
}

/// What a consumer wants.
struct Op {
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
struct Begun(Op, Option<Sending>, Vec<u32>);

impl Op {
    fn draw(files: &[Slot], rng: &mut fastrand::Rng) -> Self {
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

    fn begin(self, bed: &Bed) -> Begun {
        let versions = match self.file.inode.path.as_str() {
            WRITTEN => bed.versions.now(self.offset..self.offset + self.len),
            _ => Vec::new(),
        };
        let sending = (!self.fault && !self.write)
            .then(|| Sending::begin(&self.file, self.offset, self.len, self.ahead))
            .flatten();
        Begun(self, sending, versions)
    }
}

impl Begun {
    fn end(self, bed: &Bed, tally: &Tally) -> Result<()> {
        let Self(op, sending, versions) = self;
        if op.write {
            return write(bed, &op, tally);
        }
        let Some(sending) = sending else {
            let count = if op.fault && fault(bed, &op)? { &tally.faulted } else { &tally.refused };
            count.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        let (mut at, mut wrong) = (op.offset, None);
        let result = sending.finish(op.nocache, |bytes| {
            wrong = wrong.or_else(|| wrong_byte(bed, &op.file, at, bytes, op.offset, &versions));
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
    bed: &Bed,
    file: &File,
    at: u64,
    bytes: &[u8],
    since: u64,
    versions: &[u32],
) -> Option<u64> {
    let originals = bed.bytes(file, at, bytes.len());
    let (cut, written) = (file.inode.path == CUT, file.inode.path == WRITTEN);
    if !written && bytes == originals {
        return None;
    }
    let right = |at, byte, original| match byte {
        _ if at >= file.inode.size => byte == 0,
        _ if written => bed.versions.right(since, versions, at, byte, original),
        _ => byte == original || cut && byte == 0,
    };
    let each = (at..).zip(bytes.iter().zip(originals));
    each.into_iter().find(|(at, (byte, original))| !right(*at, **byte, *original)).map(|(at, _)| at)
}

/// write(2) of whole chunks.
fn write(bed: &Bed, op: &Op, tally: &Tally) -> Result<()> {
    let chunks = op.offset / CHUNK..(op.offset + op.len.min(20_000)).div_ceil(CHUNK);
    let count = match bufcache::write(&op.file, &bed.versions, chunks) {
        Some(Ok(())) => &tally.written,
        Some(Err(_)) => &tally.failed,
        None => &tally.refused,
    };
    count.fetch_add(1, Ordering::Relaxed);
    Ok(())
}

/// A page fault: one page through the sync VOP, with pages around it. Whether
/// the file was still there.
fn fault(bed: &Bed, op: &Op) -> Result<bool> {
    let Some(_entered) = op.file.enter("vm_fault") else { return Ok(false) };
    if op.offset >= op.file.size() {
        return Ok(true);
    }
    let page = vm::grab(op.file.object, op.offset / PAGE as u64);
    if page.fields().valid == 0 {
        let outcome = sendfile::getpages(&op.file, &[page], op.behind, op.ahead, !op.sync);
        let valid = page.fields().valid != 0;
        ensure!(valid == (outcome.code == 0), "{outcome:?}, and the page is valid: {valid}");
        let start = op.offset / PAGE as u64 * PAGE as u64;
        // The vnode's lock keeps writers away.
        let versions = match op.file.inode.path.as_str() {
            WRITTEN => bed.versions.now(start..start + PAGE as u64),
            _ => Vec::new(),
        };
        let count = (0..PAGE).step_by(512).take_while(|at| page.is_valid(*at, 1)).count() * 512;
        // SAFETY: the page is busied by this thread.
        let bytes = unsafe { std::slice::from_raw_parts(page.data(), count) };
        let wrong = wrong_byte(bed, &op.file, start, bytes, start, &versions);
        ensure!(wrong.is_none(), "byte {wrong:?} is wrong after a fault");
    }
    page.unbusy("vm_fault");
    vm::unwire(page, !op.nocache);
    Ok(true)
}

/// Change something about the world.
fn disturb(
    common: &Common,
    bed: &Bed,
    module: &Mutex<Option<Module>>,
    files: &[Slot],
    rng: &mut fastrand::Rng,
    tally: &Tally,
) -> Result<()> {
    let one_in = |rng: &mut fastrand::Rng, n: u8| rng.u8(..n) == 0;
    if !schedule::is_one_thread() {
        while vm::unbusy_shared() {}
    }
    if one_in(rng, 2) {
        // Shortages pass.
        vm::NO_MEMORY.store(false, Ordering::Relaxed);
        uma::NO_MEMORY.store(false, Ordering::Relaxed);
    }
    match rng.u8(..19) {
        0..=3 => {
            let at = rng.u64(..DISK as u64);
            bed.disk.behave(Manners {
                latency: if one_in(rng, 4) {
                    Latency::random(Duration::from_micros(rng.u64(..400)), rng)
                } else {
                    Latency::default()
                },
                late: None,
                bad: if one_in(rng, 2) { vec![(at..at + 4096, libc::EIO)] } else { vec![] },
                fail_percent: if one_in(rng, 3) { rng.u8(1..40) } else { 0 },
                short: one_in(rng, 16),
                gone: one_in(rng, 24),
            });
        }
        4..=5 => vm::NO_MEMORY.store(true, Ordering::Relaxed),
        6 => uma::NO_MEMORY.store(true, Ordering::Relaxed),
        7..=8 => {
            // A little from one file, or everything from all of them.
            let (all, one) = (one_in(rng, 6), rng.usize(..files.len()));
            for slot in files.iter().enumerate().filter(|(i, _)| all || *i == one) {
                let part = if all { 1 } else { 1 + rng.usize(..3) };
                let freed = vm::reclaim(slot.1.open().object, part, rng);
                tally.reclaimed.fetch_add(freed as u64, Ordering::Relaxed);
            }
        }
        9 => {
            let name = [
                "vfs.asyncpager.enabled",
                "vfs.asyncpager.sync",
                "vfs.asyncpager.map",
                "vfs.asyncpager.readahead.enabled",
            ][rng.usize(..4)];
            let errno = sysctl::write(name, !one_in(rng, 8));
            ensure!(errno == 0, "sysctl {name}, errno {errno}");
            tally.switched.fetch_add(1, Ordering::Relaxed);
        }
        10 if one_in(rng, 6) => {
            let mut module = module.lock().map_err(|_| anyhow!("the module's lock is poisoned"))?;
            if let Some(module) = module.take() {
                module.unload().map_err(|errno| anyhow!("kldunload, errno {errno}"))?;
            }
            *module = Some(Module::load(&common.ko, &options())?);
            tally.reloads.fetch_add(1, Ordering::Relaxed);
        }
        11 => {
            let file = files.iter().map(Slot::open).find(|file| file.inode.path == CUT);
            if let Some(file) = file {
                let whole = file.inode.size;
                file.set_size(if one_in(rng, 3) { whole } else { rng.u64(1..=whole) });
                tally.resized.fetch_add(1, Ordering::Relaxed);
            }
        }
        12 => {
            // What comes after iodone is seen to be over before the memory goes.
            let linger = if one_in(rng, 2) { rng.u64(..300) } else { 0 };
            sendfile::LINGER.store(linger, Ordering::Relaxed);
            files[rng.usize(..files.len())].remount(bed, rng.bool());
            tally.unmounted.fetch_add(1, Ordering::Relaxed);
        }
        13 => {
            vm::busy_shared(files[rng.usize(..files.len())].open().object, rng);
            tally.shared.fetch_add(1, Ordering::Relaxed);
        }
        // The buffer cache needs room for other blocks.
        16..=17 => files[rng.usize(..files.len())].open().maps.forget(),
        15 => drop(bufcache::flush(&files[files.len() - 1].open(), 1 + rng.usize(..3), rng)),
        14 => {
            swap_request(rng)?;
            tally.swapped.fetch_add(1, Ordering::Relaxed);
        }
        _ => {}
    }
    Ok(())
}

/// A request to the swap pager, which has some of the pages and cannot read others.
fn swap_request(rng: &mut fastrand::Rng) -> Result<()> {
    let count = rng.u64(1..9);
    let object = vm::new_swap_object(count);
    let blocks: Vec<_> = (0..count)
        .map(|i| match rng.u8(..6) {
            0 => None,
            1 => Some(pager::Block::Bad),
            _ => Some(pager::Block::Data(vec![i as u8 + 1; PAGE])),
        })
        .collect();
    for (i, block) in (0..).zip(blocks.iter().cloned()) {
        if let Some(block) = block {
            pager::swap_out(object, i, block);
        }
    }
    let pages: Vec<_> = (0..count).map(|i| vm::grab(object, i)).collect();
    let outcome = sendfile::swap_getpages(object, &pages);
    let all = blocks.iter().all(|block| matches!(block, Some(pager::Block::Data(_))));
    let want = match blocks[0] {
        None => (sys::VM_PAGER_FAIL, libc::EINVAL),
        _ if all => (sys::VM_PAGER_OK, 0),
        _ => (sys::VM_PAGER_ERROR, libc::EIO),
    };
    ensure!((outcome.code, outcome.error) == want, "the swap pager: {outcome:?}, not {want:?}");
    pages.iter().for_each(|page| vm::unwire(*page, false));
    pager::swap_free(object);
    vm::destroy(object);
    Ok(())
}
