// SPDX-License-Identifier: BSD-2-Clause
//! One stream: where its consumer is, how far has been read, and how far to
//! read. Pure, without the kernel.
//!
//! All positions are page indices and all lengths are pages.

use crate::pager::request::Ask;

/// Bounds of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// What a stream begins with when nothing is known.
    pub initial: u32,
    /// What no window passes.
    pub max: u32,
    /// What one buf holds (maxphys): windows grow by as much.
    pub chunk: u32,
}

/// What the world is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Microseconds that the device takes.
    pub latency_us: u32,
    /// Pages a second, for a stream that is not measured yet.
    pub rate: u32,
    /// How far a stream that nothing is known of may be read at once.
    pub trust: u32,
    /// Microseconds between two looks at a consumer.
    pub poll_us: u32,
}

/// How a miss fits a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It is somewhere else.
    No,
    /// It is a part of the call that the last one was a part of.
    Same,
    /// The consumer has used up what was read.
    RanOut,
    /// It is in the gap that was left for the consumer to ask for.
    Gap,
    /// Pages had been read, or were about to be, and are not there.
    Lost,
}

/// A consumer that may be going through a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The page that it began with.
    origin: u64,
    /// The page that the consumer needs next.
    front: u64,
    /// Every page before this one was asked for or read ahead.
    end: u64,
    /// So far a caller has said that it will go.
    wanted: u64,
    /// The last window has left these out for the consumer to ask for.
    gap: u64,
    gap_end: u64,
    /// The consumer has asked for the first of them: the others may come with
    /// those, since it has to wait anyway.
    gap_asked: bool,
    /// Where the call began that the last miss was a part of, and the time of
    /// that miss.
    call: u64,
    asked_us: u64,
    /// The most pages that the consumer has asked for in one call.
    reach: u32,
    /// The window that it began with.
    first_window: u32,
    /// How far before the consumer to read at most.
    window: u32,
    /// Pages used since the window grew.
    used: u32,
    /// Pages of windows that the consumer has not come to yet.
    unused: u32,
    /// Pages a second; 0 if unknown.
    rate: u32,
    /// Up to here the window has grown for being too small.
    grown_at: u64,
    /// Its caller wants as much as a wish can say: sendfile(2) cuts it off at
    /// maxphys.
    wants_all: bool,
    /// Whether it was trusted to go on for as long as nothing speaks against it.
    trusted: bool,
    /// Whether it has gone on from one place to the next, or is meant to.
    following: bool,
    /// Whether it has gone on from one call to the next, or is trusted.
    sure: bool,
    /// The consumer waits for the block map, and then for its data.
    unmapped: bool,
    /// When the front last moved, in microseconds.
    moved_us: u64,
    /// When a window was last read.
    read_us: u64,
    /// When the rate was last measured, and where the front was.
    rated_us: u64,
    rated_at: u64,
    /// The consumer waits for a disk: how long says nothing about its rate.
    stalled: bool,
}

/// From so many pages on that a caller wants or has had, a file's beginning is
/// the beginning of a stream.
const WHOLE: u64 = 64;

/// Whether what a caller wants next is worth a window.
fn wants_much(ask: Ask) -> bool {
    u64::from(ask.wish) >= WHOLE
}

fn wants_all(ask: Ask, limits: Limits) -> bool {
    ask.wish >= limits.chunk
}

/// Misses in so short a time are of one call, which asks once for each extent.
const CALL_US: u64 = 2_000;
/// The time over which a rate is measured: over less, it is one of bursts.
const RATE_US: u64 = 16_000;
/// Pages between two places looked at: no socket buffer in use is smaller.
const STEP: u64 = 8;
/// Steps are longer far from where the consumer was, by this part of the way.
const SPREAD: u64 = 64;

/// Pages from a place `far` pages before the consumer to the next one to be
/// looked at.
pub fn step(far: u64) -> u64 {
    STEP.max(far / SPREAD)
}

/// Where to look for a consumer that needed `front` last, up to `end`: a few
/// hundred places at most, however far that is.
pub fn places(front: u64, end: u64) -> impl Iterator<Item = u64> {
    let next = move |at: &u64| Some(at.saturating_add(step(at.saturating_sub(front))));
    core::iter::successors(Some(front), next).take_while(move |at| *at < end)
}

