// SPDX-License-Identifier: BSD-2-Clause
//! Bufs: their locks and completion (buf(9), lockmgr(9)).

use std::{
    collections::BTreeMap,
    ffi::{CStr, c_char, c_int},
    mem::offset_of,
    sync::{Condvar, Mutex},
};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        rules::{record, rule},
        sleep, witness,
    },
    host::{memory, schedule},
    kernel::pcpu,
};

/// Bytes of the largest transfer.
pub const MAXPHYS: usize = 1 << 20;
pub const SLOTS: usize = MAXPHYS / memory::PAGE + 1;

/// Bytes of a pbuf.
pub const PBUF_SIZE: usize = offset_of!(sys::buf, b_pages) + SLOTS * 8;

/// Bufs that exist, by the address of their locks.
static BUFS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());
static DONE: Condvar = Condvar::new();
static DONE_LOCK: Mutex<()> = Mutex::new(());

/// Bufs that exist.
pub fn bufs() -> usize {
    BUFS.lock().unwrap().len()
}

/// Bufs that are in use: they have a device.
pub fn out() -> usize {
    let bufs = BUFS.lock().unwrap();
    // SAFETY: bufs that exist; a pointer that is read whole.
    let busy = |bp: &&usize| unsafe {
        !(&raw const (*(**bp as *const sys::buf)).b_bufobj).read_volatile().is_null()
    };
    bufs.values().filter(busy).count()
}

fn buf_of(lock: *mut sys::lock) -> *mut sys::buf {
    (lock as usize - offset_of!(sys::buf, b_lock)) as *mut sys::buf
}

/// A buf's lock word is its thread's address, or one of these.
const KERNPROC: usize = usize::MAX;
const UNLOCKED: usize = 1;

/// `lockinit`: the module has no other lockmgr(9) locks than bufs'.
pub unsafe extern "C" fn lockinit(
    lock: *mut sys::lock,
    _: c_int,
    name: *const c_char,
    _: c_int,
    _: c_int,
) {
    let (call, bp) = ("lockinit", buf_of(lock));
    // SAFETY: a C string.
    witness::class(&unsafe { CStr::from_ptr(name) }.to_string_lossy(), "lockmgr");
    record(call, format_args!("buf {bp:?}"));
    // SAFETY: the caller's lock.
    unsafe { (*lock).lk_lock = UNLOCKED };
    let before = BUFS.lock().unwrap().insert(lock as usize, bp as usize);
    rule(call, before.is_none(), "initialized already");
}

/// `lockdestroy`: the buf is not one any more.
pub extern "C" fn lockdestroy(lock: *mut sys::lock) {
    let call = "lockdestroy";
    let bp = BUFS.lock().unwrap().remove(&(lock as usize));
    rule(call, bp.is_some(), "not a live lock");
    // SAFETY: the caller's buf.
    let buf = unsafe { &*buf_of(lock) };
    rule(call, buf.b_lock.lk_lock == UNLOCKED, "the lock is held");
    rule(call, buf.b_bufobj.is_null() && buf.b_vp.is_null(), "the buf is still in use");
    rule(call, buf.b_npages == 0, "the buf still has pages");
    rule(call, buf.b_rcred.is_null() && buf.b_wcred.is_null(), "the buf still has creds");
    let claimed = buf.b_runningbufspace == 0;
    rule(call, claimed, "runningbufspace is still claimed");
}

/// `__lockmgr_args`: BUF_LOCK() and BUF_UNLOCK().
pub extern "C" fn lockmgr(
    lock: *mut sys::lock,
    flags: c_int,
    _: *mut sys::lock_object,
    _: *const c_char,
    _: c_int,
    _: c_int,
    _: *const c_char,
    _: c_int,
) -> c_int {
    let (call, me) = ("lockmgr", pcpu::curthread() as usize);
    rule(call, BUFS.lock().unwrap().contains_key(&(lock as usize)), "not a live lock");
    // SAFETY: a live buf's lock.
    let word = unsafe { &mut (*lock).lk_lock };
    if flags & sys::LK_RELEASE != 0 {
        rule(call, *word == me || *word == KERNPROC, "another thread's lock is released");
        *word = UNLOCKED;
    } else {
        rule(call, flags & sys::LK_EXCLUSIVE != 0, "neither exclusive nor a release");
        rule(call, *word == UNLOCKED, "the buf is locked already");
        *word = me;
    }
    0
}

/// `pbgetbo`.
pub extern "C" fn pbgetbo(bo: *mut sys::bufobj, bp: *mut sys::buf) {
    // SAFETY: the caller's buf.
    let buf = unsafe { &mut *bp };
    rule("pbgetbo", buf.b_vp.is_null() && buf.b_bufobj.is_null(), "not free");
    buf.b_flags |= sys::B_PAGING as u32;
    buf.b_bufobj = bo;
}

/// `pbrelbo`.
pub extern "C" fn pbrelbo(bp: *mut sys::buf) {
    // SAFETY: the caller's buf.
    let buf = unsafe { &mut *bp };
    rule("pbrelbo", buf.b_vp.is_null(), "b_vp is set");
    rule("pbrelbo", !buf.b_bufobj.is_null(), "there is no bufobj");
    buf.b_bufobj = std::ptr::null_mut();
    buf.b_flags &= !(sys::B_PAGING as u32);
}

/// The calling thread is on its way back to its program: it must not keep a
/// buf's lock (userret(), WITNESS).
pub fn none_locked(call: &str) {
    let me = pcpu::curthread() as usize;
    let bufs = BUFS.lock().unwrap();
    // SAFETY: bufs that exist; another thread's lock word is its own address,
    // whatever else it writes meanwhile.
    let mine = bufs.keys().find(|lock| unsafe {
        (&raw const (*(**lock as *const sys::lock)).lk_lock).read_volatile() == me
    });
    rule(call, mine.is_none(), format_args!("returning with the lock {mine:?} of a buf"));
}

/// Whether the buf's lock belongs to the kernel and not to a thread.
pub fn is_disowned(bp: *mut sys::buf) -> bool {
    // SAFETY: a live buf; for the testbed lk_lock says no more than this.
    unsafe { (*bp).b_lock.lk_lock == KERNPROC }
}

/// `_lockmgr_disown`: BUF_KERNPROC().
pub extern "C" fn lockmgr_disown(lock: *mut sys::lock, _: *const c_char, _: c_int) {
    // SAFETY: a live buf's lock.
    unsafe { (*lock).lk_lock = KERNPROC };
}

/// `bdone`.
pub unsafe extern "C" fn bdone(bp: *mut sys::buf) {
    let _guard = DONE_LOCK.lock().unwrap();
    // SAFETY: a completed buf.
    unsafe { (*bp).b_flags |= sys::B_DONE as u32 };
    DONE.notify_all();
}

/// `bwait`.
pub extern "C" fn bwait(bp: *mut sys::buf, _: u8, _: *const c_char) {
    sleep::waits("bwait");
    let mut guard = DONE_LOCK.lock().unwrap();
    // SAFETY: the caller waits for its own buf.
    while unsafe { (&raw const (*bp).b_flags).read_volatile() } & sys::B_DONE as u32 == 0 {
        drop(guard);
        let pumped = schedule::pump();
        guard = DONE_LOCK.lock().unwrap();
        if !pumped {
            guard = DONE.wait_timeout(guard, std::time::Duration::from_millis(50)).unwrap().0;
        }
    }
}
