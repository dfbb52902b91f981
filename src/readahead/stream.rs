// SPDX-License-Identifier: BSD-2-Clause
//! One stream: the position of its consumer, the end of what has been read, and
//! the next window. Pure, without the kernel.
//!
//! All positions are page indices and all lengths are pages.

use crate::pager::request::Ask;

/// Bounds of a window, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The first window of a stream without a profile.
    pub initial: u32,
    /// The largest window.
    pub max: u32,
    /// Pages in one buf (maxphys), the step by which windows grow.
    pub chunk: u32,
}

/// The speed of the device and of the user's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The device's latency, in microseconds.
    pub latency_us: u32,
    /// The rate assumed for a stream without a measured one, in pages a second.
    pub rate: u32,
    /// The largest first window that the profile allows.
    pub trust: u32,
    /// Microseconds between two checks of a consumer.
    pub poll_us: u32,
}

/// How a miss fits a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// The miss is outside the stream.
    No,
    /// The miss belongs to the same call as the last one.
    Same,
    /// The consumer has used all pages that were read.
    RanOut,
    /// The miss is in the gap that was left for the consumer to request.
    Gap,
    /// The pages had been read, or were about to be, and are gone.
    Lost,
}

/// A consumer that may be reading a file sequentially.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The first page of the stream.
    origin: u64,
    /// The page that the consumer needs next.
    front: u64,
    /// Every page before this one was requested or read ahead.
    end: u64,
    /// The end of the range that the caller has wished for.
    wanted: u64,
    /// The gap that the last window has left for the consumer to request.
    gap: u64,
    gap_end: u64,
    /// The consumer has requested the first pages of the gap. The others can be
    /// read with them, since the consumer has to wait anyway.
    gap_asked: bool,
    /// The first page of the call that the last miss belongs to, and the time
    /// of that miss.
    call: u64,
    asked_us: u64,
    /// The largest number of pages that the consumer has requested in one call.
    reach: u32,
    /// The stream's first window.
    first_window: u32,
    /// The window: pages to read ahead of the consumer, at most.
    window: u32,
    /// Pages used since the window grew.
    used: u32,
    /// Window pages that the consumer has not reached yet.
    unused: u32,
    /// The measured rate in pages a second; 0 if unknown.
    rate: u32,
    /// Misses before this page do not grow the window again.
    grown_at: u64,
    /// A caller has wished for as much as possible: sendfile(2) limits its wish
    /// to maxphys.
    wants_all: bool,
    /// The stream is trusted to continue, until a miss shows otherwise.
    trusted: bool,
    /// Read-ahead follows the stream: it has continued once, or its caller
    /// wishes for much.
    following: bool,
    /// The stream has continued from one call to the next, or is trusted. Only
    /// then is it read ahead beyond the caller's wish.
    sure: bool,
    /// The consumer waits for the block map, and then for its data.
    unmapped: bool,
    /// The time when the front last moved, in microseconds.
    moved_us: u64,
    /// The time when a window was last read.
    read_us: u64,
    /// The time of the last rate measurement, and the front at that time.
    rated_us: u64,
    rated_at: u64,
    /// The consumer waits for a disk: that time must not count in its rate.
    stalled: bool,
}

/// A stream that begins with page 0 is trusted from this many pages on,
/// requested and wished for. A wish for this many makes read-ahead follow a
/// stream.
const WHOLE: u64 = 64;

/// Whether the caller's wish is large enough for a window.
fn wants_much(ask: Ask) -> bool {
    u64::from(ask.wish) >= WHOLE
}

fn wants_all(ask: Ask, limits: Limits) -> bool {
    ask.wish >= limits.chunk
}

/// Misses within this time belong to one call, which misses once for each
/// extent. Microseconds.
const CALL_US: u64 = 2_000;
/// The shortest time over which a rate is measured; a shorter one would measure
/// bursts. Microseconds.
const RATE_US: u64 = 16_000;
/// The smallest distance between two pages that are checked: no socket buffer
/// in use is smaller.
const STEP: u64 = 8;
/// Far from the last known front, a step is this part of the distance.
const SPREAD: u64 = 64;

/// The step to the next page to check, `far` pages after the last known front.
pub fn step(far: u64) -> u64 {
    STEP.max(far / SPREAD)
}

/// The pages to check for a consumer between its last known `front` and `end`:
/// at most a few hundred, however long the range.
pub fn places(front: u64, end: u64) -> impl Iterator<Item = u64> {
    let next = move |at: &u64| Some(at.saturating_add(step(at.saturating_sub(front))));
    core::iter::successors(Some(front), next).take_while(move |at| *at < end)
}

