// SPDX-License-Identifier: BSD-2-Clause
//! Read-ahead that follows streams, so that pages are valid before sendfile(2)
//! asks for them.
//!
//! A cache miss shows the exact position of a consumer. Once its pages are
//! valid, there are no more misses. But pages in a socket buffer are wired, so
//! a timer looks for the last wired page of each stream.
//!
//! The module's own threads read the windows ([`window`]) that a [`stream`]
//! wants. These threads may wait for the block map, and for speculative reads
//! ([`speculative`]) that prove wrong.
//!
//! A stream's file selects its set of [`WAYS`] streams. In a full set a new
//! stream replaces the oldest. Streams keep no file: a stream has its name
//! only, and a file is held while a thread reads a window of it.

pub mod load;
pub mod profile;
pub mod speculative;
pub mod stream;
pub mod window;

use core::{
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence},
};

use self::{
    load::Why,
    profile::{Key, Profile},
    stream::{Fit, Limits, Pace, Stream},
    window::{Outcome, Window},
};
use crate::{
    fair::{InUse, Threads, may_enter},
    kpi::{
        buf,
        callout::Callout,
        errno::Errno,
        malloc::Array,
        mutex::{Guard, Mutex},
        sysctl::Limit,
        systm,
        taskqueue::{Queue, Task, Work},
        vnode::{Identity, Seen},
    },
    pager::{latency, plan::PAGE, request::Miss},
    stats::{self, Tally},
};

/// `vfs.asyncpager.readahead.enabled`.
pub static ENABLED: AtomicBool = AtomicBool::new(true);
/// `vfs.asyncpager.readahead.max`: bytes read ahead of one stream, at most.
pub static MAX: Limit = Limit::new(64 << 20, 1 << 16, 1 << 30);
/// `vfs.asyncpager.readahead.initial`: bytes read ahead of a new stream.
pub static INITIAL: Limit = Limit::new(2 << 20, 1 << 14, 1 << 28);
/// `vfs.asyncpager.readahead.in_flight`: transfers in flight at a device from
/// which on no window is read from it.
pub static IN_FLIGHT: Limit = Limit::new(256, 1, 4096);
/// `vfs.asyncpager.readahead.poll`: microseconds between two runs of the timer.
pub static POLL: Limit = Limit::new(2000, 500, 1_000_000);
/// `vfs.asyncpager.readahead.streams`: the number of streams that can be
/// followed.
pub static STREAMS: Limit = Limit::new(2048, 8, (MAX_SETS * WAYS) as u32);

/// Streams in a set.
const WAYS: usize = 8;
const MAX_SETS: usize = 64 * 64;
/// The cost limit of one run of the timer, in page look-ups. A run stops at the
/// first stream that it cannot afford, and the next run continues there. So
/// with many streams each one is checked less often. The first stream of a run
/// is always checked, which takes at most 480 look-ups (`readahead.max` = 1
/// GiB).
///
/// Measured with `cargo bench -p asyncpager-testbed --bench streams`: a run
/// takes 73 µs on average with 1,000 streams and 83 µs with 10,000. The machine
/// was busy, and the testbed's KPI checks rules in every call.
const BUDGET: u32 = 256;
/// The cost of a visit to a stream or a set, without its pages.
const VISIT: u32 = 4;
/// The cost of waking a thread.
const WAKE: u32 = 16;
/// The timer ignores a stream that has not moved for this long. Microseconds.
const IDLE_US: u64 = 2_000_000;
/// Threads that read windows. Each waits for one disk at a time.
const THREADS: usize = 8;

static SETS: Array<Set> = Array::new();
static QUEUE: Queue = Queue::new();
static TIMER: Callout = Callout::new();
static ARMED: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicBool = AtomicBool::new(true);
/// One bit for each set with a stream to check.
static LIVE: [AtomicU64; MAX_SETS / 64] = [const { AtomicU64::new(0) }; MAX_SETS / 64];
/// The generation of the next stream.
static GENERATION: AtomicU32 = AtomicU32::new(0);
/// The slot with which the next run of the timer begins.
static HAND: AtomicU32 = AtomicU32::new(0);
/// The start of the timer's current round over all streams, and the duration of
/// the last round.
static ROUND_BEGAN_US: AtomicU64 = AtomicU64::new(0);
static ROUND_US: AtomicU32 = AtomicU32::new(0);
/// Threads in [`Set::work`].
static AT_WORK: Tally = Tally::new();
/// The device for which each thread works; 0 for a free thread.
static WORKERS: Threads<THREADS> = Threads::new();

