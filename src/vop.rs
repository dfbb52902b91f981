// SPDX-License-Identifier: BSD-2-Clause
//! The module's VOPs, and their installation in the vop_vectors and removal.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::{
    drain, fs,
    kpi::{
        errno::Errno,
        getpages::{Answer, Getpages},
        proc::{self, Threads},
        systm,
        vnode_if::{self, Bmap, Operations, Slot, Vector},
    },
    kprintln,
    pager::{self, deferred, worker},
    readahead, stats,
};

/// `vfs.asyncpager.enabled`: when off, every call goes to the original VOP.
pub static ENABLED: AtomicBool = AtomicBool::new(true);

/// `vfs.asyncpager.sync`: whether the module serves VOP_GETPAGES too.
static SYNC: AtomicBool = AtomicBool::new(false);

/// `vfs.asyncpager.map`: whether VOP_BMAP promises sendfile(2) a run when the
/// block map is not in memory.
pub static MAP: AtomicBool = AtomicBool::new(true);

/// Threads with a promised run: our VOP_BMAP has answered them, and they are
/// about to call VOP_GETPAGES_ASYNC with that run. Only the module can serve
/// that call.
static PROMISED: Threads<64> = Threads::new();

/// Cleared when unloading starts, so that the set of promised runs can only
/// shrink.
static PROMISING: AtomicBool = AtomicBool::new(false);

/// Whether the module has taken the slots.
static TAKEN: AtomicBool = AtomicBool::new(false);
/// Set while a thread changes the slots.
static CHANGING: AtomicBool = AtomicBool::new(false);

/// The module's VOPs.
struct Vops;

/// A thread inside one of the module's VOPs. Dropping it leaves.
struct Inside;

impl Drop for Inside {
    fn drop(&mut self) {
        stats::INSIDE.leave();
    }
}

impl Operations for Vops {
    type Inside = Inside;

    fn enter() -> Inside {
        stats::INSIDE.enter();
        Inside
    }

