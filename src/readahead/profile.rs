// SPDX-License-Identifier: BSD-2-Clause
//! Profiles of a user's streams on a device: their rate, the size of the first
//! window, and the accuracy of speculation.
//!
//! A profile belongs to a real uid and a device, so no user's streams change
//! how those of another user begin. It is one word, read and changed
//! atomically. The table is direct-mapped: a new profile displaces the one in
//! its place. A displaced profile starts again with the defaults.

use core::sync::atomic::{AtomicU64, Ordering};

/// The profile of a user's streams on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The rate of recent streams, in pages a second.
    pub rate: u32,
    /// The largest first window of a stream, in pages. Halved after a stream
    /// that did not use its first window, doubled after one that did.
    pub trust: u32,
    /// The recent accuracy of speculative reads: 0 to [`ACCURATE`].
    pub accuracy: u8,
}

/// The best accuracy.
pub const ACCURATE: u8 = (1 << ACCURACY_BITS) - 1;

const RATE_BITS: u32 = 24;
const TRUST_BITS: u32 = 19;
const ACCURACY_BITS: u32 = 2;
const TAG_BITS: u32 = 64 - RATE_BITS - TRUST_BITS - ACCURACY_BITS;

/// Profiles in the table.
const PROFILES: usize = 1 << INDEX_BITS;
const INDEX_BITS: u32 = 10;

/// The index of a profile, and the tag (29 bits of a hash) that distinguishes
/// it from others with the same index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    index: u16,
    tag: u32,
}

impl Key {
    /// The key of a real uid's streams on a
    /// [device](crate::kpi::vnode::Device::id).
    pub fn new(uid: u32, device: usize) -> Self {
        // The finalizer of splitmix64.
        let mix = (device as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(uid);
        let mix = (mix ^ mix >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mix = (mix ^ mix >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mix = mix ^ mix >> 31;
        let index = (mix >> (64 - INDEX_BITS)) as u16;
        // 0 is the tag of an empty place.
        let tag = (mix as u32 & ((1 << TAG_BITS) - 1)).max(1);
        Self { index, tag }
    }
}

impl Profile {
    /// The profile of an unknown user and device: 128 MiB a second, and first
    /// windows of any size.
    const NEW: Self = Self { rate: 32 << 10, trust: (1 << TRUST_BITS) - 1, accuracy: ACCURATE };

    fn pack(self, tag: u32) -> u64 {
        let below = |value: u32, bits: u32| u64::from(value.min((1 << bits) - 1));
        let word = u64::from(tag) << ACCURACY_BITS | below(self.accuracy.into(), ACCURACY_BITS);
        let word = word << TRUST_BITS | below(self.trust, TRUST_BITS);
        word << RATE_BITS | below(self.rate, RATE_BITS)
    }

    fn unpack(word: u64, tag: u32) -> Self {
        let above = RATE_BITS + TRUST_BITS;
        if word >> (above + ACCURACY_BITS) != u64::from(tag) {
            return Self::NEW;
        }
        Self {
            rate: word as u32 & ((1 << RATE_BITS) - 1),
            trust: (word >> RATE_BITS) as u32 & ((1 << TRUST_BITS) - 1),
            accuracy: (word >> above) as u8 & ACCURATE,
        }
    }
}

static TABLE: [AtomicU64; PROFILES] = [const { AtomicU64::new(0) }; PROFILES];

/// The profile of a user's streams on a device.
pub fn of(key: Key) -> Profile {
    let word = TABLE.get(usize::from(key.index)).map_or(0, |word| word.load(Ordering::Relaxed));
    Profile::unpack(word, key.tag)
}

/// Changes a profile atomically.
pub fn learn(key: Key, change: impl Fn(Profile) -> Profile) {
    if let Some(word) = TABLE.get(usize::from(key.index)) {
        let change = |word| Some(change(Profile::unpack(word, key.tag)).pack(key.tag));
        let _ = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }
}

/// Clears the table.
pub fn forget() {
    TABLE.iter().for_each(|word| word.store(0, Ordering::Relaxed));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_its_users_and_devices_own() {
        let device = 0xffff_f800_0123_4567;
        let (mine, theirs) = (Key::new(1001, device), Key::new(1002, device));
        learn(mine, |_| Profile { rate: 5, trust: 6, accuracy: 1 });
        assert_eq!(of(mine), Profile { rate: 5, trust: 6, accuracy: 1 });
        assert_eq!(of(theirs), Profile::NEW);
        assert_eq!(of(Key::new(1001, device + 448)), Profile::NEW);
        // Another profile in the same place starts anew and displaces this one.
        let other = Key { tag: mine.tag ^ 2, ..mine };
        assert_eq!(of(other), Profile::NEW);
        learn(other, |profile| Profile { rate: u32::MAX, trust: u32::MAX, ..profile });
        let most = Profile { rate: (1 << RATE_BITS) - 1, ..Profile::NEW };
        assert_eq!((of(mine), of(other)), (Profile::NEW, most));
    }

    #[test]
    fn keys_are_spread() {
        let keys = (0..40).flat_map(|uid| {
            (0..20).map(move |i| Key::new(1000 + uid, 0xffff_f800_0000_0000 + i * 448))
        });
        let mut keys: Vec<_> = keys.map(|key| (key.index, key.tag)).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 800);
        keys.dedup_by_key(|key| key.0);
        assert!(keys.len() > 450, "{} places for 800 profiles", keys.len());
    }
}
