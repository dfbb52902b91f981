// SPDX-License-Identifier: BSD-2-Clause
//! The module's bufs: their uses, and the limit of each use.
//!
//! A request whose block map is in memory waits for a buf and does not fail, as
//! in the vnode pager. Read-ahead has at most half of the bufs, and gets none
//! while a request waits.
//!
//! A waiting thread owns no unsent buf, so it waits only for I/O in flight. A
//! device that does not answer leaves bufs to the other devices.
//!
//! A request whose block map is being read has no thread to wait for bufs. The
//! last [`reserve`] bufs serve only such requests, and [`worker`] goes on with
//! them as bufs come back.

use super::{complete, deferred, latency, request::Part, worker};
use crate::{
    kpi::{
        buf::{self, Completion, Pbuf, Pool, Room},
        errno::Errno,
        sysctl::Limit,
        vm_object::Paging,
        vnode::Device,
    },
    readahead,
    stats::{self, Tally},
};

/// A buf of the module.
pub type Buf = Pbuf<Context>;

/// All bufs.
static POOL: Pool<Context> = Pool::new();
/// `vfs.asyncpager.bufs`: the number of bufs. 0: as many as the vnode pager
/// has.
pub static BUFS: Limit = Limit::new(0, 0, 65_536);
/// The bounds of the default number of bufs.
const FEWEST: u32 = 64;
const MOST: u32 = 2_048;

/// Bufs for read-ahead, in flight or not.
static READAHEAD: Tally = Tally::new();
/// Bufs that read block maps for requests.
static MAPS: Tally = Tally::new();

/// The context of a buf.
pub struct Context {
    /// The transfer, while the buf is in flight.
    flight: Option<latency::InFlight>,
    /// The buf's job.
    pub job: Job,
    /// Counts the buf. Dropped last.
    share: Share,
}

/// The job of a buf; it selects the completion handler.
pub enum Job {
    /// Reads pages of an asynchronous request.
    Part {
        /// The buf's part of the request.
        part: Part,
        /// Set when the buf has failed and was sent again without its extra
        /// pages.
        retried: bool,
    },
    /// None yet; or a read for which a thread waits.
    Idle,
    /// Reads pointers of a request's block map.
    Map(deferred::MapRead),
    /// Reads ahead pages that no request has asked for yet.
    Ahead {
        /// Keeps the object, and with it the vnode, until the pages are
        /// finished.
        paging: Paging,
        /// The stream's tag, see [`readahead::failed`].
        tag: usize,
        /// The read is speculative: the block map was not in memory, so the
        /// buf's place on the device is a prediction.
        speculative: bool,
    },
}

/// The use of a buf; each use has its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A request whose thread may wait.
    Request,
    /// A request whose block map was not in memory.
    Deferred,
    /// A read of a block map.
    Map,
    /// Read-ahead.
    Readahead,
}

/// A count in the limit of a use.
struct Share {
    purpose: Use,
    /// Whether a buf has been allocated for it.
    has_buf: bool,
}

impl Share {
    fn new(purpose: Use) -> Option<Self> {
        let (tally, most) = match purpose {
            Use::Request | Use::Deferred => return Some(Self { purpose, has_buf: false }),
            Use::Map => (&MAPS, POOL.len() / 8),
            Use::Readahead => (&READAHEAD, readahead_most()),
        };
        // A `Share` is made only after it is counted: its drop lowers the
        // count.
        tally.enter_below(most).then(|| Self { purpose, has_buf: false })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        match self.purpose {
            Use::Request | Use::Deferred => {}
            Use::Map => MAPS.leave(),
            Use::Readahead => READAHEAD.leave(),
        }
        if self.has_buf {
            // The buf is back in the pool.
            worker::buf_is_back();
        }
    }
}

/// Bufs reserved for requests whose block map was not in memory.
fn reserve() -> usize {
    POOL.len() / 8
}

/// Bufs that read-ahead may have: half of all.
fn readahead_most() -> usize {
    POOL.len() / 2
}

/// Allocates the bufs. Sleeps: yes. Errors: EINVAL, ENOMEM.
pub fn create() -> Result<(), Errno> {
    let len = match BUFS.get() {
        0 => buf::pager_bufs().clamp(FEWEST, MOST),
        wished => wished.max(FEWEST / 4),
    };
    POOL.create(c"asyncpager bufs", len as usize)
}

