// SPDX-License-Identifier: BSD-2-Clause
//! Read-ahead that follows a stream, so that its pages are valid before
//! sendfile(2) asks for them.
//!
//! A miss tells where a consumer is, exactly. Once pages are valid there are
//! no more misses; but what sits in a socket buffer is wired, so a timer looks
//! for the last wired page of each window. What a [`stream`] wants is read by
//! threads of our own ([`window`]): they may wait for the block map, and for
//! what was read together with it ([`speculative`]) and turns out to be wrong.
//!
//! Streams live in sets of [`WAYS`], found by their file; a set's oldest
//! stream makes room for a new one. Nothing here keeps a file: a stream knows
//! it by name only, and a file is held while a thread is at a window of it.

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
/// `vfs.asyncpager.readahead.max`: bytes that are read ahead of one stream.
pub static MAX: Limit = Limit::new(64 << 20, 1 << 16, 1 << 30);
/// `vfs.asyncpager.readahead.initial`: bytes that a stream begins with.
pub static INITIAL: Limit = Limit::new(2 << 20, 1 << 14, 1 << 28);
/// `vfs.asyncpager.readahead.in_flight`: bufs that one device may have.
pub static IN_FLIGHT: Limit = Limit::new(256, 1, 4096);
/// `vfs.asyncpager.readahead.poll`: microseconds between two looks at the
/// consumers.
pub static POLL: Limit = Limit::new(2000, 500, 1_000_000);
/// `vfs.asyncpager.readahead.streams`: streams that can be followed at a time.
pub static STREAMS: Limit = Limit::new(2048, 8, (MAX_SETS * WAYS) as u32);

/// Streams of a set.
const WAYS: usize = 8;
const MAX_SETS: usize = 64 * 64;
/// What one run of the timer may cost, in pages looked up. A run stops at the
/// stream that it cannot afford, and the next run goes on there, so that with
/// many streams each is looked at less often. The first stream of a run is
/// always looked at, which takes 480 look-ups at most (`readahead.max` = 1 GiB).
///
/// Measured with `cargo bench -p asyncpager-testbed --bench streams`: a run
/// takes 73 µs on average with 1,000 streams and 83 µs with 10,000, on a busy
/// machine and with the testbed's KPI, whose every call checks rules.
const BUDGET: u32 = 256;
/// What a stream costs besides its pages, and a set.
const VISIT: u32 = 4;
/// What waking a thread costs.
const WAKE: u32 = 16;
/// A stream that stands still for so long is not looked at any more.
const IDLE_US: u64 = 2_000_000;
/// Threads that read windows. A thread waits for one disk at a time.
const THREADS: usize = 8;

static SETS: Array<Set> = Array::new();
static QUEUE: Queue = Queue::new();
static TIMER: Callout = Callout::new();
static ARMED: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicBool = AtomicBool::new(true);
/// Sets that have a stream to look at, a bit each.
static LIVE: [AtomicU64; MAX_SETS / 64] = [const { AtomicU64::new(0) }; MAX_SETS / 64];
/// The next stream's number.
static GENERATION: AtomicU32 = AtomicU32::new(0);
/// Where the timer goes on.
static HAND: AtomicU32 = AtomicU32::new(0);
/// When the timer last began with the first stream, and how long it took to
/// come round.
static ROUND_BEGAN_US: AtomicU64 = AtomicU64::new(0);
static ROUND_US: AtomicU32 = AtomicU32::new(0);
/// Threads in [`Set::work`].
static AT_WORK: Tally = Tally::new();
/// The device that each thread is at; 0 for a free thread.
static WORKERS: Threads<THREADS> = Threads::new();

type Workers = InUse<THREADS>;

/// A file's place in the table.
struct Slot {
    identity: Identity,
    device: usize,
    /// The user that it began for, and whether others go on with it: then it
    /// says nothing about either.
    profile: Key,
    is_shared: bool,
    /// Pages of the file, when it was last missed.
    file: u64,
    stream: Stream,
    /// Tells this stream's bufs from those of an earlier one in its place.
    generation: u32,
    /// A thread is reading a window of it.
    reading: bool,
    /// A page whose block map is to be brought into memory.
    unmapped: Option<u64>,
    /// Counts the looks at the consumer.
    looks: u8,
}

