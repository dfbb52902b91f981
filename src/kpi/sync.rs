// SPDX-License-Identifier: BSD-2-Clause
//! Ownership that two sides, or the last one of many, decide without a lock.
//!
//! tests/loom.rs runs both through all interleavings.

use super::atomic::{AtomicU8, AtomicUsize, Ordering, fence};

/// Who owns a buf whose I/O and whose claim come in either order: whichever is
/// second.
///
/// | claim | I/O not over | I/O over |
/// |---|---|---|
/// | none yet | `SENT` | `BACK` |
/// | left to the completion | `LEFT` | the second side owns it |
/// | wanted by a thread | `WANTED`: it sleeps until the I/O is over | the thread owns it |
pub(super) struct Handover(AtomicU8);

const SENT: u8 = 0;
const BACK: u8 = 1;
const LEFT: u8 = 2;
const WANTED: u8 = 3;

/// What the completion finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Back {
    /// No claim yet: it owns nothing from here on.
    Unclaimed,
    /// The completion owns the buf.
    Left,
    /// A thread sleeps until it is told that the I/O is over, and owns the buf then.
    Wanted,
}

impl Handover {
    /// The I/O begins.
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(SENT))
    }

    /// The I/O begins again.
    pub(super) fn begin(&self) {
        self.0.store(SENT, Ordering::Relaxed);
    }

    /// The I/O is over. Called once.
    pub(super) fn back(&self) -> Back {
        match self.0.swap(BACK, Ordering::AcqRel) {
            LEFT => Back::Left,
            WANTED => Back::Wanted,
            _ => Back::Unclaimed,
        }
    }

    /// Leave the buf to its completion; true if the caller owns it, since the I/O
    /// is over already. Called once, instead of [`want`](Self::want).
    pub(super) fn leave(&self) -> bool {
        self.0.swap(LEFT, Ordering::AcqRel) == BACK
    }

    /// Want the buf; true if the I/O is over already. Else the caller sleeps until
    /// it is. It owns the buf in both cases. Called once.
    pub(super) fn want(&self) -> bool {
        self.0.swap(WANTED, Ordering::AcqRel) == BACK
    }
}

/// How many shares there are of something that the last one has to end.
pub(super) struct Shares(AtomicUsize);

impl Shares {
    /// One share.
    pub(super) fn one() -> Self {
        Self(AtomicUsize::new(1))
    }

    /// One more. The caller has a share.
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// One less; true for the last one, which sees all that the others have written.
    pub(super) fn release(&self) -> bool {
        if self.0.fetch_sub(1, Ordering::Release) != 1 {
            return false;
        }
        fence(Ordering::Acquire);
        true
    }
}
