// SPDX-License-Identifier: BSD-2-Clause
//! Unloading while threads are about to enter the module's code, or to leave it,
//! and do not run: those of the idle class, and all on a CPU that a real-time
//! thread occupies.

use std::{
    mem::replace,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::Scope,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use asyncpager::kpi::{
    sys,
    vnode_if::{BmapFn, GetpagesAsyncFn, GetpagesFn},
};

use crate::{
    consumers::sendfile::{getpages, getpages_async},
    disk::behaviour::Behaviour,
    ffs::{file::File, vnodeops},
    host::clock,
    kernel::{
        proc::{self, Scheduled},
        sched, sx,
        sysctl::{self, counter},
        systm, vm_object,
        vnode::VnodeLocked,
        vnode_if,
    },
    kld::{module::Module, options::Options},
    scenarios::{
        fixture::{Fixture, Run},
        steps::{BLOCK, good, grab, release, settle, wait_until},
    },
};

/// All of them, by name.
pub const ALL: &[(&str, Run)] = &[
    ("unload-idle-entering", unload_idle_entering),
    ("unload-idle-leaving", unload_idle_leaving),
    ("unload-idle-runs", unload_idle_runs),
    ("unload-cpu-hog", unload_cpu_hog),
];

/// A kldunload(2) that takes longer than this is hung.
const LONG: Duration = Duration::from_secs(20);

/// How long a kldunload(2) is watched that must not come back.
const SHORT: Duration = Duration::from_millis(300);

/// kldunload(2) in a thread of its own.
struct Unloading<'a>(mpsc::Receiver<Result<(), i32>>, &'a Module);

impl<'a> Unloading<'a> {
    fn begin<'s>(scope: &'s Scope<'s, '_>, module: &'a Module) -> Self
    where
        'a: 's,
    {
        let (tell, told) = mpsc::channel();
        scope.spawn(move || {
            proc::attach();
            // After a failure the receiver is gone.
            let _ = tell.send(module.unload());
        });
        Self(told, module)
    }

    fn ensure_waits(&self, for_what: &str) -> Result<()> {
        let early = self.0.recv_timeout(SHORT);
        ensure!(early.is_err(), "{} is unloaded, but {for_what}", self.1.name);
        Ok(())
    }

    fn end(self) -> Result<Result<(), i32>> {
        let end = self.0.recv_timeout(LONG);
        end.with_context(|| format!("unloading {} does not come back", self.1.name))
    }
}

fn module(fixture: &Fixture) -> Result<&Module> {
    fixture.module.as_ref().context("no module")
}

fn reload(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    fixture.module = None;
    fixture.module = Some(Module::load(ko, &Options::default())?);
    ensure!(sysctl::write("vfs.asyncpager.sync", true) == 0, "sysctl");
    Ok(())
}

/// Everything is at work: a call of each slot is served.
fn at_work(fixture: &Fixture, file: &Arc<File>) -> Result<()> {
    ensure!(vnodeops::taken(), "the slots are the originals'");
    let before = counter("calls_async");
    vm_object::drop_pages(file.object);
    good(fixture, file, 0, 4, 0, 0)?;
    ensure!(counter("calls_async") == before + 1, "not at work after a refused unload");
    Ok(())
}

fn refused(refusal: Result<(), i32>, cause: &str) -> Result<()> {
    ensure!(refusal == Err(libc::EBUSY), "{refusal:?}, not EBUSY");
    let said = systm::messages().pop().unwrap_or_default();
    ensure!(said.contains(cause), "the message does not name `{cause}`: {said}");
    Ok(())
}

/// The slots of a vop_vector that the module takes.
#[derive(Clone, Copy, Debug)]
enum Slot {
    Async,
    Sync,
    Bmap,
}

/// The pointers that are in the slots of FFS's second vector.
struct Loaded {
    getpages_async: Option<GetpagesAsyncFn>,
    getpages: Option<GetpagesFn>,
    bmap: Option<BmapFn>,
}

impl Loaded {
    fn now() -> Self {
        // SAFETY: lives for ever, and no other thread changes it now.
        let vector = unsafe { &*vnodeops::vectors()[1] };
        Self {
            getpages_async: vector.vop_getpages_async,
            getpages: vector.vop_getpages,
            bmap: vector.vop_bmap,
        }
    }
}

