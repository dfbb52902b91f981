// SPDX-License-Identifier: BSD-2-Clause
//! How long a device takes for a transfer, measured as bufs come back.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::kpi::{sysctl::Limit, systm};

/// `vfs.asyncpager.readahead.latency_min`: microseconds from which on a
/// device's latency is worth hiding.
pub static MIN: Limit = Limit::new(1500, 0, 10_000_000);

/// Devices that are told apart. More of them take turns.
const DEVICES: usize = 64;

/// What is known about a device; `id` is its
/// [`Device::id`](crate::kpi::vnode::Device::id), or 0.
pub(super) struct Entry {
    id: AtomicUsize,
    /// Since when; see [`mounted`].
    mounting: AtomicUsize,
    in_flight: AtomicU32,
    /// Of all transfers.
    all: Average,
    /// Of small ones: what is left when moving the bytes takes no time.
    small: Average,
    /// The longest lately, waiting in the device's queue included, forgotten
    /// little by little; 0 if nothing is known.
    longest_us: AtomicU32,
}

/// A moving average of microseconds; 0 if nothing is known.
struct Average {
    us: AtomicU32,
    /// The last one, if it was above the average; else 0.
    above: AtomicU32,
}

impl Average {
    const fn new() -> Self {
        Self { us: AtomicU32::new(0), above: AtomicU32::new(0) }
    }

    fn us(&self) -> u32 {
        self.us.load(Ordering::Relaxed)
    }

    fn forget(&self) {
        self.us.store(0, Ordering::Relaxed);
        self.above.store(0, Ordering::Relaxed);
    }

    /// One more; gives the average with it.
    fn add(&self, us: u32) -> u32 {
        let us = us.clamp(1, LONGEST_US);
        let before = self.us();
        let above = self.above.swap(if us > before { us } else { 0 }, Ordering::Relaxed);
        let after = blend(before, above, us);
        self.us.store(after, Ordering::Relaxed);
        after
    }
}

impl Entry {
    const fn new() -> Self {
        Self {
            id: AtomicUsize::new(0),
            mounting: AtomicUsize::new(0),
            in_flight: AtomicU32::new(0),
            all: Average::new(),
            small: Average::new(),
            longest_us: AtomicU32::new(0),
        }
    }

    /// See [`mounted`].
    fn mounted(&self, mounting: usize) {
        if self.mounting.load(Ordering::Relaxed) != mounting {
            self.mounting.store(mounting, Ordering::Relaxed);
            self.forget();
        }
    }

    fn forget(&self) {
        self.all.forget();
        self.small.forget();
        self.longest_us.store(0, Ordering::Relaxed);
    }

    /// A transfer of `bytes` took `us`, and found the device `alone`.
    fn add(&self, us: u32, bytes: u32, alone: bool) {
        let is_small = bytes <= SMALL;
        let latency = if is_small { us } else { us / LARGE }.clamp(1, LONGEST_US);
        let longer = |longest: u32| Some(latency.max(longest - longest / 16));
        let _ = self.longest_us.fetch_update(Ordering::Relaxed, Ordering::Relaxed, longer);
        if !alone {
            return;
        }
        let all = self.all.add(us);
        LAST_US.store(all, Ordering::Relaxed);
        if is_small {
            self.small.add(us);
        } else if all / LARGE / SLOWER > self.small.us() {
            // Small ones have been sent to a faster device than this one is.
            self.small.forget();
        }
    }

    /// What the device takes before it moves the first byte.
    fn latency_us(&self) -> u32 {
        match (self.small.us(), self.all.us()) {
            (0, 0) => UNKNOWN_US,
            // Most of a large one's time may have gone into moving its bytes.
            (0, us) => us / LARGE,
            // Small ones tell more.
            (us, _) => us,
        }
    }

    /// See [`is_worth_hiding`].
    fn is_worth_hiding(&self) -> bool {
        self.latency_us() >= MIN.get()
    }

    /// See [`may_be_long`].
    fn may_be_long(&self) -> bool {
        self.is_worth_hiding() || self.longest_us.load(Ordering::Relaxed) >= MIN.get()
    }