type Workers = InUse<THREADS>;

/// A stream and its file, in the table.
struct Slot {
    identity: Identity,
    device: usize,
    /// The profile of the stream's first user. `is_shared`: another user has
    /// continued the stream, so it updates no profile.
    profile: Key,
    is_shared: bool,
    /// Pages of the file, at its last miss.
    file: u64,
    stream: Stream,
    /// Distinguishes this stream's bufs from those of an earlier stream in its
    /// slot.
    generation: u32,
    /// A thread is reading a window of the stream.
    reading: bool,
    /// A page whose block map a thread must bring into memory.
    unmapped: Option<u64>,
    /// Counts the checks of the consumer.
    looks: u8,
}

/// A set of streams; see the module's documentation.
struct Set {
    /// The set's index in the table.
    index: usize,
    slots: Mutex<[Option<Slot>; WAYS]>,
    task: Task,
}

static_assertions::const_assert!(size_of::<Set>() / WAYS <= 256);

fn limits() -> Limits {
    let pages = |limit: &Limit| limit.get() / PAGE as u32;
    let max = pages(&MAX).max(1);
    Limits { initial: pages(&INITIAL).clamp(1, max), max, chunk: buf::max_pages().max(1) }
}

/// The conditions at one moment, the same for all streams.
struct Now {
    us: u64,
    limits: Limits,
    /// Pages that memory allows each stream to have ahead of its consumer.
    room: u32,
    /// Microseconds between two checks of a consumer.
    poll_us: u32,
}

impl Now {
    fn new() -> Self {
        // All live streams share the free memory.
        let words = SETS.get().len().div_ceil(64);
        let live = LIVE.iter().take(words).map(|word| word.load(Ordering::Relaxed).count_ones());
        Self {
            us: systm::uptime_us(),
            limits: limits(),
            room: load::room() / 2 / live.sum::<u32>().max(1),
            poll_us: POLL.get().max(ROUND_US.load(Ordering::Relaxed)),
        }
    }

    fn pace(&self, profile: Key, device: usize) -> Pace {
        let Profile { rate, trust, .. } = profile::of(profile);
        Pace { latency_us: latency::of(device), rate, trust, poll_us: self.poll_us }
    }
}

/// Creates the table, the threads and the timer. Sleeps: yes. Errors: ENOMEM.
pub fn start() -> Result<(), Errno> {
    let sets = (STREAMS.get() as usize).div_ceil(WAYS).clamp(1, MAX_SETS);
    let empty = |index| Set { index, slots: Mutex::new([const { None }; WAYS]), task: Task::new() };
    SETS.create(sets, empty, |set| {
        set.slots.init(c"asyncpager streams");
        set.task.init(set);
    })?;
    WORKERS.init(c"asyncpager threads");
    QUEUE.start(c"asyncpager", THREADS as i32);
    TIMER.init();
    STOPPED.store(false, Ordering::Release);
    Ok(())
}

/// Stops the timer, and lets no window begin: from here on [`at_work`] only
/// falls. Bufs may still be in flight. The caller ensures that no thread can
/// report a miss any more. Sleeps: yes, but not for a disk.
pub fn stop() {
    STOPPED.store(true, Ordering::SeqCst);
    TIMER.drain();
}

/// Threads in the read-ahead code, which may be waiting for a disk.
pub fn at_work() -> u64 {
    AT_WORK.now() as u64
}

/// Waits until no read-ahead thread executes code of this module. Called after
/// [`stop`], with no thread [`at_work`]. Sleeps: yes, but not for a disk.
pub fn drain() {
    // A thread may have armed the timer just when it was stopped.
    TIMER.drain();
    SETS.get().iter().for_each(|set| QUEUE.drain(set));
}

