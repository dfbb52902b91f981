// SPDX-License-Identifier: BSD-2-Clause
//! The module's counters, which sysctl(8) shows below `vfs.asyncpager.stats`
//! and `vfs.asyncpager.readahead.stats`.

use core::{
    ffi::CStr,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::kpi::{
    counter::{Counter, Passage},
    errno::Errno,
    sysctl::{Context, Node},
};

macro_rules! counters {
    ($all:ident: $($(#[doc = $doc:literal])+ $name:ident, $sysctl:literal, $descr:literal;)+) => {
        $($(#[doc = $doc])+ pub static $name: Counter = Counter::new();)+

        static $all: &[(&Counter, &CStr, &CStr)] = &[$((&$name, $sysctl, $descr),)+];
    };
}

counters! {
    READAHEAD:
    /// Windows that threads have worked on, those cut short at once included.
    WINDOWS, c"windows", c"Windows read ahead of streams";
    /// Bufs sent for windows.
    WINDOW_BUFS, c"bufs", c"Bufs sent for windows";
    /// Pages read in windows.
    PAGES_WINDOW, c"pages", c"Pages read in windows";
    /// Window pages that the consumers of streams have used.
    PAGES_USED, c"used", c"Pages that consumers of followed streams have used";
    /// Pages that were read ahead and were gone when they were needed.
    PAGES_WASTED, c"wasted", c"Pages read ahead that were gone when they were needed";
    /// Streams that a new one has replaced.
    RESETS, c"resets", c"Streams that made room for another";
    /// Bufs of windows that failed.
    WINDOW_ERRORS, c"errors", c"Bufs of windows that failed";
    /// Block maps brought into memory ahead of a window.
    MAPS_AHEAD, c"maps", c"Block maps read ahead of windows";
    /// Pages read speculatively, before the block map was known.
    PAGES_GUESSED, c"guessed", c"Pages read speculatively, before the block map was known";
    /// Speculative pages that lay elsewhere.
    PAGES_MISTAKEN, c"mistaken", c"Of the speculative pages, those that lay elsewhere";
    /// Windows cut short: another thread had the vnode locked exclusively.
    NOT_LOCKED, c"not_locked", c"Windows not read: the vnode was locked exclusively";
    /// Windows cut short, and misses without a window: memory was short.
    NOT_MEMORY, c"not_memory", c"Windows not read: memory was short";
    /// Windows cut short: no buf was available.
    NOT_BUF, c"not_buf", c"Windows not read: there was no buf";
    /// Windows put off: the device had its share of threads.
    NOT_THREAD, c"not_thread", c"Windows put off: the device had its share of threads";
    /// Windows cut short: the device had enough transfers in flight.
    NOT_SATURATED, c"not_saturated", c"Windows not read: the device had enough to do";
}

counters! {
    ALL:
    /// Calls of VOP_GETPAGES_ASYNC that the module served.
    CALLS_ASYNC, c"calls_async", c"VOP_GETPAGES_ASYNC calls served";
    /// Calls of VOP_GETPAGES that the module served.
    CALLS_SYNC, c"calls_sync", c"VOP_GETPAGES calls served";
    /// Calls handed over to the original VOP.
    CALLS_ORIGINAL, c"calls_original", c"Calls handed over to the original VOP";
    /// Async calls emulated over the sync VOP.
    CALLS_EMULATED, c"calls_emulated", c"Calls emulated over the synchronous VOP";
    /// Requested pages.
    PAGES_REQUESTED, c"pages_requested", c"Pages that callers asked for";
    /// Extra pages read before the requested ones.
    PAGES_BEHIND, c"pages_behind", c"Pages read behind";
    /// Extra pages read after the requested ones.
    PAGES_AHEAD, c"pages_ahead", c"Pages read ahead";
    /// Requests for a single page that was valid already up to the end of the
    /// file.
    PAGES_VALID, c"pages_valid", c"Requests for one page that was valid up to the end of the file";
    /// Bytes zeroed for holes.
    ZEROED_BYTES, c"zeroed_bytes", c"Bytes zeroed for holes";
    /// Bufs sent for requests.
    BUFS, c"bufs", c"Bufs sent to a device";
    /// Failed bufs sent again without their extra pages.
    RETRIES, c"retries", c"Failed bufs read again without the pages nobody asked for";
    /// Requests that ended with an I/O error.
    ERRORS, c"errors", c"Requests that ended with an I/O error";
    /// Requests that failed before any I/O.
    FAILED, c"failed", c"Requests that failed before any I/O";
    /// Requests whose block map was read first, while no thread waited.
    MAPS_READ, c"maps_read", c"Requests whose block map was read first, without waiting";
    /// Times that a request waited for a buf.
    WAITED_BUF, c"waited_buf", c"Times that a request waited for a buf";
}

/// A count of things in progress.
pub struct Tally(AtomicUsize);

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

impl Tally {
    /// A count of zero.
    pub const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Adds `n`.
    pub fn enter(&self, n: usize) {
        self.0.fetch_add(n, Ordering::AcqRel);
    }

    /// Adds one, unless the count is `most` already. True when it was added.
    pub fn enter_below(&self, most: usize) -> bool {
        let more = |n: usize| (n < most).then(|| n.saturating_add(1));
        self.0.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
    }

    /// Subtracts one.
    pub fn leave(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }

    /// The count.
    pub fn now(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// Threads inside one of the module's VOPs.
pub static INSIDE: Passage = Passage::new();
/// Bufs in flight or in a queue of the worker. The last step of a completion,
/// or of the worker, leaves the count.
pub static IN_FLIGHT: Tally = Tally::new();

/// Allocates the counters, and shows them below `parent`, those of read-ahead
/// below `readahead`. Sleeps: yes. Errors: ENOMEM.
pub fn register(context: &'static Context, parent: Node, readahead: Node) -> Result<(), Errno> {
    INSIDE.allocate();
    let descr = c"What asyncpager has done";
    for (parent, all) in [(parent, ALL), (readahead, READAHEAD)] {
        let node = context.node(parent, c"stats", descr)?;
        for (counter, name, descr) in all {
            counter.allocate();
            context.counter(node, name, descr, counter)?;
        }
    }
    Ok(())
}

/// Frees the counters, after the sysctl tree is gone.
pub fn release() {
    ALL.iter().chain(READAHEAD).for_each(|(counter, ..)| counter.release());
    INSIDE.release();
}
