// SPDX-License-Identifier: BSD-2-Clause
//! How long a device takes for a transfer, measured as transfers come back,
//! and how many it has now.
//!
//! A device is known by a 32-bit key. Its entry holds the key and the number
//! of transfers in flight in one word, so that an entry is taken over from
//! another device only while that has none in flight, and a transfer leaves
//! the very entry that it has entered.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::kpi::{sysctl::Limit, systm};

/// `vfs.asyncpager.readahead.latency_min`: microseconds from which on a
/// device's latency is worth hiding.
pub static MIN: Limit = Limit::new(1500, 0, 10_000_000);

/// Devices that are told apart. Of more of them, the idle ones are forgotten.
const DEVICES: usize = 64;

/// What is known about a device.
struct Entry {
    /// The device's [`key`] in the high half, 0 if there is none; transfers in
    /// flight in the low half.
    state: AtomicU64,
    /// Since when; see [`mounted`].
    mounting: AtomicUsize,
    /// Of all transfers.
    all: Average,
    /// Of small ones: what is left when moving the bytes takes no time.
    small: Average,
    /// The longest lately, waiting in the device's queue included, forgotten
    /// little by little; 0 if nothing is known.
    longest_us: AtomicU32,
    /// A speculative read of it has failed.
    speculation_failed: AtomicBool,
    /// It is known to read sectors that were never written without an error.
    speculation_is_safe: AtomicBool,
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
            state: AtomicU64::new(0),
            mounting: AtomicUsize::new(0),
            all: Average::new(),
            small: Average::new(),
            longest_us: AtomicU32::new(0),
            speculation_failed: AtomicBool::new(false),
            speculation_is_safe: AtomicBool::new(false),
        }
    }

    fn in_flight(&self) -> u32 {
        self.state.load(Ordering::Relaxed) as u32
    }

    fn is_of(&self, key: u32) -> bool {
        self.state.load(Ordering::Relaxed) >> 32 == u64::from(key)
    }

    /// Count a transfer of the device that has this entry. Gives how many
    /// were in flight; `None` if the entry is another device's.
    fn enter(&self, key: u32) -> Option<u32> {
        let more = |state: u64| (state >> 32 == u64::from(key)).then(|| state.wrapping_add(1));
        let before = self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more);
        before.ok().map(|state| state as u32)
    }

    /// Take an entry over that is as in `before`, with nothing in flight, and
    /// count a transfer.
    fn take_over(&self, before: u64, key: u32) -> bool {
        let after = u64::from(key) << 32 | 1;
        let taken = before as u32 == 0
            && self
                .state
                .compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
        if taken {
            self.mounting.store(0, Ordering::Relaxed);
            self.forget();
        }
        taken
    }

    fn leave(&self) {
        self.state.fetch_sub(1, Ordering::AcqRel);
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
        self.speculation_failed.store(false, Ordering::Relaxed);
        self.speculation_is_safe.store(false, Ordering::Relaxed);
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
            0 => unknown_us(),
            us => us,
        }
    }
}

/// The entries of the devices that have been in use lately.
struct Table<const N: usize> {
    entries: [Entry; N],
    /// Counts transfers of devices without an entry, and learns nothing.
    overflow: Entry,
}

static TABLE: Table<DEVICES> = Table::new();

impl<const N: usize> Table<N> {
    const fn new() -> Self {
        Self { entries: [const { Entry::new() }; N], overflow: Entry::new() }
    }

    /// The entries in the order in which a device looks for its own.
    fn candidates(&self, key: u32) -> impl Iterator<Item = &Entry> {
        let home = (key as usize).checked_rem(N).unwrap_or(0);
        let (before, after) = self.entries.split_at_checked(home).unwrap_or((&[], &self.entries));
        after.iter().chain(before)
    }

    /// The device's entry; `None` if it has none. Nearly always the first one
    /// that is looked at.
    fn find(&self, key: u32) -> Option<&Entry> {
        self.candidates(key).find(|entry| entry.is_of(key))
    }

