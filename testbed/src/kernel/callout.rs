// SPDX-License-Identifier: BSD-2-Clause
//! callout(9): functions that a softclock thread runs when their time has come.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{c_int, c_void},
    ptr,
    sync::{
        Condvar, Mutex, Once,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        lookups,
        rules::{record, rule, violation},
        sleep::{may_sleep, run_as},
        witness,
    },
    host::{
        clock, schedule,
        thread::{self, Context},
    },
    kernel::{mutex, proc},
};

type Handler = unsafe extern "C" fn(*mut c_void);

#[derive(Clone, Copy)]
struct Callout {
    handler: Option<Handler>,
    arg: usize,
    time: i64,
    pending: bool,
    /// The thread that runs it now.
    running: Option<u64>,
    /// Stopped while the softclock thread waited for its mutex.
    cancelled: bool,
    started: bool,
    /// The mutex that is held around its handler.
    mutex: usize,
}

static CALLOUTS: Mutex<BTreeMap<usize, Callout>> = Mutex::new(BTreeMap::new());
static CHANGED: Condvar = Condvar::new();

/// The softclock thread begins no callout; [`CALLOUTS`] guards it.
static HELD: AtomicBool = AtomicBool::new(false);

/// Handlers that have returned.
static RAN: AtomicU64 = AtomicU64::new(0);
static LOOKED: Mutex<(usize, BTreeSet<usize>)> = Mutex::new((0, BTreeSet::new()));

/// The most pages that one handler has looked up since the last call, and the
/// objects that handlers have looked at.
pub fn looked() -> (usize, BTreeSet<usize>) {
    std::mem::take(&mut *LOOKED.lock().unwrap())
}

/// Nanoseconds that handlers took together, and the longest.
static TOOK: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Handlers that have returned since the last call, the time that they took together,
/// and the longest.
pub fn took() -> (u64, Duration, Duration) {
    static BEFORE: AtomicU64 = AtomicU64::new(0);
    let now = ran();
    let [all, longest] = [0, 1].map(|i| TOOK[i].swap(0, Ordering::Relaxed));
    let ran = now - BEFORE.swap(now, Ordering::Relaxed);
    (ran, Duration::from_nanos(all), Duration::from_nanos(longest))
}

/// How many handlers have come to their end.
pub fn ran() -> u64 {
    RAN.load(Ordering::Acquire)
}

/// Keeps the softclock thread busy elsewhere while `on`: pending callouts stay
/// pending. Waits for a handler that has begun.
pub fn hold(on: bool) {
    let mut all = CALLOUTS.lock().unwrap();
    HELD.store(on, Ordering::Relaxed);
    while on && all.values().any(|callout| callout.running.is_some()) {
        all = CHANGED.wait(all).unwrap();
    }
    CHANGED.notify_all();
}

/// Callouts that are pending or running.
pub fn active() -> usize {
    let all = CALLOUTS.lock().unwrap();
    all.values().filter(|callout| callout.pending || callout.running.is_some()).count()
}

/// The memory of all callouts is gone; none is active any more.
pub fn forget() {
    CALLOUTS.lock().unwrap().clear();
}

/// Whether a callout in this memory is pending, or runs in another thread.
pub fn active_within(memory: std::ops::Range<usize>) -> bool {
    let all = CALLOUTS.lock().unwrap();
    all.range(memory).any(|(_, callout)| {
        callout.pending || callout.running.is_some_and(|running| running != thread::number())
    })
}

fn next(all: &BTreeMap<usize, Callout>) -> Option<(i64, usize)> {
    all.iter().filter(|(_, c)| c.pending).map(|(at, c)| (c.time, *at)).min()
}

/// Callouts that are due.
pub fn due() -> usize {
    let now = clock::now();
    CALLOUTS.lock().unwrap().values().filter(|c| c.pending && c.time <= now).count()
}

/// Let virtual time pass until the next callout's; false when none is pending.
pub fn wait_for_next() -> bool {
    let next = next(&CALLOUTS.lock().unwrap());
    next.inspect(|(time, _)| clock::advance_to(*time)).is_some()
}