/// Frees the bufs, none of which is in use. Sleeps: yes.
pub fn destroy() {
    POOL.destroy();
}

/// Whether a buf of this use may be allocated for the device, with this fill
/// level of the pool.
///
/// A device gets another buf only while more bufs remain than are in flight for
/// it. So a device that does not answer takes at most half of the bufs.
fn admits(purpose: Use, device: usize, room: Room) -> bool {
    let at_device = latency::in_flight(device) as usize;
    let free = room.free.saturating_sub(reserve());
    match purpose {
        Use::Deferred => room.free > 0,
        Use::Request => {
            // Bufs of read-ahead must not keep a request waiting.
            let requests = at_device.saturating_sub(READAHEAD.now());
            free > requests || free > 0 && requests == 0
        }
        Use::Map => free > at_device && room.waiting == 0,
        Use::Readahead => {
            let left = readahead_most().saturating_sub(READAHEAD.now());
            left > at_device / 2 && free > 0 && room.waiting == 0
        }
    }
}

/// Whether a buf to read a block map is available for the device. A hint.
pub fn map_available(device: usize) -> bool {
    MAPS.now() < POOL.len() / 8 && admits(Use::Map, device, POOL.room())
}

/// Whether any buf is free. A hint.
pub fn any_free() -> bool {
    POOL.room().free > 0
}

/// Allocates a buf without a job. `None` when this use or device may have no
/// more. Sleeps: no.
pub fn alloc(purpose: Use, device: Device<'_>) -> Option<Buf> {
    let context = Context { flight: None, job: Job::Idle, share: Share::new(purpose)? };
    let admit = |room| admits(purpose, device.id(), room);
    let mut buf = POOL.alloc(admit, context).ok()?;
    buf.share.has_buf = true;
    Some(buf)
}

/// Allocates a buf for a request. The calling thread must own no unsent buf.
/// Sleeps: until the device may have another buf.
pub fn alloc_or_wait(device: Device<'_>) -> Buf {
    alloc(Use::Request, device).unwrap_or_else(|| {
        stats::WAITED_BUF.add(1);
        let share = Share { purpose: Use::Request, has_buf: true };
        let context = Context { flight: None, job: Job::Idle, share };
        POOL.wait(|room| admits(Use::Request, device.id(), room), context)
    })
}

/// Counts a loaded buf as in flight.
fn begin(buf: &mut Buf) {
    stats::IN_FLIGHT.enter(1);
    let device = buf.device().map(|device| device.id());
    buf.flight = device.map(latency::sent);
}

/// Records that a buf has come back from its device.
fn end(buf: &mut Buf) {
    let bytes = buf.bytes();
    if let (Job::Ahead { speculative: true, .. }, true) = (&buf.job, buf.has_failed())
        && let Some(device) = buf.device()
    {
        latency::bar_speculation(device.id());
    }
    if let Some(flight) = buf.flight.take() {
        flight.came_back(bytes);
    }
}

/// Sends a loaded buf. Its job selects the completion handler. Sleeps: for a
/// bio.
pub fn send(mut buf: Buf) {
    begin(&mut buf);
    buf.send();
}

/// Sends a loaded buf that the caller may claim. Sleeps: for a bio.
pub fn send_claimable(mut buf: Buf) -> buf::Claim<Context> {
    begin(&mut buf);
    buf.send_claimable()
}

/// Takes over a completed buf that the thread has [claimed](buf::Claim).
pub fn claimed(mut buf: Buf) -> Buf {
    end(&mut buf);
    stats::IN_FLIGHT.leave();
    buf
}

/// Sends a loaded buf and waits for its I/O. Sleeps: yes.
pub fn read(mut buf: Buf) -> Buf {
    begin(&mut buf);
    claimed(buf.read())
}

impl Completion for Context {
    fn completed(mut buf: Buf) {
        end(&mut buf);
        match buf.job {
            Job::Part { .. } => complete::part(buf),
            Job::Map(_) => deferred::map_read(buf),
            Job::Ahead { .. } => readahead::load::finish(buf),
            Job::Idle => drop(buf),
        }
        // Last, since unloading waits for this count.
        stats::IN_FLIGHT.leave();
    }

    fn abandoned(buf: Buf) {
        drop(claimed(buf));
    }
}