/// Resumes read-ahead after [`stop`].
pub fn resume() {
    ARMED.store(false, Ordering::Release);
    STOPPED.store(false, Ordering::Release);
    if LIVE.iter().any(|word| word.load(Ordering::SeqCst) != 0) {
        arm();
    }
}

/// Releases all memory and threads, after [`drain`] and with no buf in flight.
/// Sleeps: yes.
pub fn end() {
    QUEUE.stop();
    SETS.destroy(|set| set.slots.destroy());
    LIVE.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    ARMED.store(false, Ordering::Relaxed);
    ROUND_US.store(0, Ordering::Relaxed);
    WORKERS.destroy();
    profile::forget();
}

/// Handles a cache miss of an async request. Locks: vnode. Sleeps: no.
pub fn missed(miss: &Miss) {
    let sets = SETS.get();
    latency::mounted(miss.device, miss.mounting);
    let worth = latency::is_worth_hiding(miss.device);
    if !(worth || miss.ask.unmapped) || !ENABLED.load(Ordering::Relaxed) || sets.is_empty() {
        return;
    }
    let index = miss.identity.hash() % sets.len();
    let Some(set) = sets.get(index) else { return };
    let now = Now::new();
    let wants = {
        let mut slots = set.slots.lock();
        let slot = note(&mut slots, miss, &now);
        slot.is_some_and(|slot| {
            if slot.stream.is_followed() && load::room() == 0 {
                stats::NOT_MEMORY.add(1);
            }
            slot.has_work(&now)
        })
    };
    if wants {
        QUEUE.enqueue(set);
        look_at(index);
    }
}

/// Records a miss: in the stream that it continues, or as the beginning of a
/// new stream, which replaces the oldest one.
fn note<'a>(slots: &'a mut [Option<Slot>; WAYS], miss: &Miss, now: &Now) -> Option<&'a mut Slot> {
    let profile = Key::new(miss.uid, miss.device);
    let (limits, pace, us) = (now.limits, now.pace(profile, miss.device), now.us);
    let same = |slot: &Slot| slot.identity == miss.identity;
    let continued = slots.iter_mut().enumerate().find_map(|(i, place)| {
        let slot = place.as_mut().filter(|slot| same(slot))?;
        let before = slot.stream.unused();
        let counter = match slot.stream.missed(miss.ask, us, pace, limits) {
            Fit::No => return None,
            Fit::Same | Fit::RanOut | Fit::Gap => &stats::PAGES_USED,
            Fit::Lost => &stats::PAGES_WASTED,
        };
        counter.add(before.saturating_sub(slot.stream.unused()));
        slot.file = miss.file;
        slot.is_shared |= slot.profile != profile;
        slot.unmapped = miss.ask.unmapped.then_some(miss.ask.first);
        Some(i)
    });
    if let Some(i) = continued {
        return slots.get_mut(i)?.as_mut();
    }
    let age = |slot: &Option<Slot>| slot.as_ref().map_or(u64::MAX, |s| s.stream.idle_us(us));
    let place = slots.iter_mut().max_by_key(|slot| age(slot))?;
    if let Some(old) = place {
        stats::RESETS.add(1);
        trust(old, limits);
    }
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    let stream = Stream::begin(miss.ask, us, pace, limits);
    let (identity, device, file) = (miss.identity, miss.device, miss.file);
    let unmapped = miss.ask.unmapped.then_some(miss.ask.first);
    Some(place.insert(Slot {
        identity,
        device,
        profile,
        is_shared: false,
        file,
        stream,
        generation,
        reading: false,
        unmapped,
        looks: 0,
    }))
}

/// Updates the user's profile from a stream that ends.
fn trust(slot: &Slot, limits: Limits) {
    let Some(used) = slot.stream.has_used_first_window().filter(|_| !slot.is_shared) else {
        return;
    };
    profile::learn(slot.profile, |profile| {
        let clamp = |trust: u32| trust.min(limits.max).max(limits.initial);
        let before = clamp(profile.trust);
        let after = if used { before.saturating_mul(2) } else { before / 2 };
        Profile { trust: clamp(after), ..profile }
    });
}

