// SPDX-License-Identifier: BSD-2-Clause
//! A client's own line to the server: it carries so many bytes a second and no more.

use std::time::Duration;

/// Time in which the line had nothing to carry is lost, all but this: a thread wakes up a tick
/// or two late, and that must not make the line slower than it is.
const ALLOWANCE: Duration = Duration::from_millis(5);
/// A shorter wait is left to the next one: to sleep takes CPU from what is measured.
const LEAST: Duration = Duration::from_millis(1);
/// Fewer bytes than this are not worth a system call.
const PAGE: u64 = 4096;

/// See the module's documentation. Times count from one moment, of the caller's choice.
pub struct Line {
    /// Bytes a second.
    rate: u64,
    /// When all that was taken has come through.
    through: Duration,
}

impl Line {
    /// One of `rate` bytes a second.
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), through: Duration::ZERO }
    }

    /// Most bytes that may be taken at once.
    pub fn most(&self) -> u64 {
        (u128::from(self.rate) * ALLOWANCE.as_nanos() / 1_000_000_000).max(PAGE.into()) as u64
    }

    /// So many bytes were taken by now: how long until they have come through.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        let nanoseconds = (u128::from(bytes) * 1_000_000_000).div_ceil(self.rate.into());
        let carry = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        self.through = self.through.max(now.saturating_sub(ALLOWANCE)) + carry;
        let wait = self.through.saturating_sub(now);
        if wait < LEAST { Duration::ZERO } else { wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Take pieces as they may be taken until `bytes` are there; every sleep is `late` too long.
    fn carry(line: &mut Line, mut now: Duration, bytes: u64, late: Duration) -> Duration {
        let mut left = bytes;
        while left > 0 {
            let piece = left.min(line.most());
            left -= piece;
            let wait = line.take(now, piece);
            now += if wait.is_zero() { wait } else { wait + late };
        }
        now
    }

    #[test]
    fn a_second_of_bytes_takes_a_second() {
        for rate in [4096, 64 << 10, 1_000_000, 112 << 20] {
            for late in [Duration::ZERO, 3 * MS] {
                let took = carry(&mut Line::new(rate), Duration::ZERO, rate, late);
                let want = Duration::from_secs(1);
                assert!(took + LEAST >= want && took <= want + late, "{rate}: {took:?}");
            }
        }
    }

    #[test]
    fn a_stall_is_not_made_up_for() {
        let mut line = Line::new(10_000_000);
        let stall = 300 * MS;
        let before = carry(&mut line, Duration::ZERO, 1_000_000, Duration::ZERO);
        let after = carry(&mut line, before + stall, 1_000_000, Duration::ZERO);
        let took = after - stall;
        assert!(took + ALLOWANCE + LEAST >= 200 * MS && took < 200 * MS, "{took:?}");
    }

    #[test]
    fn a_client_that_is_too_slow_never_waits() {
        let mut line = Line::new(1_000_000);
        for i in 1..1000 {
            assert_eq!(line.take(10 * MS * i, 5000), Duration::ZERO);
        }
        // And has saved up no more than the allowance.
        assert_eq!(line.take(10_000 * MS, 20_000), 15 * MS);
    }

    #[test]
    fn short_waits_are_added_up() {
        let mut line = Line::new(1_000_000);
        assert_eq!(line.take(Duration::ZERO, 900), Duration::ZERO);
        assert_eq!(line.take(Duration::ZERO, 900), Duration::from_micros(1800));
    }

    #[test]
    fn pieces_suit_the_rate() {
        assert_eq!(Line::new(4096).most(), 4096);
        assert_eq!(Line::new(1_000_000).most(), 5000);
        assert_eq!(Line::new(100_000_000).most(), 500_000);
        // No input makes it overflow.
        let mut line = Line::new(0);
        assert_eq!(line.most(), 4096);
        line.take(Duration::ZERO, u64::MAX);
        assert!(Line::new(u64::MAX).most() > 4096);
    }
}
