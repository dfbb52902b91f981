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
pub mod speculative;
pub mod stream;
pub mod window;

use core::{
    ops::Range,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

use self::{
    load::Why,
    stream::{Fit, Limits, Pace, Stream},
    window::{Outcome, Window},
};
use crate::{
    kpi::{
        buf,
        callout::Callout,
        errno::Errno,
        malloc::Array,
        mutex::Mutex,
        sysctl::Limit,
        systm,
        taskqueue::{Queue, Task, Work},
        vnode::{Identity, Seen},
    },
    pager::{latency, plan::PAGE, request::Miss},
    stats,
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
/// Places looked at by one run of the timer: with many streams each is looked
/// at less often, and each is slower.
const BUDGET: u32 = 4096;
/// A stream that stands still for so long is not looked at any more.
const IDLE_US: u64 = 2_000_000;
/// Threads that read windows. One waits for one disk at a time.
const THREADS: i32 = 4;

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
/// Pages a second of the streams seen last; at first 128 MiB.
static RATE: AtomicU32 = AtomicU32::new(FIRST_RATE);
const FIRST_RATE: u32 = 32 << 10;
/// Pages that the first window of a stream may have: fewer after streams that
/// did not use theirs, more after those that did.
static TRUST: AtomicU32 = AtomicU32::new(u32::MAX);

/// A file's place in the table.
struct Slot {
    identity: Identity,
    device: usize,
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

fn pace(device: usize) -> Pace {
    let (rate, trust) = (RATE.load(Ordering::Relaxed), TRUST.load(Ordering::Relaxed));
    Pace { latency_us: latency::of(device), rate, trust, poll_us: POLL.get() }
}

/// Make the table, the threads and the timer. May sleep.
pub fn start() -> Result<(), Errno> {
    let sets = (STREAMS.get() as usize).div_ceil(WAYS).clamp(1, MAX_SETS);
    let empty = |index| Set { index, slots: Mutex::new([const { None }; WAYS]), task: Task::new() };
    SETS.create(sets, empty, |set| {
        set.slots.init(c"asyncpager streams");
        set.task.init(set);
    })?;
    QUEUE.start(c"asyncpager", THREADS);
    TIMER.init();
    STOPPED.store(false, Ordering::Release);
    Ok(())
}

/// Read nothing ahead any more; bufs may still be in flight. May sleep. The
/// caller has made sure that nobody can miss anything any more.
pub fn stop() {
    STOPPED.store(true, Ordering::Release);
    TIMER.drain();
    SETS.get().iter().for_each(|set| QUEUE.drain(set));
}

/// Go on after [`stop`].
pub fn resume() {
    ARMED.store(false, Ordering::Release);
    STOPPED.store(false, Ordering::Release);
}

/// Give everything back, after [`stop`] and when no buf is in flight. May sleep.
pub fn end() {
    QUEUE.stop();
    SETS.destroy(|set| set.slots.destroy());
    LIVE.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    ARMED.store(false, Ordering::Relaxed);
    RATE.store(FIRST_RATE, Ordering::Relaxed);
    TRUST.store(u32::MAX, Ordering::Relaxed);
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
    let now = systm::uptime_us();
    let wants = {
        let mut slots = set.slots.lock();
        let slot = note(&mut slots, miss, now);
        slot.is_some_and(|slot| {
            if slot.stream.is_followed() && load::room() == 0 {
                stats::NOT_MEMORY.add(1);
            }
            slot.unmapped.is_some() || slot.wants(now).is_some()
        })
    };
    if wants {
        QUEUE.enqueue(set);
        look_at(index);
    }
}

/// Note a miss: in the stream that it continues, or in the place of the
/// oldest one as the beginning of a new stream.
fn note<'a>(slots: &'a mut [Option<Slot>; WAYS], miss: &Miss, now: u64) -> Option<&'a mut Slot> {
    let (limits, pace) = (limits(), pace(miss.device));
    let same = |slot: &Slot| slot.identity == miss.identity;
    let continued = slots.iter_mut().enumerate().find_map(|(i, place)| {
        let slot = place.as_mut().filter(|slot| same(slot))?;
        let before = slot.stream.unused();
        let counter = match slot.stream.missed(miss.ask, now, pace, limits) {
            Fit::No => return None,
            Fit::Same | Fit::RanOut | Fit::Gap => &stats::PAGES_USED,
            Fit::Lost => &stats::PAGES_WASTED,
        };
        counter.add(before.saturating_sub(slot.stream.unused()));
        slot.file = miss.file;
        slot.unmapped = miss.ask.unmapped.then_some(miss.ask.first);
        Some(i)
    });
    if let Some(i) = continued {
        return slots.get_mut(i)?.as_mut();
    }
    let age = |slot: &Option<Slot>| slot.as_ref().map_or(u64::MAX, |s| s.stream.idle_us(now));
    let place = slots.iter_mut().max_by_key(|slot| age(slot))?;
    if let Some(old) = place {
        stats::RESETS.add(1);
        trust(&old.stream, limits);
    }
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    let stream = Stream::begin(miss.ask, now, pace, limits);
    let (identity, device, file) = (miss.identity, miss.device, miss.file);
    let unmapped = miss.ask.unmapped.then_some(miss.ask.first);
    Some(place.insert(Slot {
        identity,
        device,
        file,
        stream,
        generation,
        reading: false,
        unmapped,
        looks: 0,
    }))
}

/// Learn from a stream that ends.
fn trust(stream: &Stream, limits: Limits) {
    let before = TRUST.load(Ordering::Relaxed).clamp(limits.initial, limits.max);
    let after = match stream.has_used_first_window() {
        None => return,
        Some(true) => before.saturating_mul(2),
        Some(false) => before / 2,
    };
    TRUST.store(after.clamp(limits.initial, limits.max), Ordering::Relaxed);
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
    fn wants(&self, now: u64) -> Option<(Range<u64>, u64)> {
        if self.reading || !latency::is_worth_hiding(self.device) {
            return None;
        }
        // Streams share what memory there is.
        let words = SETS.get().len().div_ceil(64);
        let live: u32 =
            LIVE.iter().take(words).map(|word| word.load(Ordering::Relaxed).count_ones()).sum();
        let room = load::room() / 2 / live.max(1);
        let (pace, limits) = (pace(self.device), limits());
        let range = self.stream.want(self.file, room, now, pace, limits)?;
        Some((range, self.stream.reach(self.file, room, pace, limits)))
    }

    /// Where the consumer is now: behind the last wired page. Gives how many
    /// places were looked at.
    fn look(&mut self, seen: &Seen<'_>, now: u64) -> u32 {
        let (front, end) = (self.stream.front(), self.stream.end());
        // What it has used last is still on its way to the socket: then it is
        // near, unless that is another one's who has got no further.
        self.looks = self.looks.wrapping_add(1);
        let near = seen.is_wired(front.saturating_sub(1)) && !self.looks.is_multiple_of(OTHERS);
        let far = if near { end.min(front.saturating_add(NEAR)) } else { end };
        let (mut looked, mut last) = (1, None);
        for pindex in stream::places(front, far) {
            looked += 1;
            if seen.is_wired(pindex) {
                last = Some(pindex);
            }
        }
        if let Some(last) = last {
            let next = far.min(last + stream::step(last.saturating_sub(front)));
            let fine = (last..next).take_while(|pindex| seen.is_wired(*pindex)).count();
            let before = self.stream.unused();
            self.stream.seen(last + fine as u64, now, pace(self.device), limits());
            stats::PAGES_USED.add(before.saturating_sub(self.stream.unused()));
            let (rate, known) = (self.stream.rate(), RATE.load(Ordering::Relaxed));
            RATE.store((known - known / 16).max(rate), Ordering::Relaxed);
            looked += fine as u32;
        }
        looked
    }
}

/// Pages within which a consumer is looked for that cannot be far.
const NEAR: u64 = 512;
/// One look in so many does not believe that.
const OTHERS: u8 = 8;

impl Work for Set {
    fn task(&self) -> &Task {
        &self.task
    }

    /// Read what the set's streams want.
    fn work(&self) {
        for way in 0..WAYS {
            if STOPPED.load(Ordering::Acquire) || !ENABLED.load(Ordering::Relaxed) {
                return;
            }
            // After a wait for the block map it wants something else.
            if self.serve(way, false) == Some(Why::Waited) {
                self.serve(way, true);
            }
        }
    }
}

impl Set {
    /// Read what the stream in slot `way` wants. Gives why that was not all.
    fn serve(&self, way: usize, patient: bool) -> Option<Why> {
        let (identity, wanted, generation, unmapped) = {
            let mut slots = self.slots.lock();
            let slot = slots.get_mut(way)?.as_mut()?;
            let (wanted, unmapped) = (slot.wants(systm::uptime_us()), slot.unmapped.take());
            if let Some((range, _)) = &wanted {
                slot.reading = true;
                slot.stream.reading(range);
            }
            (slot.identity, wanted, slot.generation, unmapped)
        };
        let why = wanted.and_then(|(pages, reach)| {
            let tag = (self.index * WAYS + way) | (generation as usize) << 32;
            let from = pages.start;
            let window = Window { pages, reach, tag, in_flight: IN_FLIGHT.get(), patient };
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

/// The timer: look at the consumers of live streams, a few sets at a time.
fn tick() {
    let sets = SETS.get();
    let (now, words) = (systm::uptime_us(), sets.len().div_ceil(64).max(1));
    let mut budget = BUDGET;
    let hand = HAND.load(Ordering::Relaxed) as usize;
    for step in 0..words {
        let at = (hand + step) % words;
        let Some(word) = LIVE.get(at) else { break };
        let mut bits = word.load(Ordering::Acquire);
        while bits != 0 {
            let bit = bits.trailing_zeros();
            bits &= bits - 1;
            if let Some(set) = sets.get(at * 64 + bit as usize) {
                // Cleared first: who has it looked at meanwhile sets it again.
                word.fetch_and(!(1 << bit), Ordering::AcqRel);
                if look(set, now, &mut budget) {
                    word.fetch_or(1 << bit, Ordering::Release);
                }
            }
        }
        if budget == 0 {
            HAND.store(((at + 1) % words) as u32, Ordering::Relaxed);
            break;
        }
    }
    ARMED.swap(false, Ordering::SeqCst);
    if LIVE.iter().any(|word| word.load(Ordering::SeqCst) != 0) {
        arm();
    }
}

/// Look at a set's consumers, and have read what they want. Whether there is
/// one to be looked at again.
fn look(set: &Set, now: u64, budget: &mut u32) -> bool {
    let (mut live, mut wants) = (false, false);
    let mut slots = set.slots.lock();
    for place in slots.iter_mut() {
        let Some(slot) = place else { continue };
        let idle = slot.stream.idle_us(now) > IDLE_US;
        if !slot.stream.is_followed() || idle || !latency::is_worth_hiding(slot.device) {
            continue;
        }
        let identity = slot.identity;
        // An object whose lock is taken is looked at the next time.
        match identity.look(|seen| seen.map(|seen| slot.look(seen, now))) {
            Some(None) => {
                *place = None;
                continue;
            }
            looked => *budget = budget.saturating_sub(looked.flatten().unwrap_or(1)),
        }
        live |= slot.stream.goes_on(slot.file);
        wants |= slot.wants(now).is_some();
    }
    drop(slots);
    if wants {
        QUEUE.enqueue(set);
    }
    live
}