/// Handles a failed buf of a window. `tag`: the stream's slot and generation.
pub fn failed(tag: usize) {
    let (at, generation) = (tag as u32 as usize, (tag >> 32) as u32);
    if let Some(set) = SETS.get().get(at / WAYS)
        && let Some(Some(slot)) = set.slots.lock().get_mut(at % WAYS)
        && slot.generation == generation
    {
        slot.stream.halt();
    }
}

impl Slot {
    /// The pages to read now, and the index up to which a speculative read may
    /// go on.
    fn wants(&self, now: &Now) -> Option<(Range<u64>, u64)> {
        if self.reading || !latency::is_worth_hiding(self.device) {
            return None;
        }
        let (pace, limits) = (now.pace(self.profile, self.device), now.limits);
        let range = self.stream.want(self.file, now.room, now.us, pace, limits)?;
        Some((range, self.stream.reach(self.file, now.room, pace, limits)))
    }

    /// Whether a thread has work with this stream.
    fn has_work(&self, now: &Now) -> bool {
        self.unmapped.is_some() || self.wants(now).is_some()
    }

    /// Looks for the consumer, which is behind the last wired page. Returns the
    /// number of pages looked up; `None`, without a change, when `most` are too
    /// few. Locks: object read.
    fn look(&mut self, seen: &Seen<'_>, now: &Now, most: u32) -> Option<u32> {
        let (front, end) = (self.stream.front(), self.stream.end());
        let mut looked = 0;
        let mut is_wired = |pindex| {
            looked += 1;
            seen.is_wired(pindex)
        };
        // When the page before the front is still wired, the consumer is
        // assumed to be near it. But a slower consumer of the file may have
        // wired it, so every [`OTHERS`]th check searches the whole range.
        let looks = self.looks.wrapping_add(1);
        let near = is_wired(front.saturating_sub(1)) && !looks.is_multiple_of(OTHERS);
        let last = if near {
            front.checked_sub(1)
        } else {
            let needs = stream::places(front, end).count() as u32;
            if needs.saturating_add(FINE) > most {
                return None;
            }
            stream::places(front, end).filter(|pindex| is_wired(*pindex)).last()
        };
        self.looks = looks;
        if let Some(last) = last {
            let far = if near { NEAR } else { stream::step(last.saturating_sub(front)) };
            let next = stream::end_of_wired(last, end.min(last.saturating_add(far)), &mut is_wired);
            if next > front {
                self.has_moved(next, now);
            }
        }
        Some(looked)
    }

    /// Records that the consumer needs page `front` next.
    fn has_moved(&mut self, front: u64, now: &Now) {
        let before = self.stream.unused();
        self.stream.seen(front, now.us, now.pace(self.profile, self.device), now.limits);
        stats::PAGES_USED.add(before.saturating_sub(self.stream.unused()));
        let rate = self.stream.rate();
        if !self.is_shared {
            profile::learn(self.profile, |profile| {
                let known = profile.rate - profile.rate / 16;
                Profile { rate: known.max(rate), ..profile }
            });
        }
    }
}

/// The search range for a consumer near the front, in pages.
const NEAR: u64 = 512;
/// One check in this many does not assume that the consumer is near.
const OTHERS: u8 = 8;
/// Page look-ups, at most, to find the end of a wired range.
const FINE: u32 = 32;

impl Work for Set {
    fn task(&self) -> &Task {
        &self.task
    }

    /// Reads the windows of the set's streams. Sleeps: yes.
    fn work(&self) {
        AT_WORK.enter(1);
        // Pairs with stop(): either this thread sees STOPPED, or the caller of
        // stop() sees this thread at work.
        fence(Ordering::SeqCst);
        for way in 0..WAYS {
            if STOPPED.load(Ordering::SeqCst) || !ENABLED.load(Ordering::Relaxed) {
                break;
            }
            // The consumer moved during the wait for the block map: choose the
            // window anew.
            if self.serve(way, false) == Some(Why::Waited) {
                self.serve(way, true);
            }
        }
        AT_WORK.leave();
    }
}

