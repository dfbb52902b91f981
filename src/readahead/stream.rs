// SPDX-License-Identifier: BSD-2-Clause
//! One stream: where its consumer is, how far has been read, and how far to
//! read. Pure, without the kernel.
//!
//! All positions are page indices and all lengths are pages.

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
}

/// How a miss fits a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It is somewhere else.
    No,
    /// The consumer has used up what was read.
    RanOut,
    /// It is in the gap that was left for the consumer to ask for.
    Gap,
    /// So many pages had been read, or were about to be, and are not there.
    Lost(u64),
}

/// A consumer that may be going through a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The page that the consumer needs next.
    front: u64,
    /// Every page before this one was asked for or read ahead.
    end: u64,
    /// Before this page there may be some that the last window has left out.
    gap_end: u64,
    /// The most pages that the consumer has asked for at once.
    reach: u32,
    /// The window that it began with.
    first_window: u32,
    /// How far before the consumer to read at most.
    window: u32,
    /// Pages used since the window grew.
    used: u32,
    /// Pages a second; 0 if unknown.
    rate: u32,
    /// Up to here the window has grown for being too small.
    grown_at: u64,
    /// Whether it was followed from the file's beginning on.
    began: bool,
    /// Whether it has gone on from one place to the next, or is meant to.
    following: bool,
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

/// From so many pages that a caller wants in all, a file's beginning is the
/// beginning of a stream.
const WHOLE: u32 = 64;
/// The time over which a rate is measured.
const RATE_US: u64 = 4_000;