    fn vectors() -> &'static [&'static Vector] {
        fs::vectors()
    }

    fn getpages_async(call: Getpages<'_>) -> Answer<'_> {
        proc::trust_td_sa();
        let promised = PROMISED.forget();
        let known = Self::vector_of(call.vnode).is_some();
        if !known || !(promised || ENABLED.load(Ordering::Relaxed)) {
            return passed_on(Answer::Original(call));
        }
        stats::CALLS_ASYNC.add(1);
        let mut miss = None;
        let answer = pager::getpages(call, promised, &mut miss);
        if let Some(miss) = &miss {
            readahead::missed(miss);
        }
        passed_on(answer)
    }

    fn getpages(call: Getpages<'_>) -> Answer<'_> {
        if Self::vector_of(call.vnode).is_none() || !ENABLED.load(Ordering::Relaxed) {
            return passed_on(Answer::Original(call));
        }
        stats::CALLS_SYNC.add(1);
        match pager::getpages(call, false, &mut None) {
            Answer::Emulate(call) => passed_on(Answer::Original(call)),
            answer => passed_on(answer),
        }
    }

    /// Leaves the call to the original, unless sendfile(2) would wait for an
    /// indirect block: then it promises a run.
    fn bmap(call: Bmap<'_>) -> Option<Errno> {
        let switched_on = MAP.load(Ordering::Relaxed)
            && ENABLED.load(Ordering::Relaxed)
            // Only read-ahead brings the map into memory for a later call.
            && readahead::ENABLED.load(Ordering::Relaxed);
        if !switched_on || !proc::in_sendfile() {
            return None;
        }
        let pages = deferred::promise(&call)?;
        if !PROMISED.note() {
            return None;
        }
        // The thread is in the set before this check. Unloading first clears
        // PROMISING, and then counts the set.
        if PROMISING.load(Ordering::SeqCst) {
            return Some(call.promise(pages));
        }
        PROMISED.forget();
        None
    }
}

/// Counts a call that another VOP is to serve.
fn passed_on(answer: Answer<'_>) -> Answer<'_> {
    match answer {
        Answer::Done(_) => {}
        Answer::Original(_) => stats::CALLS_ORIGINAL.add(1),
        Answer::Emulate(_) => stats::CALLS_EMULATED.add(1),
    }
    answer
}

fn entry(slot: Slot) -> vnode_if::Entry {
    vnode_if::entry::<Vops>(slot)
}

/// Serializes changes to the slots. Sleeps: while another thread changes them,
/// when `patient`. Errors: EBUSY when another thread changes them and the
/// caller is not `patient`; those of `change`.
fn changing<T>(patient: bool, change: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    while CHANGING.swap(true, Ordering::Acquire) {
        if !patient {
            return Err(Errno::EBUSY);
        }
        systm::pause(1);
    }
    let result = change();
    CHANGING.store(false, Ordering::Release);
    result
}

/// Takes the slots; the sync ones only when `vfs.asyncpager.sync` is on.
/// Sleeps: yes. Errors: EBUSY when another module has replaced a sync slot.
pub fn take() -> Result<(), Errno> {
    changing(true, || {
        TAKEN.store(true, Ordering::Relaxed);
        PROMISING.store(true, Ordering::SeqCst);
        apply()
    })
}

/// Whether the module serves VOP_GETPAGES too.
pub fn sync() -> bool {
    SYNC.load(Ordering::Relaxed)
}

/// Sets `vfs.asyncpager.sync`, and takes or restores the sync slots. Sleeps:
/// no. Errors: EBUSY when another thread changes the slots, or another module
/// has replaced one.
pub fn set_sync(on: bool) -> Result<(), Errno> {
    changing(false, || {
        SYNC.store(on, Ordering::Relaxed);
        if TAKEN.load(Ordering::Relaxed) { apply() } else { Ok(()) }
    })
}

fn apply() -> Result<(), Errno> {
    let mut result = Ok(());
    for vector in fs::vectors() {
        vector.take(Slot::Async, entry(Slot::Async));
        // The async slot must be taken before the module promises a run, which
        // it then serves.
        vector.take(Slot::Bmap, entry(Slot::Bmap));
        if sync() {
            vector.take(Slot::Sync, entry(Slot::Sync));
        } else if !vector.restore(Slot::Sync, entry(Slot::Sync)) {
            result = Err(Errno::EBUSY);
        }
    }
    result
}

/// Restores the originals and waits until no thread executes the module's code.
/// On failure takes the slots again and resumes read-ahead. Sleeps: yes.
/// Errors: EBUSY.
pub fn restore() -> Result<(), Errno> {
    changing(true, || {
        let given = give_back();
        if given.is_err() {
            take_again();
            readahead::resume();
            PROMISING.store(true, Ordering::SeqCst);
        } else {
            TAKEN.store(false, Ordering::Relaxed);
        }
        given
    })
}

fn give_back() -> Result<(), Errno> {
    if !TAKEN.load(Ordering::Relaxed) {
        return Ok(());
    }
    drain::outlast_pass()?;
    // The set of promised runs can only shrink from here on: a thread that
    // enters our VOP_BMAP later sees the cleared switch.
    PROMISING.store(false, Ordering::SeqCst);
    put_back(Slot::Bmap)?;
    drain::outlast("promised runs", || PROMISED.count() as u64)?;
    put_back(Slot::Sync)?;
    put_back(Slot::Async)?;
    // A thread that has loaded a pointer and not counted itself in does so now.
    drain::outlast_threads()?;
    drain::outlast("threads", || stats::INSIDE.now())?;
    readahead::stop();
    drain::outlast("read-ahead threads", readahead::at_work)?;
    drain::outlast("bufs", || stats::IN_FLIGHT.now() as u64)?;
    readahead::drain();
    worker::drain();
    // A thread that has counted itself out returns from the module's code now.
    drain::outlast_threads()
}

/// Restores the original in a slot of all vectors. Errors: EBUSY when another
/// module has replaced one.
fn put_back(slot: Slot) -> Result<(), Errno> {
    // Restore all of them, even after a failure.
    if fs::vectors().iter().filter(|vector| !vector.restore(slot, entry(slot))).count() == 0 {
        return Ok(());
    }
    kprintln!("somebody else has replaced getpages or bmap since: unload that first");
    Err(Errno::EBUSY)
}

/// Takes the slots again after a failed [`give_back`], but only those that have
/// the original. A slot that another module has replaced stays as it is: that
/// module keeps calling ours.
fn take_again() {
    for vector in fs::vectors() {
        for slot in [Slot::Async, Slot::Bmap, Slot::Sync] {
            if slot != Slot::Sync || sync() {
                vector.take_if_original(slot, entry(slot));
            }
        }
    }
}