impl Set {
    /// Reads the window of the stream in slot `way`. Returns the reason when it
    /// was cut short. Sleeps: yes.
    fn serve(&self, way: usize, patient: bool) -> Option<Why> {
        let now = Now::new();
        let device = {
            let slots = self.slots.lock();
            let slot = slots.get(way)?.as_ref()?;
            slot.has_work(&now).then_some(slot.device)?
        };
        let Some(_worker) = WORKERS.enter(device) else {
            stats::NOT_THREAD.add(1);
            look_at(self.index);
            return None;
        };
        let (identity, wanted, generation, unmapped, profile) = {
            let mut slots = self.slots.lock();
            let slot = slots.get_mut(way)?.as_mut().filter(|slot| slot.device == device)?;
            let (wanted, unmapped) = (slot.wants(&now), slot.unmapped.take());
            if let Some((range, _)) = &wanted {
                slot.reading = true;
                slot.stream.reading(range);
            }
            (slot.identity, wanted, slot.generation, unmapped, slot.profile)
        };
        let why = wanted.and_then(|(pages, reach)| {
            let tag = (self.index * WAYS + way) | (generation as usize) << 32;
            let from = pages.start;
            let in_flight = IN_FLIGHT.get();
            let window = Window { pages, reach, tag, in_flight, patient, profile };
            self.has_read(way, generation, from, window::read(identity, &window))
        });
        // The window has most likely brought the map into memory.
        if let Some(page) = unmapped {
            window::look_up(identity, page);
        }
        why
    }

    /// Records the outcome of a window that began with page `from`. Returns the
    /// reason when it was cut short.
    fn has_read(&self, way: usize, generation: u32, from: u64, outcome: Outcome) -> Option<Why> {
        let Outcome { to, new, why } = outcome;
        stats::WINDOWS.add(1);
        let mut slots = self.slots.lock();
        let place = slots.get_mut(way)?;
        if let Some(slot) = place.as_mut().filter(|slot| slot.generation == generation) {
            slot.reading = false;
            slot.stream.read(from..to, new, systm::uptime_us());
            match why {
                None | Some(Why::Waited) => {}
                Some(Why::Gone) => *place = None,
                Some(Why::NoMap) => slot.stream.halt(),
                Some(Why::Locked) => stats::NOT_LOCKED.add(1),
                Some(Why::NoMemory) => stats::NOT_MEMORY.add(1),
                Some(Why::NoBuf) => stats::NOT_BUF.add(1),
                Some(Why::Saturated) => stats::NOT_SATURATED.add(1),
            }
        }
        why
    }
}

/// Makes the timer check a set.
fn look_at(index: usize) {
    if let Some(word) = LIVE.get(index / 64) {
        word.fetch_or(1 << (index % 64), Ordering::SeqCst);
        arm();
    }
}

fn arm() {
    if !STOPPED.load(Ordering::Acquire) && !ARMED.swap(true, Ordering::SeqCst) {
        TIMER.reset(POLL.get(), tick);
    }
}

/// The state of one run of the timer.
struct Run {
    now: Now,
    /// The rest of [`BUDGET`].
    left: u32,
    /// Whether the run has checked a stream.
    begun: bool,
    workers: Workers,
}

impl Run {
    fn spend(&mut self, cost: u32) {
        self.left = self.left.saturating_sub(cost);
    }

    /// Page look-ups allowed for the next stream. Unlimited for the first
    /// stream of a run.
    fn most(&self) -> u32 {
        if self.begun { self.left } else { u32::MAX }
    }
}

/// The timer: checks the consumers of live streams, as far as [`BUDGET`]
/// allows, from the slot where the last run stopped. Sleeps: no.
fn tick() {
    if STOPPED.load(Ordering::SeqCst) {
        return;
    }
    let all = SETS.get().len() * WAYS;
    let workers = WORKERS.in_use();
    let mut run = Run { now: Now::new(), left: BUDGET, begun: false, workers };
    let hand = (HAND.load(Ordering::Relaxed) as usize).min(all);
    if hand == 0 {
        ROUND_BEGAN_US.store(run.now.us, Ordering::Relaxed);
    }
    let stopped = visit(hand..all, &mut run);
    let stopped = stopped.or_else(|| {
        let now = run.now.us;
        let us = now.saturating_sub(ROUND_BEGAN_US.swap(now, Ordering::Relaxed));
        let us = if hand == 0 { 0 } else { us.min(IDLE_US) as u32 };
        ROUND_US.store(us, Ordering::Relaxed);
        visit(0..hand, &mut run)
    });
    // After a complete round, begin with the first slot again.
    HAND.store(stopped.unwrap_or(0) as u32, Ordering::Relaxed);
    ARMED.swap(false, Ordering::SeqCst);
    if LIVE.iter().any(|word| word.load(Ordering::SeqCst) != 0) {
        arm();
    }
}