/// Call the VOP that was in a slot, as a thread does that has loaded
/// its pointer before the slot was given back. It reads from the disk.
fn call(file: &Arc<File>, loaded: &Loaded, slot: Slot) -> Result<()> {
    vm_object::drop_pages(file.object);
    file.maps.forget();
    let pages = grab(file, 0, 4);
    // SAFETY: lives for ever, and the scenario is its only user.
    let vector = unsafe { &mut *vnodeops::vectors()[1] };
    let code = match slot {
        Slot::Async => {
            let original = replace(&mut vector.vop_getpages_async, loaded.getpages_async);
            let outcome = getpages_async(file, &pages, 0, 0);
            vector.vop_getpages_async = original;
            outcome.code
        }
        Slot::Sync => {
            let _locked = VnodeLocked::new(file.vnode, false, "vm_fault");
            let original = replace(&mut vector.vop_getpages, loaded.getpages);
            let outcome = getpages(file, &pages, 0, 0, false);
            vector.vop_getpages = original;
            pages.iter().for_each(|page| page.unbusy("test"));
            outcome.code
        }
        Slot::Bmap => {
            pages.iter().for_each(|page| page.unbusy("test"));
            let original = replace(&mut vector.vop_bmap, loaded.bmap);
            let code = bmap(file, 20);
            vector.vop_bmap = original;
            code
        }
    };
    release(&pages);
    ensure!(code == 0, "{slot:?}: code {code}");
    Ok(())
}

/// A file with an indirect block.
fn file_of(fixture: &Fixture) -> Arc<File> {
    let map: Vec<_> = (10..40).map(Some).collect();
    fixture.synthetic(BLOCK, &map, 30 * BLOCK, true)
}

fn bmap(file: &Arc<File>, lbn: i64) -> i32 {
    let _locked = VnodeLocked::new(file.vnode, false, "VOP_READ");
    let mut place = -1;
    // SAFETY: a VOP's argument block, live for the call.
    unsafe {
        let mut ap: sys::vop_bmap_args = std::mem::zeroed();
        (ap.a_vp, ap.a_bn, ap.a_bnp) = (file.vnode, lbn, &mut place);
        vnode_if::vop_bmap_apv(std::ptr::null_mut(), &mut ap)
    }
}

/// A thread of the idle class that sleeps, and what `run` does when it is told to.
fn idle_thread<'s>(
    scope: &'s Scope<'s, '_>,
    run: impl FnOnce() -> Result<()> + Send + 's,
) -> Result<(Scheduled, mpsc::Sender<()>, mpsc::Receiver<Result<()>>)> {
    let ((tell_me, me), (go, told)) = (mpsc::channel(), mpsc::channel());
    let (tell_done, done) = mpsc::channel();
    scope.spawn(move || {
        proc::attach();
        let thread = Scheduled::me();
        thread.is(sys::TDS_INHIBITED);
        thread.idle_class(true);
        // After a failure the receiver is gone.
        let _ = tell_me.send(thread);
        if told.recv().is_ok() {
            let _ = tell_done.send(run());
            // It stays where it is until the scenario is over.
            let _ = told.recv();
        }
        thread.is(sys::TDS_INACTIVE);
    });
    Ok((me.recv()?, go, done))
}

fn snapshots(n: u32) -> impl FnMut() -> bool {
    let before = sx::LISTED.load(Ordering::Acquire);
    move || sx::LISTED.load(Ordering::Acquire) >= before + n
}

/// A thread of the idle class has loaded the pointer in a slot and does not run:
/// unloading waits for it, and not for ever.
fn unload_idle_entering(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    let file = file_of(fixture);
    for slot in [Slot::Async, Slot::Sync, Slot::Bmap] {
        reload_after_unload(fixture, ko)?;
        let loaded = Loaded::now();
        let this = &*fixture;
        std::thread::scope(|scope| {
            let (thread, go, done) = idle_thread(scope, || call(&file, &loaded, slot))?;
            thread.is(sys::TDS_RUNQ);

            clock::shorten_sleeps(true);
            let end = Unloading::begin(scope, module(this)?).end();
            clock::shorten_sleeps(false);
            refused(end?, &format!("thread {} of process 77 is in the idle class", thread.tid()))?;
            at_work(this, &file)?;

            let mut snapshot = snapshots(1);
            let unloading = Unloading::begin(scope, module(this)?);
            wait_until("the idle class is looked at", &mut snapshot)?;
            unloading.ensure_waits("a thread is about to enter")?;
            this.disk.behave(Behaviour { latency: LONG.into(), ..Behaviour::default() });
            thread.is(sys::TDS_RUNNING);
            go.send(())?;
            wait_until("the thread reads", || this.disk.waiting() > 0)?;
            thread.is(sys::TDS_INHIBITED);
            unloading.ensure_waits("what the thread reads is in flight")?;
            this.disk.complete_now();
            this.disk.behave(Behaviour::default());
            done.recv()??;
            let end = unloading.end()?;
            ensure!(end == Ok(()), "{slot:?}: {end:?}");
            anyhow::Ok(())
        })?;
        fixture.module = None;
    }
    reload(fixture, ko)
}