/// The end of the wired range that begins with `last`, at most `end`. A call of
/// sendfile(2) wires all of its pages, so few checks suffice: with doubling
/// steps first, then a binary search in the last step.
pub fn end_of_wired(last: u64, end: u64, mut is_wired: impl FnMut(u64) -> bool) -> u64 {
    // `low` is wired; `high` is not, or is the end.
    let (mut low, mut high, mut step) = (last, end.max(last.saturating_add(1)), 1);
    while high - low > step {
        if !is_wired(low + step) {
            high = low + step;
            break;
        }
        low += step;
        step *= 2;
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if is_wired(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

impl Stream {
    /// Begins a stream with a miss.
    pub fn begin(ask: Ask, now_us: u64, pace: Pace, limits: Limits) -> Self {
        let front = ask.end();
        let mut stream = Self {
            origin: ask.first,
            front,
            end: ask.read_end(),
            wanted: ask.wish_end(),
            gap: 0,
            gap_end: 0,
            gap_asked: false,
            call: ask.first,
            asked_us: now_us,
            reach: ask.count,
            first_window: 0,
            window: ask.wish,
            used: 0,
            unused: 0,
            rate: 0,
            grown_at: 0,
            wants_all: wants_all(ask, limits),
            trusted: false,
            following: wants_much(ask),
            sure: false,
            unmapped: ask.unmapped,
            moved_us: now_us,
            read_us: now_us,
            rated_us: now_us,
            rated_at: front,
            stalled: true,
        };
        stream.trust(pace, limits);
        stream
    }

    /// Trusts the stream to continue, and gives it a first window, when one of
    /// these holds: it begins with page 0 and is [`WHOLE`] pages long, wishes
    /// included; its caller wishes for as much as possible; it has come as far
    /// as the initial window.
    fn trust(&mut self, pace: Pace, limits: Limits) {
        let begins = self.origin == 0 && self.wanted >= WHOLE;
        let came = self.front.saturating_sub(self.origin) >= u64::from(limits.initial);
        if self.trusted || !(begins || came || self.wants_all) {
            return;
        }
        let most = limits.max.min(pace.trust).max(limits.initial);
        let window = hidden(pace.rate, pace).clamp(limits.initial, most);
        let before = if self.sure { self.window } else { 0 };
        (self.first_window, self.window) = (window, before.max(window));
        (self.trusted, self.following, self.sure) = (true, true, true);
    }

    /// The page that the consumer needs next, as far as known.
    pub fn front(&self) -> u64 {
        self.front
    }

    /// The page behind the last one read or requested.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The measured rate in pages a second; 0 if unknown.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Window pages that the consumer has not reached yet.
    pub fn unused(&self) -> u32 {
        self.unused
    }

    /// Microseconds since the front last moved.
    pub fn idle_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.moved_us)
    }

    /// Whether read-ahead follows the stream.
    pub fn is_followed(&self) -> bool {
        self.following
    }

    /// Handles a miss of the same file.
    pub fn missed(&mut self, ask: Ask, now_us: u64, pace: Pace, limits: Limits) -> Fit {
        // A call that begins in the middle of a page needs that page again. And
        // a call wires all its pages before it misses them, so the front may be
        // beyond the miss.
        let back = self.front.saturating_sub(u64::from(self.reach.max(1)));
        let in_gap = (self.gap..self.gap_end).contains(&ask.first);
        if !in_gap && (ask.first < back || ask.first > self.end) {
            return Fit::No;
        }
        let front = ask.end();
        self.wanted = self.wanted.max(ask.wish_end());
        let same = now_us.saturating_sub(self.asked_us) < CALL_US && ask.first >= self.call;
        if !same {
            self.call = ask.first;
        }
        self.asked_us = now_us;
        let reach = front.saturating_sub(self.call).min(u64::from(u32::MAX));
        self.reach = self.reach.max(reach as u32);
        let fit = if ask.first < self.gap_end {
            // The consumer got here before its window could have: the window
            // was too small.
            if ask.first >= self.grown_at {
                self.grow(limits);
                self.grown_at = self.gap_end;
            }
            self.gap = self.gap.max(ask.read_end());
            self.gap_asked = true;
            Fit::Gap
        } else if same || ask.first.saturating_add(1) < self.front {
            Fit::Same
        } else if ask.first.saturating_add(1) < self.end {
            self.window = (self.window / 2).max(limits.initial.min(limits.chunk));
            self.used = 0;
            self.unused = 0;
            self.end = front;
            Fit::Lost
        } else {
            // A stream that has only just continued starts with a small window:
            // random access looks like this at times.
            if !self.sure {
                self.window = self.reach.saturating_add(ask.ahead);
            }
            self.grow(limits);
            (self.following, self.sure) = (true, true);
            Fit::RanOut
        };
        self.end = self.end.max(ask.read_end());
        self.following |= wants_much(ask);
        self.wants_all |= wants_all(ask, limits);
        self.seen(front, now_us, pace, limits);
        self.stalled = true;
        self.unmapped = ask.unmapped;
        fit
    }

    /// Records that the consumer needs `front` next.
    pub fn seen(&mut self, front: u64, now_us: u64, pace: Pace, limits: Limits) {
        self.moved(front, now_us, limits);
        self.trust(pace, limits);
    }

    fn moved(&mut self, front: u64, now_us: u64, limits: Limits) {
        let moved = front.saturating_sub(self.front);
        if moved == 0 {
            return;
        }
        self.front = front;
        self.end = self.end.max(front);
        self.moved_us = now_us;
        self.unmapped = false;
        let pages = moved.min(u64::from(u32::MAX)) as u32;
        self.used = self.used.saturating_add(pages);
        self.unused = self.unused.saturating_sub(pages);
        if self.following && self.used >= self.window {
            self.grow(limits);
        }
        let us = now_us.saturating_sub(self.rated_us);
        if self.stalled {
            self.stalled = false;
            self.rated_us = now_us;
            self.rated_at = front;
        } else if us >= RATE_US {
            let pages = front.saturating_sub(self.rated_at);
            let rate = pages.saturating_mul(1_000_000).checked_div(us).unwrap_or(0);
            self.rate = (self.rate - self.rate / 8).max(rate.min(1 << 24) as u32);
            self.rated_us = now_us;
            self.rated_at = front;
        }
    }

    fn grow(&mut self, limits: Limits) {
        self.window = self.window.saturating_mul(2).min(limits.max);
        self.used = 0;
    }

    /// Whether the consumer has gone past its first window. `None` for a stream
    /// that was never trusted.
    pub fn has_used_first_window(&self) -> Option<bool> {
        let came = self.front.saturating_sub(self.origin);
        self.trusted.then_some(came > u64::from(self.first_window))
    }

    /// The index up to which the stream may be read, in a file of `pages`.
    fn goal(&self, pages: u64) -> u64 {
        match (self.following, self.sure) {
            (false, _) => 0,
            (true, false) => pages.min(self.wanted),
            (true, true) => pages,
        }
    }

    /// Whether a part of a file of `pages` is left to read.
    pub fn goes_on(&self, pages: u64) -> bool {
        self.end < self.goal(pages)
    }

    /// The pages to read now, in a file of `pages`. `room`: pages that may lie
    /// ahead of the consumer.
    ///
    /// A consumer that reaches the window before the device has read it would
    /// have to wait there, since pages in flight are busied. So the window
    /// leaves a gap, which the consumer requests itself: more pages than its
    /// socket takes at once. Once the consumer has requested some of them, the
    /// rest of the gap is read.
    ///
    /// One read is limited to the pages that the consumer uses in the time
    /// since the last read, and a quarter more; twice as much when the consumer
    /// is about to catch up. Otherwise its own requests would queue behind
    /// windows, and its threads behind the threads that complete them. The time
    /// counts only up to a limit, so a long pause is not made up for at once.
    pub fn want(
        &self,
        pages: u64,
        room: u32,
        now_us: u64,
        pace: Pace,
        limits: Limits,
    ) -> Option<core::ops::Range<u64>> {
        let pages = self.goal(pages);
        let gap = self.gap.max(self.front);
        if self.gap_asked && gap < self.gap_end.min(pages) && room > 0 {
            return Some(gap..self.gap_end.min(pages));
        }
        if self.end >= pages {
            return None;
        }
        let rate = self.rate_or(pace);
        let target = self.target(room, pace, limits);
        let lead = self.end.saturating_sub(self.front);
        let step = u64::from(limits.chunk).min(target / 2).max(1);
        if target == 0 || lead.saturating_add(step) > target {
            return None;
        }
        let len = (target - lead).next_multiple_of(step);
        let uses = |us: u64| u64::from(rate).saturating_mul(us) / 1_000_000;
        let latency_us = u64::from(pace.latency_us);
        let soon = uses(latency_us);
        // A consumer that waits for a disk gets its own data first. The window
        // comes later by the time between the two requests, and by a little for
        // its length.
        let asked_us = now_us.saturating_sub(self.asked_us);
        let after_us = if self.stalled { asked_us + latency_us / 64 } else { latency_us };
        // One gap ahead of the consumer delays it long enough. A consumer that
        // waits for the block map gets its data with the window.
        let early = lead < uses(after_us.min(latency_us));
        let late = early && self.gap_end <= self.front && !self.unmapped;
        let gap = if late { u64::from(self.reach).saturating_mul(2) } else { 0 };
        let start = self.end.saturating_add(gap);
        let idle_us = now_us.saturating_sub(self.read_us);
        let idle_us = idle_us.min(u64::from(pace.latency_us / 4 + pace.poll_us * 4));
        let quarters = if lead < soon { 8 } else { 5 };
        let most = u64::from(rate).saturating_mul(idle_us * quarters) / 4_000_000;
        let most = most.max(u64::from(limits.chunk));
        let end = self.end.saturating_add(len).min(start.saturating_add(most)).min(pages);
        (start < end).then_some(start..end)
    }

    /// The index up to which the stream may be read, in a file of `pages`,
    /// while a thread waits for the block map. Nothing else of the stream is
    /// read until that wait is over, and the next read takes as long again: so
    /// one and a half latencies, and one buf. Not more, since the consumer's
    /// own requests may queue behind it.
    pub fn reach(&self, pages: u64, room: u32, pace: Pace, limits: Limits) -> u64 {
        let rate = u64::from(self.rate_or(pace));
        let soon = rate.saturating_mul(u64::from(pace.latency_us)).saturating_mul(3) / 2_000_000;
        let most = self.target(room, pace, limits).min(soon + u64::from(limits.chunk));
        self.front.saturating_add(most).min(self.goal(pages))
    }

    /// Pages to have ahead of the consumer.
    fn target(&self, room: u32, pace: Pace, limits: Limits) -> u64 {
        let hidden = hidden(self.rate_or(pace), pace).saturating_add(limits.chunk);
        u64::from(hidden.min(self.window).min(limits.max).min(room))
    }

    fn rate_or(&self, pace: Pace) -> u32 {
        if self.rate > 0 { self.rate } else { pace.rate }
    }

    /// Records that `range` is about to be read. The pages skipped before it
    /// become the gap.
    pub fn reading(&mut self, range: &core::ops::Range<u64>) {
        if range.start >= self.gap_end && range.start > self.end {
            (self.gap, self.gap_end, self.gap_asked) = (self.end, range.start, false);
        }
    }

    /// Records that `range` is valid or in flight; `new`: pages read for this
    /// stream. An empty range cancels the gap that [`Stream::reading`]
    /// recorded, unless the consumer has requested it.
    pub fn read(&mut self, range: core::ops::Range<u64>, new: u32, now_us: u64) {
        if range.is_empty() {
            if !self.gap_asked && range.start == self.gap_end {
                (self.gap, self.gap_end) = (0, 0);
            }
            return;
        }
        self.read_us = now_us;
        self.unused = self.unused.saturating_add(new);
        if range.start < self.gap_end {
            self.gap = self.gap.max(range.end);
        }
        self.end = self.end.max(range.end);
    }

    /// Stops read-ahead until the stream continues again.
    pub fn halt(&mut self) {
        (self.following, self.sure) = (false, false);
    }
}

/// Pages that hide the device's latency from a consumer of this rate: those
/// that it uses in two and a half latencies.
fn hidden(rate: u32, pace: Pace) -> u32 {
    let pages = u64::from(rate) * u64::from(pace.latency_us) * 5 / 2_000_000;
    pages.min(u64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { initial: 512, max: 4096, chunk: 256 };
    const SLOW: Pace = Pace { latency_us: 30_000, rate: 3_000, trust: 4096, poll_us: 2_000 };
    const FILE: u64 = 100_000;
    /// A time when the first call is long over. Microseconds.
    const LATER: u64 = 40_000;

    fn ask(first: u64, count: u32, ahead: u32) -> Ask {
        Ask { first, count, wish: ahead, ahead, unmapped: false }
    }

    impl Stream {
        /// Reads a window completely.
        fn has_read(&mut self, range: core::ops::Range<u64>, new: u32, now: u64) {
            self.reading(&range);
            self.read(range, new, now);
        }
    }

    fn whole(rate: u32) -> Stream {
        let pace = Pace { rate, ..SLOW };
        Stream::begin(Ask { wish: 4000, ..ask(0, 16, 240) }, 0, pace, LIMITS)
    }

    #[test]
    fn a_beginning_is_followed_and_a_small_one_is_not() {
        let stream = whole(SLOW.rate);
        // 30 ms at 3,000 pages a second, two and a half times, and a buf. One
        // buf of it is read now.
        let want = stream.want(FILE, 9999, 0, SLOW, LIMITS);
        assert_eq!(want, Some(256..512));
        let small = Stream::begin(ask(0, 16, 0), 0, SLOW, LIMITS);
        assert_eq!(small.want(FILE, 9999, 0, SLOW, LIMITS), None);
    }

    #[test]
    fn a_known_rate_gives_a_whole_window_in_a_few_reads() {
        let mut stream = whole(30_000);
        let pace = Pace { rate: 30_000, ..SLOW };
        let mut now = 0;
        while let Some(want) = stream.want(FILE, 9999, now, pace, LIMITS) {
            // At most twice the rate, and no long pause made up for at once.
            let most =
                (30_000 * u64::from(pace.latency_us / 4 + 4 * pace.poll_us) / 500_000).max(256);
            assert!(want.end - want.start <= most, "{want:?}");
            stream.has_read(want, 0, now);
            now += 2_000;
        }
        // 30 ms at 30,000 pages a second, two and a half times, less a step.
        let lead = stream.end() - 16;
        assert!((2000..=2250 + 512).contains(&lead), "{lead}");
        assert!(now <= 60_000, "{now}");
    }

    #[test]
    fn what_was_not_read_for_long_is_not_made_up_for_at_once() {
        let mut stream = whole(30_000);
        let pace = Pace { rate: 30_000, ..SLOW };
        let early = stream.want(FILE, 9999, 20_000, pace, LIMITS).unwrap();
        let late = stream.want(FILE, 9999, 900_000, pace, LIMITS).unwrap();
        assert_eq!(early, late);
        stream.has_read(late, 0, 900_000);
    }

    #[test]
    fn places_are_few_and_reach_far() {
        assert!(places(7, 7).next().is_none());
        assert_eq!(places(100, 120).collect::<Vec<_>>(), [100, 108, 116]);
        for pages in [512, 4096, 16384, 1 << 18] {
            let all: Vec<_> = places(5, 5 + pages).collect();
            assert!(all.len() <= 1000, "{} of {pages}", all.len());
            // A wired range of a 64th of the distance is not stepped over.
            assert!(all.windows(2).all(|p| p[1] - p[0] <= ((p[0] - 5) / 64).max(8)));
            assert!(pages + 5 - all.last().unwrap() <= (pages / 64).max(8));
        }
    }

    #[test]
    fn waiting_for_a_disk_is_no_rate() {
        let mut stream = whole(SLOW.rate);
        stream.has_read(256..4000, 3744, 0);
        // The first data come after 30 ms.
        stream.seen(40, 30_000, SLOW, LIMITS);
        assert_eq!(stream.rate(), 0);
        stream.seen(440, 40_000, SLOW, LIMITS);
        assert_eq!(stream.rate(), 0);
        stream.seen(840, 50_000, SLOW, LIMITS);
        assert_eq!(stream.rate(), 40_000);
        // The rate of a slow consumer is accepted after a while.
        (0..80).for_each(|i| stream.seen(841 + i, 60_000 + i * 20_000, SLOW, LIMITS));
        assert!(stream.rate() < 200, "{}", stream.rate());
    }

    #[test]
    fn random_access_never_grows_a_window() {
        let mut stream = Stream::begin(ask(5000, 16, 0), 0, SLOW, LIMITS);
        for first in [9000, 100, 5500, 4000] {
            assert_eq!(stream.missed(ask(first, 16, 0), LATER, SLOW, LIMITS), Fit::No);
        }
        assert_eq!(stream.want(FILE, 9999, 0, SLOW, LIMITS), None);
    }

    #[test]
    fn what_is_trusted_bounds_a_first_window() {
        let pace = Pace { rate: 30_000, trust: 600, ..SLOW };
        let stream = Stream::begin(Ask { wish: 4000, ..ask(0, 16, 240) }, 0, pace, LIMITS);
        assert_eq!(stream.window, 600);
        assert_eq!(stream.has_used_first_window(), Some(false));
        let small = Stream::begin(ask(0, 16, 0), 0, pace, LIMITS);
        assert_eq!(small.has_used_first_window(), None);
    }

    #[test]
    fn the_second_place_in_turn_makes_a_stream() {
        let mut stream = Stream::begin(ask(5000, 16, 16), 0, SLOW, LIMITS);
        assert_eq!(stream.missed(ask(5032, 16, 16), LATER, SLOW, LIMITS), Fit::RanOut);
        assert!(stream.want(FILE, 9999, 0, SLOW, LIMITS).is_some());
    }

    #[test]
    fn a_call_over_many_extents_is_one() {
        // Random access to four extents in one call is not a stream,
        let mut stream = Stream::begin(ask(5000, 16, 0), 0, SLOW, LIMITS);
        for i in 1..4 {
            let fit = stream.missed(ask(5000 + i * 16, 16, 0), i * 100, SLOW, LIMITS);
            assert_eq!((fit, stream.is_followed()), (Fit::Same, false));
        }
        assert_eq!((stream.front(), stream.end(), stream.reach), (5064, 5064, 64));
        // a continuation in another call is,
        assert_eq!(stream.missed(ask(5064, 16, 0), LATER, SLOW, LIMITS), Fit::RanOut);
        assert_eq!(stream.window, 128);
        // and so is a call from a file's beginning that goes so far.
        let mut stream = Stream::begin(ask(0, 24, 0), 0, SLOW, LIMITS);
        assert!(!stream.is_followed());
        assert_eq!(stream.missed(ask(24, 40, 0), 100, SLOW, LIMITS), Fit::Same);
        assert!(stream.is_followed() && stream.window >= LIMITS.initial);
        assert_eq!(stream.has_used_first_window(), Some(false));
    }

    #[test]
    fn what_a_caller_wants_is_read_and_no_more() {
        // Somewhere in a file, a caller wants 256 pages, 64 of them now.
        let far = Ask { wish: 192, unmapped: true, ..ask(5000, 64, 0) };
        let mut stream = Stream::begin(far, 0, SLOW, LIMITS);
        let mut now = 0;
        while let Some(want) = stream.want(FILE, 9999, now, SLOW, LIMITS) {
            // The consumer waits for the block map: no gap is left.
            assert_eq!(want.start, stream.end());
            stream.has_read(want, 0, now);
            now += 2_000;
        }
        assert!(stream.end() <= 5256 && stream.end() > 5128, "{}", stream.end());
        assert!(!stream.sure && stream.goes_on(FILE) == (stream.end() < 5256));
        stream.seen(5250, now, SLOW, LIMITS);
        while let Some(want) = stream.want(FILE, 9999, now, SLOW, LIMITS) {
            stream.has_read(want, 0, now);
            now += 2_000;
        }
        assert!((5250..=5256).contains(&stream.end()), "{}", stream.end());
        // Once it has continued, it is followed.
        let at = stream.end();
        assert_eq!(stream.missed(ask(at, 64, 64), now + LATER, SLOW, LIMITS), Fit::RanOut);
        assert!(stream.want(FILE, 9999, now + LATER, SLOW, LIMITS).is_some());
        assert!(stream.sure && stream.goes_on(FILE));
    }

    #[test]
    fn who_wants_as_much_as_can_be_wanted_is_trusted_anywhere() {
        let far = |wish| Ask { wish, ..ask(5000, 64, 0) };
        assert!(!Stream::begin(far(192), 0, SLOW, LIMITS).trusted);
        let stream = Stream::begin(far(LIMITS.chunk), 0, SLOW, LIMITS);
        assert!(stream.trusted && stream.goes_on(FILE) && stream.window >= LIMITS.initial);
        assert_eq!(stream.has_used_first_window(), Some(false));
    }

    #[test]
    fn pages_are_wired_before_they_are_missed() {
        let mut stream = whole(30_000);
        assert_eq!(stream.missed(ask(256, 64, 0), LATER, SLOW, LIMITS), Fit::RanOut);
        stream.seen(384, 2 * LATER, SLOW, LIMITS);
        let before = stream;
        assert_eq!(stream.missed(ask(320, 64, 0), 2 * LATER, SLOW, LIMITS), Fit::Same);
        assert_eq!((stream.window, stream.front()), (before.window, 384));
        assert_eq!(stream.missed(ask(300, 16, 0), 3 * LATER, SLOW, LIMITS), Fit::No);
        // A long call is seen at its end before it misses a gap in its middle.
        stream.has_read(500..900, 400, 3 * LATER);
        stream.seen(800, 3 * LATER, SLOW, LIMITS);
        assert_eq!(stream.missed(ask(390, 16, 0), 3 * LATER, SLOW, LIMITS), Fit::Gap);
        assert_eq!(stream.front(), 800);
    }

    #[test]
    fn lost_pages_shrink_the_window() {
        let mut stream = whole(30_000);
        stream.has_read(stream.end()..3000, 2744, 0);
        let before = stream.window;
        assert_eq!(stream.missed(ask(500, 16, 0), LATER, SLOW, LIMITS), Fit::Lost);
        assert_eq!((stream.window, stream.end(), stream.unused()), (before / 2, 516, 0));
        for _ in 0..20 {
            stream.has_read(stream.end()..stream.front() + 100, 100, 1);
            let _ = stream.missed(ask(stream.front(), 16, 0), LATER, SLOW, LIMITS);
        }
        assert!(stream.window >= 1);
    }

    #[test]
    fn a_gap_is_left_for_a_consumer_that_comes_too_soon() {
        let mut stream = whole(30_000);
        let pace = Pace { rate: 30_000, ..SLOW };
        // One buf at first, and more as time goes on.
        let first = stream.want(FILE, 9999, 0, pace, LIMITS).unwrap();
        assert_eq!(first.end - first.start, 256);
        let want = stream.want(FILE, 9999, 40_000, pace, LIMITS).unwrap();
        assert_eq!(want.start, 256 + 32);
        stream.has_read(want.clone(), (want.end - want.start) as u32, 0);
        // The consumer requests the gap, in any number of calls.
        let before = stream;
        assert_eq!(stream.missed(ask(256, 20, 0), LATER, pace, LIMITS), Fit::Gap);
        // The rest of the gap is read with the first request.
        assert_eq!(stream.want(FILE, 9999, LATER, pace, LIMITS), Some(276..288));
        let mut other = stream;
        other.has_read(276..288, 12, LATER);
        assert!(other.want(FILE, 9999, LATER, pace, LIMITS).is_none_or(|w| w.start == other.end()));
        assert_eq!(stream.missed(ask(276, 12, 0), LATER, pace, LIMITS), Fit::Gap);
        assert_eq!((stream.window, stream.end()), ((before.window * 2).min(LIMITS.max), want.end));
        // With enough pages ahead, it finds the next window ready.
        let lead = want.end - stream.front();
        assert!(lead >= 900, "{lead}");
        let pace = Pace { latency_us: 20_000, ..pace };
        stream.seen(want.end - 700, 2, SLOW, LIMITS);
        assert_eq!(stream.want(FILE, 9999, 0, pace, LIMITS).unwrap().start, want.end);
    }

    #[test]
    fn a_gap_can_be_asked_for_while_its_window_is_read() {
        let mut stream = whole(30_000);
        let pace = Pace { rate: 30_000, ..SLOW };
        let want = stream.want(FILE, 9999, 40_000, pace, LIMITS).unwrap();
        assert_eq!((want.start, want.end > 288), (288, true));
        stream.reading(&want);
        assert_eq!(stream.missed(ask(256, 20, 0), LATER, pace, LIMITS), Fit::Gap);
        let mut failed = stream;
        stream.read(want.clone(), (want.end - want.start) as u32, LATER);
        assert_eq!(stream.want(FILE, 9999, LATER, pace, LIMITS), Some(276..288));
        assert_eq!(stream.end(), want.end);
        // The same holds when there was no window after all,
        failed.read(288..288, 0, LATER);
        assert_eq!(failed.want(FILE, 9999, LATER, pace, LIMITS), Some(276..288));
        // and a later window without one does not remove the gap.
        let mut later = stream;
        later.reading(&(later.end()..later.end() + 9));
        later.read(later.end()..later.end(), 0, LATER);
        assert_eq!((later.gap, later.gap_end), (276, 288));
        // Without a request the gap is cancelled, and left again.
        let mut stream = whole(30_000);
        stream.reading(&want);
        stream.read(288..288, 0, LATER);
        assert_eq!(stream.want(FILE, 9999, 40_000, pace, LIMITS), Some(want));
    }

    #[test]
    fn while_the_block_map_is_read_it_goes_on_to_the_window_s_end() {
        let stream = whole(30_000);
        let pace = Pace { rate: 30_000, ..SLOW };
        // One and a half times 30 ms, and a buf.
        assert_eq!(stream.reach(FILE, 9999, pace, LIMITS), 16 + 1350 + 256);
        assert_eq!(stream.reach(FILE, 700, pace, LIMITS), 16 + 700);
        assert_eq!(stream.reach(600, 9999, pace, LIMITS), 600);
    }

    #[test]
    fn a_consumer_that_waits_itself_needs_no_gap() {
        let pace = Pace { rate: 30_000, ..SLOW };
        let mut stream = whole(30_000);
        let at = stream.end();
        // The 240 pages of its own request last 8 ms: a window sent at once is
        // ready,
        assert_eq!(stream.missed(ask(at, 16, 240), LATER, pace, LIMITS), Fit::RanOut);
        let want = |us| stream.want(FILE, 9999, LATER + us, pace, LIMITS).unwrap();
        assert_eq!(want(500).start, stream.end());
        // and one that is sent much later is not.
        assert!(want(9_000).start > stream.end());
    }

    #[test]
    fn who_is_seen_to_go_so_far_is_trusted() {
        let mut stream = Stream::begin(ask(5000, 64, 192), 0, SLOW, LIMITS);
        assert_eq!(stream.missed(ask(5256, 64, 192), LATER, SLOW, LIMITS), Fit::RanOut);
        assert!(!stream.trusted);
        stream.seen(5000 + u64::from(LIMITS.initial), 2 * LATER, SLOW, LIMITS);
        assert!(stream.trusted && stream.window >= LIMITS.initial);
    }

    #[test]
    fn the_end_of_wired_pages_is_found_with_few_looks() {
        for (last, wired, end) in [(0, 1, 1), (9, 1, 600), (9, 2, 11), (3, 8, 500), (99, 512, 611)]
        {
            let mut looks = 0;
            let found = end_of_wired(last, end, |pindex| {
                looks += 1;
                pindex < last + wired
            });
            assert_eq!(found, (last + wired).min(end));
            assert!(looks <= 20, "{looks}");
        }
        // The longest step of the longest window.
        let mut looks = 0;
        let step = step(1 << 18);
        for wired in 1..=step {
            assert_eq!(
                end_of_wired(7, 7 + step, |p| {
                    looks += 1;
                    p < 7 + wired
                }),
                7 + wired
            );
        }
        assert!(u64::from(looks as u32) <= 32 * step && places(0, 1 << 18).count() < 480);
    }

    #[test]
    fn a_halted_stream_reads_nothing() {
        let mut stream = whole(30_000);
        stream.halt();
        assert_eq!(stream.want(FILE, 9999, 0, SLOW, LIMITS), None);
    }

    proptest! {
        /// A steady consumer: windows lie ahead of it, contiguous, and never
        /// further than max and a step.
        #[test]
        fn windows_are_contiguous_and_bounded(
            steps in prop::collection::vec((1u64..600, 500u64..20_000), 1..200),
            room in 0u32..6000, latency_us in 1u32..100_000,
        ) {
            let pace = Pace { latency_us, ..SLOW };
            let (mut stream, mut now, mut front, mut read) = (whole(SLOW.rate), 0, 16, 0);
            for (pages, us) in steps {
                now += us;
                front = (front + pages).min(stream.end());
                stream.seen(front, now, SLOW, LIMITS);
                if let Some(want) = stream.want(FILE, room, now, pace, LIMITS) {
                    let gap = want.start - stream.end();
                    prop_assert!(gap == 0 || gap == 2 * u64::from(stream.reach), "{}", gap);
                    prop_assert!(want.end > want.start && want.end <= FILE);
                    let far = u64::from(LIMITS.max.min(room) + LIMITS.chunk);
                    prop_assert!(want.end <= stream.front() + far);
                    let new = (want.end - want.start) as u32;
                    // Twice the use in the longest pause that counts.
                    let rate = if stream.rate() > 0 { stream.rate() } else { pace.rate };
                    let pause_us = u64::from(latency_us / 4 + 4 * pace.poll_us);
                    let most = u64::from(rate) * pause_us / 500_000;
                    prop_assert!(u64::from(new) <= most.max(u64::from(LIMITS.chunk)), "{}", new);
                    read += u64::from(new);
                    stream.has_read(want, new, now);
                }
                prop_assert!(stream.front() <= stream.end());
                prop_assert!(stream.window <= LIMITS.max);
                prop_assert!(u64::from(stream.unused()) <= read.min(stream.end() - stream.front()));
            }
        }
    }
}
