// SPDX-License-Identifier: BSD-2-Clause
//! The time since boot. With one thread it is virtual and repeats itself.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use asyncpager::kpi::sys;

/// One second as sbintime_t has it.
pub const SECOND: i64 = 1 << 32;

/// A timeout that is spent in small steps: a pause of the whole host counts as one
/// step.
pub struct Patience(u32);

impl Patience {
    /// One step.
    pub const STEP: Duration = Duration::from_millis(50);

    /// A timeout of `n` seconds.
    pub const fn seconds(n: u32) -> Self {
        Self(n * 20)
    }

    /// Spend a step; false when none is left.
    pub fn spend(&mut self) -> bool {
        self.0 = self.0.saturating_sub(1);
        self.0 > 0
    }
}

/// By this factor a sleep is shorter while [`shorten_sleeps`] is on.
const SHORTER: i64 = 100;

static SHORTENED: AtomicBool = AtomicBool::new(false);

/// Time that shortened sleeps have left out.
static LEFT_OUT: AtomicI64 = AtomicI64::new(0);

/// Shortens all sleeps of pause(9), while the time since boot goes on as if they had
/// been of full length: timeouts are over soon.
pub fn shorten_sleeps(on: bool) {
    SHORTENED.store(on, Ordering::Release);
}

/// pause_sbt(9) of a thread of the host.
pub fn sleep(time: i64) {
    if SHORTENED.load(Ordering::Acquire) {
        std::thread::sleep(to_duration(time / SHORTER));
        LEFT_OUT.fetch_add(time - time / SHORTER, Ordering::AcqRel);
    } else {
        std::thread::sleep(to_duration(time));
    }
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static VIRTUAL: AtomicBool = AtomicBool::new(false);
static NOW: AtomicI64 = AtomicI64::new(SECOND);

/// From now on time is virtual, or real.
pub fn begin(virtual_time: bool) {
    VIRTUAL.store(virtual_time, Ordering::Release);
    NOW.store(SECOND, Ordering::Release);
}

/// sbinuptime(): the time now.
pub fn now() -> i64 {
    if VIRTUAL.load(Ordering::Acquire) {
        // A loop that polls the time must come to an end.
        return NOW.fetch_add(SECOND >> 20, Ordering::AcqRel);
    }
    SECOND + from_duration(START.elapsed()) + LEFT_OUT.load(Ordering::Acquire)
}

/// A step of some thread has taken its time.
pub fn tick() {
    NOW.fetch_add(SECOND >> 16, Ordering::AcqRel);
}

/// No thread has anything to do until `time`.
pub fn advance_to(time: i64) {
    NOW.fetch_max(time, Ordering::AcqRel);
}

/// A duration as sbintime_t.
pub fn from_duration(time: Duration) -> i64 {
    ((time.as_nanos() << 32) / 1_000_000_000) as i64
}

/// An sbintime_t as a duration; nothing when it is over.
pub fn to_duration(time: i64) -> Duration {
    Duration::from_nanos(((time.max(0) as u128 * 1_000_000_000) >> 32) as u64)
}

/// `binuptime`, which sbinuptime() reads.
pub unsafe extern "C" fn binuptime(to: *mut sys::bintime) {
    let now = now();
    // SAFETY: the caller's place.
    unsafe {
        (*to).sec = now >> 32;
        (*to).frac = (now as u64) << 32;
    }
}

/// `getbinuptime`, which getsbinuptime() reads: as of the last tick of 1/1000 s.
pub unsafe extern "C" fn getbinuptime(to: *mut sys::bintime) {
    let now = now();
    let now = now - now % (SECOND / 1000);
    // SAFETY: the caller's place.
    unsafe {
        (*to).sec = now >> 32;
        (*to).frac = (now as u64) << 32;
    }
}
