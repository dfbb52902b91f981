// SPDX-License-Identifier: BSD-2-Clause
//! The module's bufs: what each is for, and how many each purpose may have.
//!
//! A request whose blocks are known waits for a buf rather than fail, as it does
//! in the vnode pager. Read-ahead has at most half of the bufs, and gets none
//! while a request waits. A thread that waits owns no buf that it has not sent,
//! and waits for as long at most as its device takes to answer: a device that
//! does not answer leaves bufs to the others.
//!
//! A request whose block map is being read has nobody to wait for bufs. The last
//! [`reserve`] bufs are for such requests alone, and [`worker`] goes on with
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

/// A buf of the module's.
pub type Buf = Pbuf<Context>;

/// All bufs.
static POOL: Pool<Context> = Pool::new();
/// `vfs.asyncpager.bufs`: how many there are; 0 for as many as the vnode pager has.
pub static BUFS: Limit = Limit::new(0, 0, 65_536);
/// Without a wish, at least and at most so many.
const FEWEST: u32 = 64;
const MOST: u32 = 2_048;

/// Bufs that read ahead, in flight or not.
static READAHEAD: Tally = Tally::new();
/// Bufs that read block maps for requests.
static MAPS: Tally = Tally::new();

/// What a buf carries.
pub struct Context {
    /// The transfer, from when the buf is sent until it comes back.
    flight: Option<latency::InFlight>,
    /// What the buf is for.
    pub job: Job,
    /// Dropped last.
    share: Share,
}

/// What a buf is for.
pub enum Job {
    /// Reads pages of an asynchronous request. `retried` is set when it has
    /// failed and was sent again without the pages that nobody asked for.
    Part {
        /// The buf's share of the request.
        part: Part,
        /// See above.
        retried: bool,
    },
    /// Nothing yet, or reads for a thread that waits.
    Idle,
    /// Reads pointers of a request's block map.
    Map(deferred::MapRead),
    /// Reads pages that nobody has asked for yet.
    Ahead {
        /// Keeps the object, and with it the vnode, until the pages are finished.
        paging: Paging,
        /// Names the stream, see [`readahead::failed`].
        tag: usize,
        /// Its place on the device was not looked up: the block map was not in memory.
        speculative: bool,
    },
}

/// Which bufs a buf counts among.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// A request's, whose thread may wait.
    Request,
    /// A request's whose block map was not in memory.
    Deferred,
    /// A read of a block map.
    Map,
    /// Read-ahead.
    Readahead,
}

/// A place among the bufs of one use.
struct Share {
    purpose: Use,
    /// Whether there is a buf in this place.
    has_buf: bool,
}

impl Share {
    fn new(purpose: Use) -> Option<Self> {
        let (tally, most) = match purpose {
            Use::Request | Use::Deferred => return Some(Self { purpose, has_buf: false }),
            Use::Map => (&MAPS, POOL.len() / 8),
            Use::Readahead => (&READAHEAD, POOL.len() / 2),
        };
        // A share that is made is counted.
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
            // It is back in the pool.
            worker::buf_is_back();
        }
    }
}

/// Bufs that are kept for requests whose block map was not in memory.
fn reserve() -> usize {
    POOL.len() / 8
}

/// Make the bufs. May sleep.
pub fn create() -> Result<(), Errno> {
    let len = match BUFS.get() {
        0 => buf::pager_bufs().clamp(FEWEST, MOST),
        wished => wished.max(FEWEST / 4),
    };
    POOL.create(c"asyncpager bufs", len as usize)
}

/// Give the bufs' memory back. May sleep. None is in use.
pub fn destroy() {
    POOL.destroy();
}

/// Whether a buf of this use may be had for the device, while there is so much room.
///
/// A device gets another buf only while fewer are in flight for it than it would
/// leave: one that does not answer takes half of the bufs at most.
fn admits(purpose: Use, device: usize, room: Room) -> bool {
    let at_device = latency::in_flight(device) as usize;
    let free = room.free.saturating_sub(reserve());
    match purpose {
        Use::Deferred => room.free > 0,
        Use::Request => {
            // What reads ahead keeps no request waiting.
            let requests = at_device.saturating_sub(READAHEAD.now());
            free > requests || free > 0 && requests == 0
        }
        Use::Map => free > at_device && room.waiting == 0,
        Use::Readahead => {
            let left = (POOL.len() / 2).saturating_sub(READAHEAD.now());
            left > at_device / 2 && free > 0 && room.waiting == 0
        }
    }
}

/// Whether a buf that reads a block map may be had for the device now. A hint.
pub fn map_available(device: usize) -> bool {
    MAPS.now() < POOL.len() / 8 && admits(Use::Map, device, POOL.room())
}

/// Whether any buf is free. A hint.
pub fn any_free() -> bool {
    POOL.room().free > 0
}

/// A buf without a job, if there is one for this use and device. Never sleeps.
pub fn alloc(purpose: Use, device: Device<'_>) -> Option<Buf> {
    let context = Context { flight: None, job: Job::Idle, share: Share::new(purpose)? };
    let admit = |room| admits(purpose, device.id(), room);
    let mut buf = POOL.alloc(admit, context).ok()?;
    buf.share.has_buf = true;
    Some(buf)
}

/// A buf for a request, whose thread owns no buf that it has not sent. Sleeps
/// while bufs are in flight for the device and it may have no more.
pub fn alloc_or_wait(device: Device<'_>) -> Buf {
    alloc(Use::Request, device).unwrap_or_else(|| {
        stats::WAITED_BUF.add(1);
        let share = Share { purpose: Use::Request, has_buf: true };
        let context = Context { flight: None, job: Job::Idle, share };
        POOL.wait(|room| admits(Use::Request, device.id(), room), context)
    })
}

/// Note that a loaded buf goes to its device.
fn begin(buf: &mut Buf) {
    stats::IN_FLIGHT.enter(1);
    let device = buf.device().map(|device| device.id());
    buf.flight = device.map(latency::sent);
}

/// Note that a buf is back from its device.
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

/// Send a loaded buf; its job says what becomes of it.
pub fn send(mut buf: Buf) {
    begin(&mut buf);
    buf.send();
}

/// Send a loaded buf, whose completion may be claimed.
pub fn send_claimable(mut buf: Buf) -> buf::Claim<Context> {
    begin(&mut buf);
    buf.send_claimable()
}

/// A buf that was [claimed](buf::Claim) is the thread's again.
pub fn claimed(mut buf: Buf) -> Buf {
    end(&mut buf);
    stats::IN_FLIGHT.leave();
    buf
}

/// Send a loaded buf, and sleep until its I/O is over.
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
        // Last: what unloading waits for.
        stats::IN_FLIGHT.leave();
    }

    fn abandoned(buf: Buf) {
        drop(claimed(buf));
    }
}