/// Run the callout that is due first, if one is.
pub fn run_one() -> bool {
    let (at, callout) = {
        let mut all = CALLOUTS.lock().unwrap();
        let Some((time, at)) = next(&all) else { return false };
        if time > clock::now() || HELD.load(Ordering::Relaxed) {
            return false;
        }
        let Some(callout) = all.get_mut(&at) else { return false };
        callout.pending = false;
        callout.running = Some(thread::number());
        (callout.cancelled, callout.started) = (false, false);
        // SAFETY: a callout stays where it is while it is pending.
        unsafe { (*(at as *mut sys::callout)).c_iflags &= !(sys::CALLOUT_PENDING as i16) };
        (at, *callout)
    };
    record("softclock", format_args!("callout {at:#x}"));
    lookups::begin();
    let begin = Instant::now();
    run_as(Context::Callout, "callout handler", || run(at, &callout));
    let took = begin.elapsed().as_nanos() as u64;
    TOOK[0].fetch_add(took, Ordering::Relaxed);
    TOOK[1].fetch_max(took, Ordering::Relaxed);
    let looked = lookups::end();
    {
        let mut all = LOOKED.lock().unwrap();
        all.0 = all.0.max(looked.values().sum());
        all.1.extend(looked.into_keys());
    }
    if let Some(callout) = CALLOUTS.lock().unwrap().get_mut(&at) {
        callout.running = None;
    }
    RAN.fetch_add(1, Ordering::Release);
    CHANGED.notify_all();
    true
}

fn run(at: usize, callout: &Callout) {
    let mutex = callout.mutex as *mut usize;
    if !mutex.is_null() {
        // SAFETY: a mutex outlives the callouts that name it.
        unsafe { mutex::mtx_lock(mutex, 0, ptr::null(), 0) };
    }
    let cancelled = {
        let mut all = CALLOUTS.lock().unwrap();
        all.get_mut(&at).is_none_or(|callout| {
            callout.started = true;
            callout.cancelled
        })
    };
    if let (Some(handler), false) = (callout.handler, cancelled) {
        // SAFETY: the handler and argument that were given together.
        unsafe { handler(callout.arg as *mut c_void) };
    }
    if !mutex.is_null() {
        // SAFETY: as above.
        unsafe { mutex::mtx_unlock(mutex, 0, ptr::null(), 0) };
    }
}

/// The softclock thread.
fn start_thread() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        std::thread::spawn(|| {
            proc::attach();
            loop {
                if !schedule::is_one_thread() && run_one() {
                    continue;
                }
                let all = CALLOUTS.lock().unwrap();
                let next = next(&all).filter(|_| !HELD.load(Ordering::Relaxed));
                let wait = next.map_or(Duration::from_millis(50), |(time, _)| {
                    clock::to_duration(time - clock::now()).min(Duration::from_millis(50))
                });
                drop(CHANGED.wait_timeout(all, wait).unwrap());
            }
        });
    });
}

fn init(call: &str, callout: *mut sys::callout, mutex: usize) {
    let new = Callout {
        handler: None,
        arg: 0,
        time: 0,
        pending: false,
        running: None,
        cancelled: false,
        started: false,
        mutex,
    };
    let before = CALLOUTS.lock().unwrap().insert(callout as usize, new);
    let active = before.is_some_and(|callout| callout.pending || callout.running.is_some());
    rule(call, !active, format_args!("{callout:?} is pending or running"));
    // SAFETY: the caller's callout.
    unsafe { callout.write_bytes(0, 1) };
    if !schedule::is_one_thread() {
        start_thread();
    }
}

/// `callout_init`.
pub extern "C" fn callout_init(callout: *mut sys::callout, mpsafe: c_int) {
    rule("callout_init", mpsafe != 0, "a callout that wants Giant");
    init("callout_init", callout, 0);
}

/// `_callout_init_lock`: callout_init_mtx() is what the testbed knows.
pub extern "C" fn callout_init_lock(
    callout: *mut sys::callout,
    lock: *mut sys::lock_object,
    flags: c_int,
) {
    let call = "callout_init_mtx";
    rule(call, flags == 0 && !lock.is_null(), "flags, or no lock: the testbed does not know that");
    init(call, callout, mutex::mtx_of(lock) as usize);
}