/// See the module's documentation.
struct Set {
    /// Its place in the table.
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

/// What is the same for all streams at a time.
struct Now {
    us: u64,
    limits: Limits,
    /// Pages that each may have before its consumer.
    room: u32,
    /// Microseconds between two looks at a consumer.
    poll_us: u32,
}

impl Now {
    fn new() -> Self {
        // Streams share what memory there is.
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

/// Make the table, the threads and the timer. May sleep.
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

/// Stop the timer and begin no window: from here on [`at_work`] only falls.
/// Bufs may still be in flight. May sleep, not for a disk. The caller has made
/// sure that nobody can miss anything any more.
pub fn stop() {
    STOPPED.store(true, Ordering::SeqCst);
    TIMER.drain();
}

/// Threads that may be waiting for a disk.
pub fn at_work() -> u64 {
    AT_WORK.now() as u64
}

/// Wait until no thread executes code of this module, after [`stop`] and when
/// nothing is [`at_work`]. May sleep, not for a disk.
pub fn drain() {
    // A thread may have armed it again just when it was stopped.
    TIMER.drain();
    SETS.get().iter().for_each(|set| QUEUE.drain(set));
}

/// Go on after [`stop`].
pub fn resume() {
    ARMED.store(false, Ordering::Release);
    STOPPED.store(false, Ordering::Release);
    if LIVE.iter().any(|word| word.load(Ordering::SeqCst) != 0) {
        arm();
    }
}

/// Give everything back, after [`drain`] and when no buf is in flight. May sleep.
pub fn end() {
    QUEUE.stop();
    SETS.destroy(|set| set.slots.destroy());
    LIVE.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    ARMED.store(false, Ordering::Relaxed);
    ROUND_US.store(0, Ordering::Relaxed);
    WORKERS.destroy();
    profile::forget();
}

/// An async request had to read. The vnode is locked. Does not sleep.
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

/// Note a miss: in the stream that it continues, or in the place of the
/// oldest one as the beginning of a new stream.
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

/// Learn from a stream that ends.
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

/// A buf of the window with this tag could not be read.
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
    /// The pages to read now, and how far to go on while the block map is read.
    fn wants(&self, now: &Now) -> Option<(Range<u64>, u64)> {
        if self.reading || !latency::is_worth_hiding(self.device) {
            return None;
        }
        let (pace, limits) = (now.pace(self.profile, self.device), now.limits);
        let range = self.stream.want(self.file, now.room, now.us, pace, limits)?;
        Some((range, self.stream.reach(self.file, now.room, pace, limits)))
    }

    /// Whether there is anything for a thread to do.
    fn has_work(&self, now: &Now) -> bool {
        self.unmapped.is_some() || self.wants(now).is_some()
    }

    /// Where the consumer is now: behind the last wired page. Gives how many
    /// pages were looked up; `None`, and nothing done, if `most` are too few.
    fn look(&mut self, seen: &Seen<'_>, now: &Now, most: u32) -> Option<u32> {
        let (front, end) = (self.stream.front(), self.stream.end());
        let mut looked = 0;
        let mut is_wired = |pindex| {
            looked += 1;
            seen.is_wired(pindex)
        };
        // What it has used last is still on its way to the socket: then it is
        // near, unless that is another one's who has got no further.
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

    /// The consumer was seen to need page `front` next.
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

/// Pages within which a consumer is looked for that cannot be far.
const NEAR: u64 = 512;
/// One look in so many does not believe that.
const OTHERS: u8 = 8;
/// Pages looked up at most to find where wired ones end.
const FINE: u32 = 32;

impl Work for Set {
    fn task(&self) -> &Task {
        &self.task
    }

    /// Read what the set's streams want.
    fn work(&self) {
        AT_WORK.enter(1);
        // Either this thread sees that read-ahead stops, or stop()'s caller
        // sees this thread.
        fence(Ordering::SeqCst);
        for way in 0..WAYS {
            if STOPPED.load(Ordering::SeqCst) || !ENABLED.load(Ordering::Relaxed) {
                break;
            }
            // After a wait for the block map it wants something else.
            if self.serve(way, false) == Some(Why::Waited) {
                self.serve(way, true);
            }
        }
        AT_WORK.leave();
    }
}

impl Set {
    /// Read what the stream in slot `way` wants. Gives why that was not all.
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
        // Most likely the window has brought it.
        if let Some(page) = unmapped {
            window::look_up(identity, page);
        }
        why
    }

    /// A window from page `from` on has been read. Gives why not all of it.
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

/// Have the timer look at a set.
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

/// One run of the timer.
struct Run {
    now: Now,
    /// What is left of [`BUDGET`].
    left: u32,
    /// Whether a stream was looked at.
    begun: bool,
    workers: Workers,
}

impl Run {
    fn spend(&mut self, cost: u32) {
        self.left = self.left.saturating_sub(cost);
    }

    /// Pages that may be looked up for one stream: the first one is always
    /// looked at.
    fn most(&self) -> u32 {
        if self.begun { self.left } else { u32::MAX }
    }
}

/// The timer: look at the consumers of live streams, as many as [`BUDGET`]
/// allows, from where it stopped the last time.
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
    // When all were visited it begins with the first again.
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

/// Look at the streams of live sets in a range of slots. Gives the slot to go
/// on with, if the budget was too small for them.
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

/// Look at the consumers of some of a set's streams, and have read what they
/// want. Gives the one to go on with, if the budget was too small for them.
fn look(set: &Set, ways: Range<usize>, run: &mut Run) -> Option<usize> {
    if run.left == 0 {
        return Some(ways.start);
    }
    let bit = 1 << (set.index % 64);
    let word = LIVE.get(set.index / 64)?;
    // Clear before the look: a concurrent look_at() sets the bit again.
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

/// See [`look`]. Gives whether a thread has something to do, too.
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
            // An object whose lock is taken is looked at the next time.
            let looked = identity.look(|seen| seen.map(|seen| slot.look(seen, &run.now, most)));
            match looked {
                Some(None) => {
                    if let Some(place) = slots.get_mut(way) {
                        *place = None;
                    }
                    continue;
                }
                // Too many pages for what is left of the budget.
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