    /// See [`of`].
    fn us(&self) -> u32 {
        match self.all.us() {
            0 => LAST_US.load(Ordering::Relaxed).max(UNKNOWN_US),
            us => us,
        }
    }
}

static ENTRIES: [Entry; DEVICES] = [const { Entry::new() }; DEVICES];

/// What a device took that was measured last: the guess for a new one.
static LAST_US: AtomicU32 = AtomicU32::new(0);
/// No new device is taken for a faster one: what is read ahead for nothing
/// costs less than what somebody waits for.
const UNKNOWN_US: u32 = 10_000;

/// So many times what small ones take, the latency of large ones is another device's.
const SLOWER: u32 = 4;

/// No transfer counts for longer.
const LONGEST_US: u32 = 10_000_000;

/// Bytes of a small transfer, at most.
const SMALL: u32 = 32 * 4096;

/// The entries in the order in which a device looks for its own.
fn from_home(id: usize) -> impl Iterator<Item = &'static Entry> {
    let home = (id >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58;
    let (before, after) = ENTRIES.split_at_checked(home).unwrap_or((&[], &ENTRIES));
    after.iter().chain(before)
}

fn entry(id: usize) -> &'static Entry {
    // Nearly always the first.
    let known = from_home(id).find(|entry| {
        let found = entry.id.load(Ordering::Relaxed);
        let claim = || entry.id.compare_exchange(0, id, Ordering::Relaxed, Ordering::Relaxed);
        // Another CPU may claim it for the same device.
        found == id || found == 0 && claim().map_or_else(|now| now == id, |_| true)
    });
    known.unwrap_or_else(|| take_over(id))
}

/// The entry of a device that has nothing in flight is its last one's no more.
fn take_over(id: usize) -> &'static Entry {
    let unused = |entry: &&Entry| entry.in_flight.load(Ordering::Relaxed) == 0;
    let entry = from_home(id).find(unused).unwrap_or(&ENTRIES[0]);
    entry.id.store(id, Ordering::Relaxed);
    entry.forget();
    entry
}

/// A filesystem on the device is in use, see
/// [`Vnode::mounting`](crate::kpi::vnode::Vnode::mounting). With another
/// mounting than before, another device may be in this one's place.
pub fn mounted(id: usize, mounting: usize) {
    entry(id).mounted(mounting);
}

/// A transfer on its way to a device: counted until it is back.
pub struct InFlight {
    entry: &'static Entry,
    sent_us: u32,
    alone: bool,
}

/// A transfer is about to go to a device.
pub fn sent(device: usize) -> InFlight {
    let entry = entry(device);
    let before = entry.in_flight.fetch_add(1, Ordering::Relaxed);
    // Behind a queue, a transfer's time says more about the queue.
    InFlight { entry, sent_us: systm::uptime_us() as u32, alone: before <= ALONE }
}