fn known<'a>(
    call: &str,
    all: &'a mut BTreeMap<usize, Callout>,
    callout: *mut sys::callout,
) -> &'a mut Callout {
    let Some(known) = all.get_mut(&(callout as usize)) else {
        violation(call, format_args!("{callout:?} is not an initialized callout"));
    };
    rule(
        call,
        known.mutex == 0 || witness::held(known.mutex) == Some(true),
        "the callout's mutex is not held",
    );
    known
}

/// `callout_reset_sbt_on`.
#[allow(clippy::too_many_arguments)] // the kernel's own
pub unsafe extern "C" fn callout_reset(
    callout: *mut sys::callout,
    sbt: i64,
    precision: i64,
    handler: Option<Handler>,
    arg: *mut c_void,
    _cpu: c_int,
    flags: c_int,
) -> c_int {
    let call = "callout_reset";
    rule(call, handler.is_some(), "no handler");
    rule(call, precision >= 0, "a negative precision");
    let absolute = flags & (sys::C_ABSOLUTE | sys::C_PRECALC) != 0;
    let time = if absolute { sbt } else { clock::now() + sbt.max(0) };
    record(
        call,
        format_args!("callout {callout:?} in {:?}", clock::to_duration(time - clock::now())),
    );
    let mut all = CALLOUTS.lock().unwrap();
    let known = known(call, &mut all, callout);
    let was_pending = std::mem::replace(&mut known.pending, true);
    let cancelled = known.mutex != 0 && known.running.is_some() && !known.started;
    if cancelled {
        known.cancelled = true;
    }
    (known.time, known.handler, known.arg) = (time, handler, arg as usize);
    // SAFETY: the caller's callout; CALLOUTS guards its flags.
    unsafe {
        (*callout).c_flags |= sys::CALLOUT_ACTIVE as i16;
        (*callout).c_iflags |= sys::CALLOUT_PENDING as i16;
        (*callout).c_time = time;
        (*callout).c_func = handler;
        (*callout).c_arg = arg;
    }
    CHANGED.notify_all();
    c_int::from(was_pending || cancelled)
}

/// `_callout_stop_safe`: callout_stop() and callout_drain().
pub unsafe extern "C" fn callout_stop(
    callout: *mut sys::callout,
    flags: c_int,
    drain: Option<Handler>,
) -> c_int {
    let drains = flags & sys::CS_DRAIN != 0;
    let call = if drains { "callout_drain" } else { "callout_stop" };
    rule(call, drain.is_none(), "callout_async_drain(): the testbed does not know that");
    record(call, format_args!("callout {callout:?}"));
    if drains {
        may_sleep(call);
    }
    let mut all = CALLOUTS.lock().unwrap();
    let first = if drains {
        // Draining takes the callout's mutex by itself, and is called without it.
        let Some(first) = all.get_mut(&(callout as usize)) else {
            violation(call, format_args!("{callout:?} is not an initialized callout"));
        };
        first
    } else {
        known(call, &mut all, callout)
    };
    let was_pending = std::mem::replace(&mut first.pending, false);
    let before_handler = first.mutex != 0 && first.running.is_some() && !first.started;
    first.cancelled |= before_handler;
    // SAFETY: the caller's callout; CALLOUTS guards its flags.
    unsafe {
        (*callout).c_flags &= !(sys::CALLOUT_ACTIVE as i16);
        (*callout).c_iflags &= !(sys::CALLOUT_PENDING as i16);
    }
    let running = |all: &BTreeMap<usize, Callout>| {
        all.get(&(callout as usize)).and_then(|callout| callout.running)
    };
    let mut ran = false;
    while let Some(by) = running(&all).filter(|_| drains) {
        rule(
            call,
            by != thread::number() || schedule::is_one_thread(),
            "draining a callout from its own handler",
        );
        ran = true;
        if schedule::is_one_thread() {
            // The handler is below on this very stack.
            violation(call, "draining a callout from its own handler");
        }
        all = CHANGED.wait(all).unwrap();
    }
    match running(&all) {
        _ if was_pending || before_handler => 1,
        Some(_) => 0,
        None if ran => 0,
        None => -1,
    }
}