    /// Count a transfer. Gives where, and how many were in flight.
    fn enter(&self, key: u32) -> (&Entry, u32) {
        let own = || {
            self.candidates(key).find_map(|entry| entry.enter(key).map(|before| (entry, before)))
        };
        // A free entry first, then that of an idle device.
        let take = |free: bool| {
            self.candidates(key).find(|entry| {
                let state = entry.state.load(Ordering::Relaxed);
                (state == 0) == free && entry.take_over(state, key)
            })
        };
        own().or_else(|| take(true).or_else(|| take(false)).map(|entry| (entry, 0))).unwrap_or_else(
            || {
                let before = self.overflow.state.fetch_add(1, Ordering::AcqRel);
                (&self.overflow, before as u32)
            },
        )
    }

    /// Transfers of a device in flight. Without an entry, those of all devices
    /// without one. A hint: two CPUs that take an entry for the same device at once
    /// may leave it two, of which the first counts.
    fn in_flight(&self, key: u32) -> u32 {
        self.find(key).map_or_else(|| self.overflow.in_flight(), Entry::in_flight)
    }

    /// Begin a transfer.
    fn send(&'static self, key: u32, now_us: u32) -> InFlight {
        let (entry, before) = self.enter(key);
        // Behind a queue, a transfer's time says more about the queue.
        InFlight { entry, sent_us: now_us, alone: before <= ALONE }
    }
}

/// A transfer on its way to a device: counted until it is back.
pub struct InFlight {
    entry: &'static Entry,
    sent_us: u32,
    /// The device had next to nothing to do.
    alone: bool,
}

impl InFlight {
    /// The transfer of `bytes` has come back just now.
    pub fn came_back(self, bytes: u32) {
        self.came_back_at(bytes, systm::uptime_us() as u32);
    }

