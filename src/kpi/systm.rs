// SPDX-License-Identifier: BSD-2-Clause
//! printf(9), panic(9), pause(9), the clock, free memory, and a rate limit for
//! messages.

use core::{
    ffi::c_char,
    fmt::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use super::sys;

/// A NUL-terminated line of text of bounded length. Longer text is cut off.
///
/// # Invariants
///
/// `len < N`, and all bytes from `len` on are 0.
pub struct Line<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Line<N> {
    /// The text of `args`.
    pub fn new(args: fmt::Arguments<'_>) -> Self {
        let mut line = Self { bytes: [0; N], len: 0 };
        // Truncation is the only error, and a truncated line is better than
        // none.
        let _ = line.write_fmt(args);
        line
    }

    fn as_ptr(&self) -> *const c_char {
        self.bytes.as_ptr().cast()
    }
}

impl<const N: usize> Write for Line<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = N.saturating_sub(1).saturating_sub(self.len);
        let take = room.min(s.len());
        let end = self.len.saturating_add(take);
        if let (Some(to), Some(from)) =
            (self.bytes.get_mut(self.len..end), s.as_bytes().get(..take))
        {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            self.len = end;
        }
        if take == s.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// Prints one line on the console and into the message buffer.
pub fn print(args: fmt::Arguments<'_>) {
    let line = Line::<256>::new(format_args!("asyncpager: {args}\n"));
    // SAFETY: both are NUL-terminated, and "%s" takes exactly one string.
    unsafe { sys::printf(c"%s".as_ptr(), line.as_ptr()) };
}

/// Prints one line with printf(9), prefixed with the module's name.
#[macro_export]
macro_rules! kprintln {
    ($($arg:tt)*) => { $crate::kpi::systm::print(format_args!($($arg)*)) };
}

/// panic(9). Nothing on the I/O path calls this.
pub fn panic(args: fmt::Arguments<'_>) -> ! {
    let line = Line::<256>::new(args);
    // SAFETY: both are NUL-terminated; panic(9) does not return.
    unsafe { sys::panic(c"%s".as_ptr(), line.as_ptr()) };
    #[allow(unreachable_code)]
    loop {
        core::hint::spin_loop();
    }
}

/// Limits the messages in a second (ppsratecheck(9)).
///
/// # Invariants
///
/// Only the thread that has set `busy` accesses `last` and `count`.
pub struct RateLimit {
    busy: AtomicBool,
    last: core::cell::UnsafeCell<sys::timeval>,
    count: core::cell::UnsafeCell<core::ffi::c_int>,
    per_second: core::ffi::c_int,
}

// SAFETY: `busy` serializes all access to the cells.
unsafe impl Sync for RateLimit {}

impl RateLimit {
    /// At most `per_second` messages in a second.
    pub const fn new(per_second: core::ffi::c_int) -> Self {
        Self {
            busy: AtomicBool::new(false),
            last: core::cell::UnsafeCell::new(sys::timeval { tv_sec: 0, tv_usec: 0 }),
            count: core::cell::UnsafeCell::new(0),
            per_second,
        }
    }

    /// Whether a message may be printed now. Never waits: a thread that finds
    /// the limit in use counts as over it.
    pub fn pass(&self) -> bool {
        if self.busy.swap(true, Ordering::Acquire) {
            return false;
        }
        // SAFETY: this thread has set `busy`, so it owns both cells.
        let pass =
            unsafe { sys::eventratecheck(self.last.get(), self.count.get(), self.per_second) };
        self.busy.store(false, Ordering::Release);
        pass != 0
    }
}

/// Sleeps for about `milliseconds`. Sleeps: yes.
pub fn pause(milliseconds: u32) {
    let sbt = i64::from(milliseconds) * ((1i64 << 32) / 1000);
    // SAFETY: only module events call this, and they may sleep. The flags are
    // 0: no alignment to hardclock.
    unsafe { sys::pause_sbt(c"appaus".as_ptr(), sbt, 0, 0) };
}

/// Microseconds since boot.
pub fn uptime_us() -> u64 {
    // SAFETY: reads the clock.
    unsafe { sys::shim_uptime_us() }
}

/// Free pages, and the page daemon's thresholds.
pub fn free_pages() -> Free {
    // SAFETY: reads counters that always exist.
    unsafe {
        Free {
            count: sys::vm_free_count(),
            target: sys::shim_free_target(),
            min: sys::shim_free_min(),
        }
    }
}

/// See [`free_pages`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Free {
    /// Free pages.
    pub count: u32,
    /// v_free_target: the page daemon works until this many pages are free.
    pub target: u32,
    /// v_free_min: below this many, ordinary allocations fail or wait.
    pub min: u32,
}
