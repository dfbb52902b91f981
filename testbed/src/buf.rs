// SPDX-License-Identifier: BSD-2-Clause
//! pbufs and their zone (vm/vm_pager.c, uma(9)), creds and runningbufspace.

use std::{
    ffi::{c_char, c_int, c_long, c_void},
    mem::offset_of,
    ptr,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
};

use asyncpager::kpi::sys;

use crate::{
    rules::{may_sleep, record, rule},
    vm,
};

/// Bytes of the largest transfer.
pub const MAXPHYS: usize = 1 << 20;
const SLOTS: usize = MAXPHYS / vm::PAGE + 1;
/// Bytes of a pbuf.
pub const PBUF_SIZE: usize = offset_of!(sys::buf, b_pages) + SLOTS * 8;

/// References that bufs hold on creds.
pub static CREDS: AtomicI64 = AtomicI64::new(0);
/// Allocations without waiting that still succeed; for tests.
pub static STOCK: AtomicUsize = AtomicUsize::new(usize::MAX);

/// After so many failures somebody gives a buf back: no shortage is for ever.
const PATIENCE: u64 = 16;

/// How often an allocation without waiting has failed.
pub static ALLOCS_FAILED: AtomicU64 = AtomicU64::new(0);

#[derive(Default)]
struct Zones {
    live: Vec<usize>,
    free: Vec<usize>,
    out: Vec<usize>,
    max: usize,
}

// SAFETY: plain addresses.
unsafe impl Send for Zones {}

static ZONES: Mutex<Zones> = Mutex::new(Zones { live: vec![], free: vec![], out: vec![], max: 0 });
static DONE: Condvar = Condvar::new();
static DONE_LOCK: Mutex<()> = Mutex::new(());

/// The bufs that are out of their zone.
pub fn out() -> usize {
    ZONES.lock().unwrap().out.len()
}

/// The zones that are alive.
pub fn zones() -> usize {
    ZONES.lock().unwrap().live.len()
}

/// `pbuf_zsecond_create`.
pub extern "C" fn pbuf_zsecond_create(_name: *const c_char, max: c_int) -> *mut c_void {
    may_sleep("pbuf_zsecond_create");
    let mut zones = ZONES.lock().unwrap();
    zones.max = max as usize;
    let zone = 0x1000 + zones.live.len();
    zones.live.push(zone);
    zone as *mut c_void
}

/// `uma_zone_set_max`.
pub extern "C" fn uma_zone_set_max(zone: *mut c_void, max: c_int) -> c_int {
    let mut zones = ZONES.lock().unwrap();
    rule("uma_zone_set_max", zones.live.contains(&(zone as usize)), "not a live zone");
    zones.max = max as usize;
    max
}

/// `uma_zdestroy`.
pub extern "C" fn uma_zdestroy(zone: *mut c_void) {
    may_sleep("uma_zdestroy");
    let mut zones = ZONES.lock().unwrap();
    rule(
        "uma_zdestroy",
        zones.out.is_empty(),
        format_args!("{} bufs are still out", zones.out.len()),
    );
    let at = zones.live.iter().position(|z| *z == zone as usize);
    rule("uma_zdestroy", at.is_some(), "not a live zone");
    at.map(|at| zones.live.remove(at));
}

/// `uma_zalloc_arg` of a pbuf, its constructor included.
pub extern "C" fn uma_zalloc_arg(zone: *mut c_void, _: *mut c_void, flags: c_int) -> *mut sys::buf {
    let call = "uma_zalloc";
    let mut zones = ZONES.lock().unwrap();
    rule(call, zones.live.contains(&(zone as usize)), "not a live zone");
    if flags & sys::M_WAITOK != 0 {
        may_sleep(call);
    } else {
        let left = STOCK.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| match n {
            usize::MAX => Some(n),
            n => n.checked_sub(1),
        });
        if left.is_err() || zones.out.len() >= zones.max {
            let failed = ALLOCS_FAILED.fetch_add(1, Ordering::Relaxed);
            if left.is_err() && failed % PATIENCE == PATIENCE - 1 {
                STOCK.fetch_add(1, Ordering::Relaxed);
            }
            return ptr::null_mut();
        }
    }
    let bp = zones.free.pop().map_or_else(
        || {
            let words = vec![0u64; PBUF_SIZE.div_ceil(8)].leak();
            let bp: *mut sys::buf = words.as_mut_ptr().cast();
            // SAFETY: fresh and large enough.
            unsafe {
                (*bp).b_kvabase =
                    vm::reserve(SLOTS, "a buf's memory that pmap_qenter() has not mapped").cast();
                (*bp).b_kvasize = (SLOTS * vm::PAGE) as c_int;
            }
            bp
        },
        |bp| bp as *mut sys::buf,
    );
    zones.out.push(bp as usize);
    record(call, format_args!("buf {bp:?}"));
    // SAFETY: nobody else has it.
    unsafe {
        let buf = &mut *bp;
        buf.b_vp = ptr::null_mut();
        buf.b_bufobj = ptr::null_mut();
        buf.b_rcred = ptr::null_mut();
        buf.b_wcred = ptr::null_mut();
        buf.b_data = buf.b_kvabase;
        buf.b_flags = sys::B_MAXPHYS as u32;
        buf.b_ioflags = 0;
        buf.b_iodone = None;
        buf.b_error = 0;
        // Locked by who allocates it.
        buf.b_lock.lk_lock = crate::cpu::curthread() as usize;
        // What the constructor leaves alone is whatever it was.
        buf.b_npages = 0x5a5a;
        buf.b_resid = 0x5a5a;
        buf.b_ckhash = 0x5a5a_5a5a_5a5a_5a5a;
        buf.b_fsprivate2 = 0x5a5a as *mut c_void;
    }
    bp
}