    fn came_back_at(self, bytes: u32, now_us: u32) {
        if !self.entry.is_of(OVERFLOW) {
            self.entry.add(now_us.wrapping_sub(self.sent_us), bytes, self.alone);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.entry.leave();
    }
}

/// The key of no device, and of the overflow entry.
const OVERFLOW: u32 = 0;

/// Names a device, see [`Device::id`](crate::kpi::vnode::Device::id); never
/// [`OVERFLOW`].
fn key(device: usize) -> u32 {
    let hash = (device as u64 >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((hash >> 32) as u32).max(1)
}

/// What the device took that was measured last: a new one is assumed to be
/// like it.
static LAST_US: AtomicU32 = AtomicU32::new(0);
/// A device that nothing is known of is assumed to be slow: over-reading is
/// cheaper than a stall.
const UNKNOWN_US: u32 = 10_000;

fn unknown_us() -> u32 {
    LAST_US.load(Ordering::Relaxed).max(UNKNOWN_US)
}

/// So many times what small ones take, the latency of large ones is another device's.
const SLOWER: u32 = 4;

/// No transfer counts for longer.
const LONGEST_US: u32 = 10_000_000;

/// Bytes of a small transfer, at most.
const SMALL: u32 = 32 * 4096;

/// A filesystem on the device is in use, see
/// [`Vnode::mounting`](crate::kpi::vnode::Vnode::mounting). With another
/// mounting than before, another device may be in this one's place.
pub fn mounted(device: usize, mounting: usize) {
    if let Some(entry) = TABLE.find(key(device)) {
        entry.mounted(mounting);
    }
}

/// A transfer to the device is about to begin. Never sleeps.
pub fn sent(device: usize) -> InFlight {
    TABLE.send(key(device), systm::uptime_us() as u32)
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
pub fn of(device: usize) -> u32 {
    TABLE.find(key(device)).map_or_else(unknown_us, Entry::us)
}

/// Whether the device takes [`MIN`] microseconds for a transfer, however small.
pub fn is_worth_hiding(device: usize) -> bool {
    TABLE.find(key(device)).map_or(UNKNOWN_US >= MIN.get(), Entry::is_worth_hiding)
}

/// Whether a transfer may take [`MIN`] microseconds, as one has lately.
pub fn may_be_long(device: usize) -> bool {
    TABLE.find(key(device)).map_or(UNKNOWN_US >= MIN.get(), Entry::may_be_long)
}

/// A speculative read of the device has failed: send no more until the
/// filesystem is mounted anew. A device with integrity data fails where it was
/// never written, and reports each failure. Call while the transfer is in flight.
pub fn bar_speculation(device: usize) {
    if let Some(entry) = TABLE.find(key(device)) {
        entry.speculation_failed.store(true, Ordering::Relaxed);
    }
}

/// Whether speculative reads of the device may be sent, when `is_safe` says, asked
/// once for each mounting, that sectors which were never written can be read. Not
/// without an entry to note a failure in.
pub fn may_speculate(device: usize, is_safe: impl FnOnce() -> bool) -> bool {
    let Some(entry) = TABLE.find(key(device)) else { return false };
    if entry.speculation_failed.load(Ordering::Relaxed) {
        return false;
    }
    if !entry.speculation_is_safe.load(Ordering::Relaxed) {
        if !is_safe() {
            return false;
        }
        entry.speculation_is_safe.store(true, Ordering::Relaxed);
    }
    true
}

/// Of a large transfer's time, this part at least is taken for latency.
const LARGE: u32 = 4;

/// Transfers that the device has now.
pub fn in_flight(device: usize) -> u32 {
    TABLE.in_flight(key(device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_follows() {
        let average = Average::new();
        (0..10).for_each(|_| _ = average.add(30_000));
        assert_eq!(average.us(), 30_000);
        // A single slow sample may be queueing delay,
        assert!(average.add(300_000) < 64_000);
        (0..12).for_each(|_| _ = average.add(100));
        assert!(average.us() < 200, "{}", average.us());
        // and so may one now and then,
        (0..40).for_each(|i| _ = average.add(if i % 3 == 0 { 30_000 } else { 100 }));
        assert!(average.us() < 5_000, "{}", average.us());
        // but two in a row are a slower disk.
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
    fn an_entry_in_use_is_not_taken_over() {
        static TABLE: Table<4> = Table::new();
        let held: Vec<_> = (1..=4).map(|key| TABLE.send(key, 0)).collect();
        // A fifth device: counted, but not learnt from.
        let fifth = TABLE.send(5, 0);
        assert!((1..=4).all(|key| TABLE.in_flight(key) == 1) && TABLE.find(5).is_none());
        assert_eq!((TABLE.in_flight(5), TABLE.overflow.in_flight()), (1, 1));
        fifth.came_back_at(SMALL, 70_000);
        assert_eq!((TABLE.in_flight(5), TABLE.overflow.all.us()), (0, 0));
        for (key, transfer) in (1..).zip(held) {
            transfer.came_back_at(SMALL, 100 * key);
        }
        assert!((1..=4).all(|key| TABLE.find(key).is_some_and(|e| e.all.us() == 100 * key)));
        // Now that all are idle, the fifth takes one over, with nothing known.
        let fifth = TABLE.send(5, 0);
        let entry = TABLE.find(5).unwrap();
        assert_eq!((TABLE.in_flight(5), entry.all.us(), TABLE.overflow.in_flight()), (1, 0, 0));
        drop(fifth);
        assert_eq!(TABLE.in_flight(5), 0);
        assert_eq!((1..=4).filter(|key| TABLE.find(*key).is_some()).count(), 3);
    }

    #[test]
    fn counts_balance_with_more_devices_than_entries() {
        static TABLE: Table<8> = Table::new();
        let work = |thread: u32| {
            let mut held = Vec::new();
            for i in 0..200_000u32 {
                held.push(TABLE.send(1 + (i.wrapping_mul(7) + thread) % 24, 0));
                if held.len() > 5 {
                    let transfer = held.swap_remove(i as usize % 5);
                    assert!(transfer.entry.in_flight() > 0, "not counted where it was sent");
                    transfer.came_back_at(SMALL, 100);
                }
            }
        };
        std::thread::scope(|scope| {
            (0..4).for_each(|thread| _ = scope.spawn(move || work(thread)));
        });
        let all = TABLE.entries.iter().chain([&TABLE.overflow]);
        assert_eq!(all.map(Entry::in_flight).collect::<Vec<_>>(), [0; 9]);
        assert_eq!(TABLE.overflow.all.us(), 0);
    }

    #[test]
    fn devices_are_told_apart() {
        // struct bufobj lies in a vnode, which is 448 bytes.
        let keys: std::collections::BTreeSet<_> =
            (0..4096).map(|i| key(0xffff_f800_0123_4000 + i * 448)).collect();
        assert!(keys.len() == 4096 && !keys.contains(&0));
    }
}
