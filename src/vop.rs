// SPDX-License-Identifier: BSD-2-Clause
//! The VOPs' entry points, and how they get into FFS's vop_vectors and out again.

use core::{
    ffi::{c_int, c_void},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    drain,
    kpi::{
        errno::Errno,
        getpages::{self, Getpages},
        proc::{self, Threads},
        sys,
        vm_pager::PagerError,
        vnode::Vnode,
        vnode_if::{self, Bmap, BmapFn, GetpagesAsyncFn, GetpagesFn, Slot, Vector, Which},
    },
    kprintln,
    pager::{self, deferred, request::Answer, worker},
    readahead, stats,
};

static VECTORS: [Vector; 2] = [Vector::new(Which::Ffs1), Vector::new(Which::Ffs2)];

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

fn async_entry() -> *mut c_void {
    getpages_async as GetpagesAsyncFn as *mut c_void
}

fn sync_entry() -> *mut c_void {
    getpages as GetpagesFn as *mut c_void
}

fn bmap_entry() -> *mut c_void {
    bmap as BmapFn as *mut c_void
}

fn vector_of(vnode: Vnode<'_>) -> Option<&'static Vector> {
    VECTORS.iter().find(|vector| vector.is_of(vnode))
}

/// A thread inside the module; leaving is dropping it.
struct Inside;

impl Inside {
    fn enter() -> Self {
        stats::INSIDE.enter();
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        stats::INSIDE.leave();
    }
}

/// VOP_GETPAGES_ASYNC(9) of FFS.
///
/// # Safety
///
/// Called through a vop_vector only, with the vnode locked and its object not.
unsafe extern "C" fn getpages_async(ap: *mut sys::vop_getpages_async_args) -> c_int {
    let _inside = Inside::enter();
    if ap.is_null() {
        return sys::VM_PAGER_ERROR;
    }
    // SAFETY: the kernel's argument block, ours for the call. Nobody else has
    // the duty to call a_iodone until it is passed on below.
    let Some(vop) = (unsafe { Getpages::from_async(&mut *ap) }) else {
        return sys::VM_PAGER_ERROR;
    };
    proc::trust_td_sa();
    let vector = vector_of(vop.vnode);
    let promised = PROMISED.forget();
    let mut miss = None;
    let answer = match vector {
        Some(_) if promised || ENABLED.load(Ordering::Relaxed) => {
            stats::CALLS_ASYNC.add(1);
            pager::getpages(vop, promised, &mut miss)
        }
        _ => Answer::Original(vop),
    };
    if let Some(miss) = &miss {
        readahead::missed(miss);
    }
    let vector = vector.unwrap_or(&VECTORS[1]);
    match answer {
        Answer::Done(result) => code(result),
        Answer::Original(vop) => {
            vop.reply.pass_on();
            stats::CALLS_ORIGINAL.add(1);
            // SAFETY: unanswered; the reply's duty has just been passed on.
            unsafe { vector.original_async(ap) }.unwrap_or(sys::VM_PAGER_ERROR)
        }
        Answer::Emulate(vop) => {
            stats::CALLS_EMULATED.add(1);
            // SAFETY: unanswered; the sync VOP does not know of iodone.
            let result = unsafe { vector.original_sync(&mut getpages::sync_args(&*ap)) }
                .map_or(Err(PagerError::Error), PagerError::check);
            vop.reply.send(result.map_err(PagerError::errno));
            code(result)
        }
    }
}

/// VOP_GETPAGES(9) of FFS, when `vfs.asyncpager.sync` is on.
///
/// # Safety
///
/// Called through a vop_vector only, with the vnode locked and its object not.
unsafe extern "C" fn getpages(ap: *mut sys::vop_getpages_args) -> c_int {
    let _inside = Inside::enter();
    if ap.is_null() {
        return sys::VM_PAGER_ERROR;
    }
    // SAFETY: the kernel's argument block, ours for the call.
    let Some(vop) = (unsafe { Getpages::from_sync(&mut *ap) }) else {
        return sys::VM_PAGER_ERROR;
    };
    let vector = vector_of(vop.vnode);
    let answer = match vector {
        Some(_) if ENABLED.load(Ordering::Relaxed) => {
            stats::CALLS_SYNC.add(1);
            pager::getpages(vop, false, &mut None)
        }
        _ => Answer::Original(vop),
    };
    match answer {
        Answer::Done(result) => code(result),
        Answer::Original(_) | Answer::Emulate(_) => {
            stats::CALLS_ORIGINAL.add(1);
            // SAFETY: unanswered.
            unsafe { vector.unwrap_or(&VECTORS[1]).original_sync(ap) }
                .unwrap_or(sys::VM_PAGER_ERROR)
        }
    }
}

/// VOP_BMAP(9) of FFS: the original, but for sendfile(2) when it would have to
/// wait for an indirect block.
///
/// # Safety
///
/// Called through a vop_vector only, with the vnode locked.
unsafe extern "C" fn bmap(ap: *mut sys::vop_bmap_args) -> c_int {
    let _inside = Inside::enter();
    if ap.is_null() {
        return sys::EINVAL;
    }
    // SAFETY: the kernel's argument block, ours for the call.
    let (call, vnode) = unsafe { (Bmap::from_args(&mut *ap), vnode_if::vnode_of(&*ap)) };
    if let Some(call) = call
        && MAP.load(Ordering::Relaxed)
        && ENABLED.load(Ordering::Relaxed)
        && proc::in_sendfile()
        // Who needs the map next finds it in memory only if read-ahead brings it.
        && readahead::ENABLED.load(Ordering::Relaxed)
        && let Some(pages) = deferred::promise(&call)
        && PROMISED.note()
    {
        // Noted first: who has seen the switch off counts this thread.
        if PROMISING.load(Ordering::SeqCst) {
            return call.promise(pages).code();
        }
        PROMISED.forget();
    }
    let vector = vnode.and_then(vector_of).unwrap_or(&VECTORS[1]);
    // SAFETY: unanswered.
    unsafe { vector.original_bmap(ap) }.unwrap_or(sys::EOPNOTSUPP)
}

fn code(result: Result<(), PagerError>) -> c_int {
    result.map_or_else(PagerError::code, |()| sys::VM_PAGER_OK)
}

/// Who changes the slots does it alone; the other is told EBUSY.
fn changing<T>(change: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    if CHANGING.swap(true, Ordering::Acquire) {
        return Err(Errno::EBUSY);
    }
    let result = change();
    CHANGING.store(false, Ordering::Release);
    result
}

/// Take the slots over, the sync ones as the switch says.
pub fn take() -> Result<(), Errno> {
    changing(|| {
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
    changing(|| {
        SYNC.store(on, Ordering::Relaxed);
        if TAKEN.load(Ordering::Relaxed) { apply() } else { Ok(()) }
    })
}

fn apply() -> Result<(), Errno> {
    let mut result = Ok(());
    for vector in &VECTORS {
        vector.take(Slot::Async, async_entry());
        // A promise is only for the async slot to keep.
        vector.take(Slot::Bmap, bmap_entry());
        if sync() {
            vector.take(Slot::Sync, sync_entry());
        } else if !vector.restore(Slot::Sync, sync_entry()) {
            result = Err(Errno::EBUSY);
        }
    }
    result
}

/// Put the originals back and wait until no thread can be inside any more. On
/// an error everything is at work again.
pub fn restore() -> Result<(), Errno> {
    changing(|| {
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
    put_back(Slot::Bmap, bmap_entry())?;
    drain::outlast("promised runs", || PROMISED.count() as u64)?;
    put_back(Slot::Sync, sync_entry())?;
    put_back(Slot::Async, async_entry())?;
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
fn put_back(slot: Slot, ours: *mut c_void) -> Result<(), Errno> {
    // Each of them, whatever became of the one before.
    if VECTORS.iter().filter(|vector| !vector.restore(slot, ours)).count() == 0 {
        return Ok(());
    }
    kprintln!("somebody else has replaced getpages or bmap since: unload that first");
    Err(Errno::EBUSY)
}

/// After a failed [`give_back`]: only what is the original now is taken again,
/// so that whoever replaced ours keeps calling it.
fn take_again() {
    for vector in &VECTORS {
        vector.take_if_original(Slot::Async, async_entry());
        vector.take_if_original(Slot::Bmap, bmap_entry());
        if sync() {
            vector.take_if_original(Slot::Sync, sync_entry());
        }
    }
}
