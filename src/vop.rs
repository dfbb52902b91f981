// SPDX-License-Identifier: BSD-2-Clause
//! The VOPs, and how they get into the vop_vectors and out again.

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

/// `vfs.asyncpager.enabled`: off, every call goes to the original VOP.
pub static ENABLED: AtomicBool = AtomicBool::new(true);

/// `vfs.asyncpager.sync`: whether VOP_GETPAGES is to be served as well.
static SYNC: AtomicBool = AtomicBool::new(false);

/// `vfs.asyncpager.map`: whether sendfile(2) is spared the block map.
pub static MAP: AtomicBool = AtomicBool::new(true);

/// Threads that were promised a run by our VOP_BMAP and are about to call
/// VOP_GETPAGES_ASYNC with it: nobody else may serve that call.
static PROMISED: Threads<64> = Threads::new();

/// Whether promises may be made: no more, once somebody waits for the last.
static PROMISING: AtomicBool = AtomicBool::new(false);

/// Whether the slots are meant to be ours, and who is just changing them.
static TAKEN: AtomicBool = AtomicBool::new(false);
static CHANGING: AtomicBool = AtomicBool::new(false);

/// The VOPs of the module.
struct Vops;

/// A thread in one of the module's VOPs; leaving is dropping it.
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

    /// The original's answer, except that sendfile(2) does not wait for an
    /// indirect block.
    fn bmap(call: Bmap<'_>) -> Option<Errno> {
        let switched_on = MAP.load(Ordering::Relaxed)
            && ENABLED.load(Ordering::Relaxed)
            // A later call finds the map in memory only if read-ahead brings it there.
            && readahead::ENABLED.load(Ordering::Relaxed);
        if !switched_on || !proc::in_sendfile() {
            return None;
        }
        let pages = deferred::promise(&call)?;
        if !PROMISED.note() {
            return None;
        }
        // Noted first: unloading clears the switch, and then counts this thread.
        if PROMISING.load(Ordering::SeqCst) {
            return Some(call.promise(pages));
        }
        PROMISED.forget();
        None
    }
}

/// Count a call that another VOP is to serve.
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

/// Serializes changes to the slots. Sleeps while another thread changes them;
/// unless the caller is `patient`, it gets EBUSY.
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

/// Take the slots over, the sync ones as the switch says.
pub fn take() -> Result<(), Errno> {
    changing(true, || {
        TAKEN.store(true, Ordering::Relaxed);
        PROMISING.store(true, Ordering::SeqCst);
        apply()
    })
}

/// Whether VOP_GETPAGES is to be served as well.
pub fn sync() -> bool {
    SYNC.load(Ordering::Relaxed)
}

/// Change the wish about the sync slots, and the slots with it.
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
        // A promise is only for the async slot to keep.
        vector.take(Slot::Bmap, entry(Slot::Bmap));
        if sync() {
            vector.take(Slot::Sync, entry(Slot::Sync));
        } else if !vector.restore(Slot::Sync, entry(Slot::Sync)) {
            result = Err(Errno::EBUSY);
        }
    }
    result
}

/// Put the originals back and wait until no thread can be inside any more. On
/// an error everything is at work again.
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
    // The set of promises can only shrink from here on: a thread that enters our
    // VOP_BMAP later finds the switch off and makes none.
    PROMISING.store(false, Ordering::SeqCst);
    put_back(Slot::Bmap)?;
    drain::outlast("promised runs", || PROMISED.count() as u64)?;
    put_back(Slot::Sync)?;
    put_back(Slot::Async)?;
    // A thread that loaded a pointer and has not entered yet, enters now.
    drain::outlast_threads()?;
    drain::outlast("threads", || stats::INSIDE.now())?;
    readahead::stop();
    drain::outlast("read-ahead threads", readahead::at_work)?;
    drain::outlast("bufs", || stats::IN_FLIGHT.now() as u64)?;
    readahead::drain();
    worker::drain();
    // A thread that has left the count returns through our code now.
    drain::outlast_threads()
}

/// Put the original back into a slot of all vectors.
fn put_back(slot: Slot) -> Result<(), Errno> {
    // Each of them, whatever became of the one before.
    if fs::vectors().iter().filter(|vector| !vector.restore(slot, entry(slot))).count() == 0 {
        return Ok(());
    }
    kprintln!("somebody else has replaced getpages or bmap since: unload that first");
    Err(Errno::EBUSY)
}

/// After a failed [`give_back`]: only what is the original now is taken again,
/// so that whoever replaced ours keeps calling it.
fn take_again() {
    for vector in fs::vectors() {
        for slot in [Slot::Async, Slot::Bmap, Slot::Sync] {
            if slot != Slot::Sync || sync() {
                vector.take_if_original(slot, entry(slot));
            }
        }
    }
}