/// Where the wired pages end that begin with `last`, at most at `end`: a call
/// of sendfile(2) wires all of its pages. Looks at few of them: in growing
/// steps first, and then in halves of the last one.
pub fn end_of_wired(last: u64, end: u64, mut is_wired: impl FnMut(u64) -> bool) -> u64 {
    // `low` is wired, and `high` is not, or is the end.
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
    /// A stream that begins with a miss.
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

    /// Who goes so far from a file's beginning is trusted to go on, and so is,
    /// anywhere, who wants as much as can be wanted, or has come as far as a
    /// first window.
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

    /// The page that the consumer needs next, as far as is known.
    pub fn front(&self) -> u64 {
        self.front
    }

    /// The page behind the last one read or asked for.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Pages a second; 0 if unknown.
    pub fn rate(&self) -> u32 {
        self.rate
    }

    /// Pages of windows that the consumer has not come to yet.
    pub fn unused(&self) -> u32 {
        self.unused
    }

    /// Microseconds in which the front has not moved.
    pub fn idle_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.moved_us)
    }

    /// Whether read-ahead follows the stream.
    pub fn is_followed(&self) -> bool {
        self.following
    }

    /// A miss of the same file.
    pub fn missed(&mut self, ask: Ask, now_us: u64, pace: Pace, limits: Limits) -> Fit {
        // A call that goes on in the middle of a page needs that page again,
        // and it wires all its pages, where it may have been seen, before it
        // asks for them.
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
            // It got here before its window could have: that was too small.
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
            // What has only just shown that it goes on begins with little:
            // one in so many random accesses looks the same.
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

    /// The consumer was seen to need `front` next.
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

    /// Whether the consumer has gone on past the window that it was trusted
    /// with; `None` for a stream that has not been.
    pub fn has_used_first_window(&self) -> Option<bool> {
        let came = self.front.saturating_sub(self.origin);
        self.trusted.then_some(came > u64::from(self.first_window))
    }

    /// How far it may be read at all, in a file of `pages`.
    fn goal(&self, pages: u64) -> u64 {
        match (self.following, self.sure) {
            (false, _) => 0,
            (true, false) => pages.min(self.wanted),
            (true, true) => pages,
        }
    }

    /// Whether there is anything left of a file of `pages` to be read.
    pub fn goes_on(&self, pages: u64) -> bool {
        self.end < self.goal(pages)
    }

    /// The pages to read now, of a file of `pages`, when at most `room` may
    /// lie before the consumer.
    ///
    /// A consumer that will be at the window's beginning before the device
    /// has brought it would have to wait there, since pages in flight are
    /// busied. So a gap is left, which the consumer asks for itself without
    /// waiting: more than its socket takes at once. Once it has asked, what
    /// is left of the gap is read, which comes with what it has asked for.
    ///
    /// What is read in one go is bounded by what the consumer uses in the
    /// time since the last one, so that its own requests do not stand in a
    /// queue behind windows, nor its threads behind those that complete them:
    /// by twice as much when it is about to come too soon, else by a quarter
    /// more. What was not read for a long time is not made up for at once.
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
        // One that waits for a disk itself gets its data first, and the window
        // as much later as it is sent later, and a little for being moved.
        let asked_us = now_us.saturating_sub(self.asked_us);
        let after_us = if self.stalled { asked_us + latency_us / 64 } else { latency_us };
        // One gap before it keeps the consumer long enough.
        // One that waits for the block map gets its data with the window.
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

    /// How far it may be read, in a file of `pages`, while a thread waits for
    /// the block map: until that is over nothing else of it is, and what is
    /// read then takes as long again. No more, since what the consumer itself
    /// has asked for may get behind it.
    pub fn reach(&self, pages: u64, room: u32, pace: Pace, limits: Limits) -> u64 {
        let rate = u64::from(self.rate_or(pace));
        let soon = rate.saturating_mul(u64::from(pace.latency_us)).saturating_mul(3) / 2_000_000;
        let most = self.target(room, pace, limits).min(soon + u64::from(limits.chunk));
        self.front.saturating_add(most).min(self.goal(pages))
    }

    /// Pages to have before the consumer.
    fn target(&self, room: u32, pace: Pace, limits: Limits) -> u64 {
        let hidden = hidden(self.rate_or(pace), pace).saturating_add(limits.chunk);
        u64::from(hidden.min(self.window).min(limits.max).min(room))
    }

    fn rate_or(&self, pace: Pace) -> u32 {
        if self.rate > 0 { self.rate } else { pace.rate }
    }

    /// The pages of `range` are about to be read; those left out before it
    /// are the consumer's to ask for.
    pub fn reading(&mut self, range: &core::ops::Range<u64>) {
        if range.start >= self.gap_end && range.start > self.end {
            (self.gap, self.gap_end, self.gap_asked) = (self.end, range.start, false);
        }
    }

    /// The pages of `range` are there or on their way, `new` of them for this
    /// stream; none of what it said to [`Stream::reading`] if it is empty.
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

    /// Read no more until the stream shows again that it is one.
    pub fn halt(&mut self) {
        (self.following, self.sure) = (false, false);
    }
}

