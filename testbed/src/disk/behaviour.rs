// SPDX-License-Identifier: BSD-2-Clause
//! The behaviour of a disk: latency and errors.

use std::{ffi::c_int, ops::Range, time::Duration};

/// How long a transfer takes.
#[derive(Clone, Copy, Debug)]
pub enum Latency {
    /// Always as long.
    Constant(Duration),
    /// Anything up to this, each as likely.
    Uniform(Duration),
    /// Short ones are the most likely, around this mean.
    Exponential(Duration),
    /// As long as this, but one in 32 twenty times as long.
    LongTail(Duration),
}

impl Default for Latency {
    fn default() -> Self {
        Self::Constant(Duration::ZERO)
    }
}

impl From<Duration> for Latency {
    fn from(time: Duration) -> Self {
        Self::Constant(time)
    }
}

impl Latency {
    /// One of the kinds, around a `time`.
    pub fn random(time: Duration, rng: &mut fastrand::Rng) -> Self {
        match rng.u8(..4) {
            0 => Self::Constant(time),
            1 => Self::Uniform(time),
            2 => Self::Exponential(time),
            _ => Self::LongTail(time),
        }
    }

    pub fn draw(self, rng: &mut fastrand::Rng) -> Duration {
        match self {
            Self::Constant(time) => time,
            Self::Uniform(most) => most.mul_f64(rng.f64()),
            // Never longer than 27 times the mean: f64() has 53 bits.
            Self::Exponential(mean) => mean.mul_f64(-(1.0 - rng.f64()).max(1e-12).ln()),
            Self::LongTail(time) => time * if rng.u8(..32) == 0 { 20 } else { 1 },
        }
    }
}

/// The behaviour of a disk.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// Time from a buf's arrival to its completion.
    pub latency: Latency,
    /// Bytes of the device that take so much longer to read.
    pub slow: Option<(Range<u64>, Duration)>,
    /// Bytes of the device that cannot be read, and the errno to say so.
    pub bad: Vec<(Range<u64>, c_int)>,
    /// Percentage of transfers that fail with EIO.
    pub fail_percent: u8,
    /// Transfers stop one sector short, without an error.
    pub short: bool,
    /// Every transfer fails with ENXIO.
    pub gone: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind has the mean and the extremes that it says.
    #[test]
    fn latencies() {
        let (time, n) = (Duration::from_millis(1), 20_000);
        let mut rng = fastrand::Rng::with_seed(1);
        for (latency, mean, most) in [
            (Latency::Constant(time), 1.0, 1.0),
            (Latency::Uniform(time), 0.5, 1.0),
            (Latency::Exponential(time), 1.0, 30.0),
            (Latency::LongTail(time), 1.0 + 19.0 / 32.0, 20.0),
        ] {
            let all: Vec<f64> =
                (0..n).map(|_| latency.draw(&mut rng).as_secs_f64() * 1000.0).collect();
            let average = all.iter().sum::<f64>() / f64::from(n);
            assert!((average - mean).abs() < 0.05, "{latency:?}: {average}");
            assert!(all.iter().all(|one| *one <= most + 1e-9), "{latency:?}");
        }
    }
}