fn reload_after_unload(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    if let Some(module) = fixture.module.take() {
        module.unload().map_err(|errno| anyhow!("kldunload, errno {errno}"))?;
    }
    reload(fixture, ko)
}

/// A thread of the idle class has counted itself out and has not returned yet.
fn unload_idle_leaving(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    let file = file_of(fixture);
    fixture.disk.behave(Behaviour { latency: LONG.into(), ..Behaviour::default() });
    let this = &*fixture;
    std::thread::scope(|scope| {
        // It reads an indirect block, in VOP_BMAP.
        let (thread, go, done) = idle_thread(scope, || {
            file.maps.forget();
            let code = bmap(&file, 20);
            ensure!(code == 0, "VOP_BMAP: errno {code}");
            Ok(())
        })?;
        go.send(())?;
        wait_until("VOP_BMAP reads", || this.disk.waiting() > 0)?;
        // Two for each wait: before the pass, and after it.
        let (mut first, mut second) = (snapshots(2), snapshots(4));
        let unloading = Unloading::begin(scope, module(this)?);
        wait_until("the idle class is looked at", &mut first)?;
        thread.is(sys::TDS_RUNQ);
        this.disk.complete_now();
        done.recv()??;
        wait_until("the idle class is looked at again", &mut second)?;
        unloading.ensure_waits("a thread is about to return")?;
        thread.is(sys::TDS_INHIBITED);
        let end = unloading.end()?;
        ensure!(end == Ok(()), "{end:?}");
        anyhow::Ok(())
    })?;
    fixture.disk.behave(Behaviour::default());
    reload(fixture, ko)
}

/// A thread of the idle class that runs for ever, in user mode, and gets its
/// share of the CPU: unloading does not wait for its end.
fn unload_idle_runs(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    let (this, stop) = (&*fixture, &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let (thread, _go, _done) = idle_thread(scope, || Ok(()))?;
        scope.spawn(move || {
            let begin = Instant::now();
            while !stop.load(Ordering::Relaxed) && begin.elapsed() < LONG {
                for state in [sys::TDS_RUNNING, sys::TDS_RUNQ] {
                    thread.is(state);
                    std::thread::sleep(Duration::from_millis(5));
                }
                thread.switch();
            }
        });
        thread.is(sys::TDS_RUNNING);
        let end = Unloading::begin(scope, module(this)?).end();
        stop.store(true, Ordering::Relaxed);
        ensure!(end? == Ok(()), "unloading waits for a thread that runs");
        anyhow::Ok(())
    })?;
    reload(fixture, ko)
}

/// A real-time thread occupies a CPU: unloading is refused in bounded time, and
/// succeeds later.
fn unload_cpu_hog(fixture: &mut Fixture, ko: &Path) -> Result<()> {
    let file = file_of(fixture);
    let this = &*fixture;
    sched::HOG.store(1, Ordering::Release);
    clock::shorten_sleeps(true);
    let refusals = std::thread::scope(|scope| {
        let refusals = (|| {
            refused(Unloading::begin(scope, module(this)?).end()?, "CPU 1 did not run")?;
            at_work(this, &file)?;
            // The same pass is still stuck, and nothing is taken back meanwhile.
            let unloading = Unloading::begin(scope, module(this)?);
            let begin = Instant::now();
            while begin.elapsed() < SHORT {
                ensure!(vnodeops::taken(), "the slots are given back while a pass is stuck");
                std::thread::sleep(Duration::from_millis(1));
            }
            refused(unloading.end()?, "CPU 1 did not run")?;
            at_work(this, &file)
        })();
        // The scope cannot end before the threads do.
        sched::HOG.store(-1, Ordering::Release);
        refusals
    });
    clock::shorten_sleeps(false);
    refusals?;
    settle()?;
    reload_after_unload(fixture, ko)
}