/// The first live set from `index` on.
fn next_live(index: usize) -> Option<usize> {
    let mut mask = u64::MAX << (index % 64);
    for (at, word) in LIVE.iter().enumerate().skip(index / 64) {
        let bits = word.load(Ordering::Acquire) & mask;
        if bits != 0 {
            return Some(at * 64 + bits.trailing_zeros() as usize);
        }
        mask = u64::MAX;
    }
    None
}

/// Checks the streams of live sets in a range of slots. Returns the slot to
/// continue with, when the budget was too small.
fn visit(range: Range<usize>, run: &mut Run) -> Option<usize> {
    let mut at = range.start;
    while let Some(index) = next_live(at / WAYS) {
        let from = at.max(index * WAYS);
        at = (index + 1).saturating_mul(WAYS).min(range.end);
        let set = SETS.get().get(index).filter(|_| from < at)?;
        if let Some(way) = look(set, from - index * WAYS..at - index * WAYS, run) {
            return Some(index * WAYS + way);
        }
    }
    None
}

/// Checks the consumers of some of a set's streams, and enqueues the set when a
/// stream wants a window. Returns the slot to continue with, when the budget
/// was too small.
fn look(set: &Set, ways: Range<usize>, run: &mut Run) -> Option<usize> {
    if run.left == 0 {
        return Some(ways.start);
    }
    let bit = 1 << (set.index % 64);
    let word = LIVE.get(set.index / 64)?;
    // Clear before the check: a concurrent look_at() sets the bit again.
    word.fetch_and(!bit, Ordering::AcqRel);
    run.spend(VISIT);
    let mut live = ways.len() < WAYS;
    let (wants, stopped) = look_in(set.slots.lock(), ways, run, &mut live);
    if wants {
        run.spend(WAKE);
        QUEUE.enqueue(set);
    }
    if live || stopped.is_some() {
        word.fetch_or(bit, Ordering::Release);
    }
    stopped
}

/// The part of [`look`] under the set's lock. Also returns whether a thread has
/// work.
fn look_in(
    mut slots: Guard<'_, [Option<Slot>; WAYS]>,
    ways: Range<usize>,
    run: &mut Run,
    live: &mut bool,
) -> (bool, Option<usize>) {
    let mut wants = false;
    for way in ways {
        let Some(Some(slot)) = slots.get_mut(way) else { continue };
        if run.left == 0 {
            return (wants, Some(way));
        }
        run.spend(VISIT);
        if slot.stream.idle_us(run.now.us) > IDLE_US {
            continue;
        }
        if slot.stream.is_followed() && latency::is_worth_hiding(slot.device) {
            let (identity, most) = (slot.identity, run.most());
            // If the object's lock is not free, the next run checks the stream.
            let looked = identity.look(|seen| seen.map(|seen| slot.look(seen, &run.now, most)));
            match looked {
                Some(None) => {
                    if let Some(place) = slots.get_mut(way) {
                        *place = None;
                    }
                    continue;
                }
                // The rest of the budget is too small for this stream's pages.
                Some(Some(None)) => return (wants, Some(way)),
                Some(Some(Some(pages))) => run.spend(pages),
                None => {}
            }
            run.begun = true;
            *live |= slot.stream.goes_on(slot.file);
        } else if slot.unmapped.is_none() {
            continue;
        }
        *live |= slot.unmapped.is_some();
        wants |= may_enter(&run.workers, slot.device) && slot.has_work(&run.now);
    }
    (wants, None)
}