/// Pages to have ready for a consumer of this rate not to feel the device:
/// what it uses in two and a half times the latency.
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
    /// When the first call is long over.
    const LATER: u64 = 40_000;

    fn ask(first: u64, count: u32, ahead: u32) -> Ask {
        Ask { first, count, wish: ahead, ahead, unmapped: false }
    }

    impl Stream {
        /// A window from its beginning to its end.
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
        // 30 ms at 3,000 pages a second, two and a half times, and a buf,
        // of which one buf is read now.
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
            // Twice the rate at the most, and no long time at once.
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
            // What is wired there is not stepped over, if it is a 64th of the way.
            assert!(all.windows(2).all(|p| p[1] - p[0] <= ((p[0] - 5) / 64).max(8)));
            assert!(pages + 5 - all.last().unwrap() <= (pages / 64).max(8));
        }
    }

    #[test]
    fn waiting_for_a_disk_is_no_rate() {
        let mut stream = whole(SLOW.rate);
        stream.has_read(256..4000, 3744, 0);
        // The first data have come after 30 ms.
        stream.seen(40, 30_000, SLOW, LIMITS);
        assert_eq!(stream.rate(), 0);
        stream.seen(440, 40_000, SLOW, LIMITS);
        assert_eq!(stream.rate(), 0);
        stream.seen(840, 50_000, SLOW, LIMITS);
        assert_eq!(stream.rate(), 40_000);
        // A slow consumer is believed after a while.
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
        // what goes on with it in another one is,
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
            // It waits for the block map: no gap is left.
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
        // Once it has gone on, it is followed.
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
        // A long call is seen at its end before it asks for a gap in its middle.
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
        // A buf at first, and more as time goes on.
        let first = stream.want(FILE, 9999, 0, pace, LIMITS).unwrap();
        assert_eq!(first.end - first.start, 256);
        let want = stream.want(FILE, 9999, 40_000, pace, LIMITS).unwrap();
        assert_eq!(want.start, 256 + 32);
        stream.has_read(want.clone(), (want.end - want.start) as u32, 0);
        // The consumer asks for the gap, in as many calls as it likes.
        let before = stream;
        assert_eq!(stream.missed(ask(256, 20, 0), LATER, pace, LIMITS), Fit::Gap);
        // What is left of it comes with the first.
        assert_eq!(stream.want(FILE, 9999, LATER, pace, LIMITS), Some(276..288));
        let mut other = stream;
        other.has_read(276..288, 12, LATER);
        assert!(other.want(FILE, 9999, LATER, pace, LIMITS).is_none_or(|w| w.start == other.end()));
        assert_eq!(stream.missed(ask(276, 12, 0), LATER, pace, LIMITS), Fit::Gap);
        assert_eq!((stream.window, stream.end()), ((before.window * 2).min(LIMITS.max), want.end));
        // With enough before it, it finds the next window ready.
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
        // Nor does it matter that there was no window after all.
        failed.read(288..288, 0, LATER);
        assert_eq!(failed.want(FILE, 9999, LATER, pace, LIMITS), Some(276..288));
        // Nor does a later window without one take it away.
        let mut later = stream;
        later.reading(&(later.end()..later.end() + 9));
        later.read(later.end()..later.end(), 0, LATER);
        assert_eq!((later.gap, later.gap_end), (276, 288));
        // Without that the gap is none any more, and another one is left.
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
        // What it waits for keeps it for 8 ms: a window sent at once is there,
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
        /// A consumer that goes on steadily: what is read lies before it,
        /// never further than max and a step, and in one piece.
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
                    // Twice of what it uses in the longest pause that counts.
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