impl InFlight {
    /// The transfer of so many bytes has come back just now.
    pub fn came_back(self, bytes: u32) {
        let us = (systm::uptime_us() as u32).wrapping_sub(self.sent_us);
        self.entry.add(us, bytes, self.alone);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.entry.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bufs behind which one still counts as alone.
const ALONE: u32 = 1;

/// An average that falls fast and rises slowly: what takes longer than usual
/// has been waiting for something else. Unless the one before, `above`, did so
/// too: then the device has become slower.
fn blend(before: u32, above: u32, us: u32) -> u32 {
    match before {
        0 => us,
        _ if us < before => before - (before - us) / 2,
        _ => (before + (us - before).div_ceil(8)).max(above.min(us)),
    }
}

/// Microseconds that the device takes; of one that is not known yet, what the
/// last one took, or [`UNKNOWN_US`].
pub fn of(id: usize) -> u32 {
    entry(id).us()
}

/// Whether the device takes [`MIN`] microseconds for a transfer, however small.
pub fn is_worth_hiding(id: usize) -> bool {
    entry(id).is_worth_hiding()
}

/// Whether a transfer may take [`MIN`] microseconds, as one has lately.
pub fn may_be_long(id: usize) -> bool {
    entry(id).may_be_long()
}

/// Of a large transfer's time, this part at least is taken for latency.
const LARGE: u32 = 4;

/// Bufs that the device has now.
pub fn in_flight(id: usize) -> u32 {
    entry(id).in_flight.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows() {
        let average = Average::new();
        (0..10).for_each(|_| _ = average.add(30_000));
        assert_eq!(average.us(), 30_000);
        // One that stood in a queue is not believed at once,
        assert!(average.add(300_000) < 64_000);
        (0..12).for_each(|_| _ = average.add(100));
        assert!(average.us() < 200, "{}", average.us());
        // nor one now and then,
        (0..40).for_each(|i| _ = average.add(if i % 3 == 0 { 30_000 } else { 100 }));
        assert!(average.us() < 5_000, "{}", average.us());
        // but a disk that has become slower.
        (0..2).for_each(|_| _ = average.add(30_000));
        assert!(average.us() >= 30_000, "{}", average.us());
    }

    const BIG: u32 = 8 * SMALL;

    /// A device that has served `transfers`, each of microseconds and bytes.
    fn served(transfers: &[(u32, u32)]) -> Entry {
        let entry = Entry::new();
        transfers.iter().for_each(|(us, bytes)| entry.add(*us, *bytes, true));
        entry
    }

    #[test]
    fn moving_bytes_is_not_latency() {
        assert!(served(&[]).is_worth_hiding(), "nothing is known yet");
        // 1 MiB from an SSD behind SATA, and from a disk that seeks.
        assert!(!served(&[(2_200, BIG)]).is_worth_hiding());
        assert!(served(&[(12_000, BIG)]).is_worth_hiding());
        // Small ones tell more.
        assert!(!served(&[(12_000, BIG), (1_400, SMALL)]).is_worth_hiding());
        assert!(!served(&[&[(1_000, SMALL)], &[(12_000, BIG); 99][..]].concat()).is_worth_hiding());
        assert!(served(&[(2_000, BIG), (1_600, SMALL)]).is_worth_hiding());
    }

    #[test]
    fn a_device_that_becomes_slower_is_noticed_by_large_transfers() {
        let entry = served(&[(300, SMALL), (2_200, BIG), (300, SMALL), (2_200, BIG)]);
        assert!(!entry.is_worth_hiding());
        (0..2).for_each(|_| entry.add(15_000, BIG, true));
        assert!(entry.is_worth_hiding());
    }

    #[test]
    fn what_was_mounted_before_says_nothing() {
        let entry = served(&[(100, SMALL); 9]);
        entry.mounted(1);
        entry.add(100, SMALL, true);
        entry.mounted(1);
        assert_eq!((entry.us(), entry.is_worth_hiding(), entry.may_be_long()), (100, false, false));
        entry.mounted(2);
        assert!(entry.us() >= UNKNOWN_US && entry.is_worth_hiding() && entry.may_be_long());
    }

    #[test]
    fn a_long_transfer_is_remembered_for_a_while() {
        let entry = served(&[(100, SMALL)]);
        assert!(!entry.may_be_long());
        // What waits for others counts too: so would the next one.
        entry.add(8_000, SMALL, false);
        (0..20).for_each(|_| entry.add(100, SMALL, true));
        assert!(entry.may_be_long() && !entry.is_worth_hiding());
        (0..10).for_each(|_| entry.add(100, SMALL, true));
        assert!(!entry.may_be_long());
        // Who is long for small ones is so whatever large ones took.
        let entry = served(&[&[(5_000, SMALL)], &[(5_600, BIG); 50][..]].concat());
        assert!(entry.may_be_long());
    }

    #[test]
    fn devices_are_told_apart() {
        for id in 1..=DEVICES * 2 {
            let _ = entry(id << 8);
        }
        let first = entry(1 << 8);
        assert_eq!(first.id.load(Ordering::Relaxed), 1 << 8);
    }
}