impl Stream {
    /// A stream that begins with a miss: `count` pages from `first` on, of
    /// which and with which `wish` more the caller will want, `ahead` of them
    /// read with it.
    pub fn begin(
        first: u64,
        count: u32,
        ahead: u32,
        wish: u32,
        now_us: u64,
        pace: Pace,
        limits: Limits,
    ) -> Self {
        let front = first.saturating_add(u64::from(count));
        let most = limits.max.min(pace.trust).max(limits.initial);
        let window = hidden(pace.rate, pace).clamp(limits.initial, most);
        let began = first == 0 && count.saturating_add(wish) >= WHOLE;
        Self {
            front,
            end: front.saturating_add(u64::from(ahead)),
            gap_end: 0,
            reach: count,
            first_window: window,
            window,
            used: 0,
            rate: 0,
            grown_at: 0,
            began,
            following: began,
            moved_us: now_us,
            read_us: now_us,
            rated_us: now_us,
            rated_at: front,
            stalled: true,
        }
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

    /// Microseconds in which the front has not moved.
    pub fn idle_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.moved_us)
    }

    /// Whether read-ahead follows the stream.
    pub fn is_followed(&self) -> bool {
        self.following
    }

    /// A miss of the same file: `count` pages from `first` on were not there,
    /// `ahead` more are read with them.
    pub fn missed(
        &mut self,
        first: u64,
        count: u32,
        ahead: u32,
        now_us: u64,
        limits: Limits,
    ) -> Fit {
        // A call that goes on in the middle of a page needs that page again.
        if first.saturating_add(1) < self.front || first > self.end {
            return Fit::No;
        }
        self.reach = self.reach.max(count);
        let front = first.saturating_add(u64::from(count));
        if first < self.gap_end {
            // It got here before its window could have: that was too small.
            if first >= self.grown_at {
                self.grow(limits);
                self.grown_at = self.gap_end;
            }
            self.end = self.end.max(front);
            self.seen(front, now_us, limits);
            self.stalled = true;
            return Fit::Gap;
        }
        let fit = if first.saturating_add(1) < self.end {
            self.window = (self.window / 2).max(limits.initial.min(limits.chunk));
            self.used = 0;
            Fit::Lost(self.end - first)
        } else {
            // What has only just shown that it goes on begins with little:
            // one in so many random accesses looks the same.
            if !self.following {
                self.window = count.saturating_add(ahead);
            }
            self.grow(limits);
            self.following = true;
            Fit::RanOut
        };
        self.end = front.saturating_add(u64::from(ahead));
        self.seen(front, now_us, limits);
        self.stalled = true;
        fit
    }

    /// The consumer was seen to need `front` next. Gives the pages it has
    /// gone on by.
    pub fn seen(&mut self, front: u64, now_us: u64, limits: Limits) -> u64 {
        let moved = front.saturating_sub(self.front);
        if moved == 0 {
            return 0;
        }
        self.front = front;
        self.end = self.end.max(front);
        self.moved_us = now_us;
        self.used = self.used.saturating_add(moved.min(u64::from(u32::MAX)) as u32);
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
        moved
    }

    fn grow(&mut self, limits: Limits) {
        self.window = self.window.saturating_mul(2).min(limits.max);
        self.used = 0;
    }

    /// Whether the consumer has gone on past the window that it began with;
    /// `None` for a stream that began without.
    pub fn has_used_first_window(&self) -> Option<bool> {
        self.began.then_some(self.front > u64::from(self.first_window))
    }

    /// The pages to read now, of a file of `pages`, when at most `room` may
    /// lie before the consumer.
    ///
    /// A consumer that will be at the window's beginning before the device
    /// has brought it would have to wait there, since pages in flight are
    /// busied. So a gap is left, which the consumer asks for itself without
    /// waiting: more than its socket takes at once.
    ///
    /// What is read in one go is bounded by twice what the consumer uses in
    /// the time since the last one, so that its own requests do not stand in
    /// a queue behind windows.
    pub fn want(
        &self,
        pages: u64,
        room: u32,
        now_us: u64,
        pace: Pace,
        limits: Limits,
    ) -> Option<core::ops::Range<u64>> {
        if !self.following || self.end >= pages {
            return None;
        }
        let rate = if self.rate > 0 { self.rate } else { pace.rate };
        let target = hidden(rate, pace).saturating_add(limits.chunk).min(self.window);
        let target = u64::from(target.min(limits.max).min(room));
        let lead = self.end.saturating_sub(self.front);
        let step = u64::from(limits.chunk).min(target / 2).max(1);
        if target == 0 || lead.saturating_add(step) > target {
            return None;
        }
        let len = (target - lead).next_multiple_of(step);
        let soon = u64::from(rate) * u64::from(pace.latency_us) / 1_000_000;
        // One gap before it keeps the consumer long enough.
        let late = lead < soon && self.gap_end <= self.front;
        let gap = if late { u64::from(self.reach).saturating_mul(2) } else { 0 };
        let start = self.end.saturating_add(gap);
        let idle_us = now_us.saturating_sub(self.read_us).min(1_000_000);
        let most = (u64::from(rate) * idle_us / 500_000).max(u64::from(limits.chunk));
        let end = self.end.saturating_add(len).min(start.saturating_add(most)).min(pages);
        (start < end).then_some(start..end)
    }

    /// The pages of `range` have been read, or are being.
    pub fn read(&mut self, range: core::ops::Range<u64>, now_us: u64) {
        self.read_us = now_us;
        if range.start > self.end {
            self.gap_end = range.start;
        }
        self.end = self.end.max(range.end);
    }

    /// Read no more until the stream shows again that it is one.
    pub fn halt(&mut self) {
        self.following = false;
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
    const SLOW: Pace = Pace { latency_us: 30_000, rate: 3_000, trust: 4096 };
    const FILE: u64 = 100_000;

    fn whole(rate: u32) -> Stream {
        let pace = Pace { rate, ..SLOW };
        Stream::begin(0, 16, 240, 4000, 0, pace, LIMITS)
    }

    #[test]
    fn a_beginning_is_followed_and_a_small_one_is_not() {
        let stream = whole(SLOW.rate);
        // 30 ms at 3,000 pages a second, two and a half times, and a buf,
        // of which one buf is read now.
        let want = stream.want(FILE, 9999, 0, SLOW, LIMITS);
        assert_eq!(want, Some(256..512));
        let small = Stream::begin(0, 16, 0, 0, 0, SLOW, LIMITS);
        assert_eq!(small.want(FILE, 9999, 0, SLOW, LIMITS), None);
    }

    #[test]
    fn a_known_rate_gives_a_whole_window_at_once() {
        let stream = whole(30_000);
        let pace = Pace { rate: 30_000, ..SLOW };
        let want = stream.want(FILE, 9999, 40_000, pace, LIMITS).unwrap();
        // 30 ms at 30,000 pages a second, two and a half times.
        assert!(want.end - 16 >= 2250 && want.end - 16 <= 2250 + 512, "{want:?}");
    }

    #[test]
    fn waiting_for_a_disk_is_no_rate() {
        let mut stream = whole(SLOW.rate);
        stream.read(256..4000, 0);
        // The first data have come after 30 ms.
        stream.seen(40, 30_000, LIMITS);
        assert_eq!(stream.rate(), 0);
        stream.seen(440, 40_000, LIMITS);
        assert_eq!(stream.rate(), 40_000);
        // A slow consumer is believed after a while.
        (0..80).for_each(|i| {
            stream.seen(441 + i, 50_000 + i * 10_000, LIMITS);
        });
        assert!(stream.rate() < 200, "{}", stream.rate());
    }

    #[test]
    fn random_access_never_grows_a_window() {
        let mut stream = Stream::begin(5000, 16, 0, 0, 0, SLOW, LIMITS);
        for first in [9000, 100, 5500, 4000] {
            assert_eq!(stream.missed(first, 16, 0, 1, LIMITS), Fit::No);
        }
        assert_eq!(stream.want(FILE, 9999, 0, SLOW, LIMITS), None);
    }

    #[test]
    fn what_is_trusted_bounds_a_first_window() {
        let pace = Pace { rate: 30_000, trust: 600, ..SLOW };
        let stream = Stream::begin(0, 16, 240, 4000, 0, pace, LIMITS);
        assert_eq!(stream.window, 600);
        assert_eq!(stream.has_used_first_window(), Some(false));
        let small = Stream::begin(0, 16, 0, 0, 0, pace, LIMITS);
        assert_eq!(small.has_used_first_window(), None);
    }

    #[test]
    fn the_second_place_in_turn_makes_a_stream() {
        let mut stream = Stream::begin(5000, 16, 16, 16, 0, SLOW, LIMITS);
        assert_eq!(stream.missed(5032, 16, 16, 1, LIMITS), Fit::RanOut);
        assert!(stream.want(FILE, 9999, 0, SLOW, LIMITS).is_some());
    }

    #[test]
    fn lost_pages_shrink_the_window() {
        let mut stream = whole(30_000);
        stream.read(stream.end()..3000, 0);
        let before = stream.window;
        assert_eq!(stream.missed(500, 16, 0, 1, LIMITS), Fit::Lost(2500));
        assert_eq!((stream.window, stream.end()), (before / 2, 516));
        for _ in 0..20 {
            stream.read(stream.end()..stream.front() + 100, 1);
            let _ = stream.missed(stream.front(), 16, 0, 1, LIMITS);
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
        stream.read(want.clone(), 0);
        // The consumer asks for the gap, in as many calls as it likes.
        let before = stream;
        assert_eq!(stream.missed(256, 20, 0, 1, LIMITS), Fit::Gap);
        assert_eq!(stream.missed(276, 12, 0, 1, LIMITS), Fit::Gap);
        assert_eq!((stream.window, stream.end()), ((before.window * 2).min(LIMITS.max), want.end));
        // With enough before it, it finds the next window ready.
        let lead = want.end - stream.front();
        assert!(lead >= 900, "{lead}");
        let pace = Pace { latency_us: 20_000, ..pace };
        stream.seen(want.end - 700, 2, LIMITS);
        assert_eq!(stream.want(FILE, 9999, 0, pace, LIMITS).unwrap().start, want.end);
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
            let (mut stream, mut now, mut front) = (whole(SLOW.rate), 0, 16);
            for (pages, us) in steps {
                now += us;
                front = (front + pages).min(stream.end());
                stream.seen(front, now, LIMITS);
                if let Some(want) = stream.want(FILE, room, now, pace, LIMITS) {
                    let gap = want.start - stream.end();
                    prop_assert!(gap == 0 || gap == 32, "{}", gap);
                    prop_assert!(want.end > want.start && want.end <= FILE);
                    let far = u64::from(LIMITS.max.min(room) + LIMITS.chunk);
                    prop_assert!(want.end <= stream.front() + far);
                    stream.read(want, now);
                }
                prop_assert!(stream.front() <= stream.end());
                prop_assert!(stream.window <= LIMITS.max);
            }
        }
    }
}