/// `uma_zfree_arg` of a pbuf, its destructor included.
pub extern "C" fn uma_zfree_arg(zone: *mut c_void, bp: *mut sys::buf, _: *mut c_void) {
    let call = "uma_zfree";
    let mut zones = ZONES.lock().unwrap();
    rule(call, zones.live.contains(&(zone as usize)), "not a live zone");
    let at = zones.out.iter().position(|b| *b == bp as usize);
    rule(call, at.is_some(), format_args!("buf {bp:?} is not out: freed twice?"));
    at.map(|at| zones.out.remove(at));
    record(call, format_args!("buf {bp:?}"));
    // SAFETY: it was out, so it is the caller's.
    let buf = unsafe { &mut *bp };
    rule(call, buf.b_vp.is_null(), "b_vp is set");
    rule(call, buf.b_bufobj.is_null(), "the buf still belongs to a bufobj");
    rule(call, buf.b_runningbufspace == 0, "runningbufspace is still claimed");
    for cred in [&mut buf.b_rcred, &mut buf.b_wcred] {
        if !cred.is_null() {
            CREDS.fetch_sub(1, Ordering::Relaxed);
            *cred = ptr::null_mut();
        }
    }
    zones.free.push(bp as usize);
}

/// `crhold`.
pub extern "C" fn crhold(cred: *mut sys::ucred) -> *mut sys::ucred {
    CREDS.fetch_add(1, Ordering::Relaxed);
    cred
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
    buf.b_bufobj = ptr::null_mut();
    buf.b_flags &= !(sys::B_PAGING as u32);
}

/// The calling thread is on its way back to its program: it must not keep a
/// buf's lock (userret(), WITNESS).
pub fn none_locked(call: &str) {
    let me = crate::cpu::curthread() as usize;
    let zones = ZONES.lock().unwrap();
    // SAFETY: bufs are never unmapped; another thread's lock word is its own
    // address, whatever else it writes meanwhile.
    let mine = zones.out.iter().find(|bp| unsafe {
        (&raw const (*(**bp as *const sys::buf)).b_lock.lk_lock).read_volatile() == me
    });
    rule(call, mine.is_none(), format_args!("returning with buf {mine:?} locked"));
}

/// Whether the buf's lock belongs to the kernel and not to a thread.
pub fn is_disowned(bp: *mut sys::buf) -> bool {
    // SAFETY: a live buf; for the testbed lk_lock says no more than this.
    unsafe { (*bp).b_lock.lk_lock == usize::MAX }
}

/// `_lockmgr_disown`: BUF_KERNPROC().
pub extern "C" fn lockmgr_disown(lock: *mut sys::lock, _: *const c_char, _: c_int) {
    // SAFETY: a live buf's lock.
    unsafe { (*lock).lk_lock = usize::MAX };
}

/// The kernel's `runningbufspace`.
pub fn running() -> &'static AtomicI64 {
    static PLACE: std::sync::LazyLock<usize> =
        std::sync::LazyLock::new(|| crate::low::zeroed::<c_long>() as usize);
    // SAFETY: a low variable that lives for ever.
    unsafe { AtomicI64::from_ptr(*PLACE as *mut i64) }
}

/// `runningbufwakeup`.
pub extern "C" fn runningbufwakeup(bp: *mut sys::buf) {
    // SAFETY: the caller's buf.
    let buf = unsafe { &mut *bp };
    let before = running().fetch_sub(i64::from(buf.b_runningbufspace), Ordering::AcqRel);
    rule("runningbufwakeup", before >= i64::from(buf.b_runningbufspace), "more than was claimed");
    buf.b_runningbufspace = 0;
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
    crate::disk::waits("bwait");
    let mut guard = DONE_LOCK.lock().unwrap();
    // SAFETY: the caller waits for its own buf.
    while unsafe { (&raw const (*bp).b_flags).read_volatile() } & sys::B_DONE as u32 == 0 {
        drop(guard);
        let pumped = crate::schedule::pump();
        guard = DONE_LOCK.lock().unwrap();
        if !pumped {
            guard = DONE.wait_timeout(guard, std::time::Duration::from_millis(50)).unwrap().0;
        }
    }
}
