// SPDX-License-Identifier: BSD-2-Clause
//! Lock-free decisions about ownership: between two sides, or by the last of
//! many references.
//!
//! tests/loom.rs checks both types under all interleavings.

use super::atomic::{AtomicU8, AtomicUsize, Ordering, fence};

/// Decides whether the completion or the sending thread owns a buf. The
/// completion and the thread's claim arrive in either order; the second to
/// arrive owns the buf.
///
/// | claim | I/O not over | I/O over |
/// |---|---|---|
/// | none yet | `SENT` | `BACK` |
/// | left to the completion | `LEFT` | the second side owns the buf |
/// | wanted by the thread | `WANTED`: the thread sleeps | the thread owns the buf |
pub(super) struct Handover(AtomicU8);

const SENT: u8 = 0;
const BACK: u8 = 1;
const LEFT: u8 = 2;
const WANTED: u8 = 3;

/// The state that the completion finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Back {
    /// The thread has not claimed the buf yet, and will own it. The completion
    /// no longer does.
    Unclaimed,
    /// The thread has left the buf: the completion owns it.
    Left,
    /// The thread sleeps until the completion wakes it, and then owns the buf.
    Wanted,
}

impl Handover {
    /// The state of a buf whose I/O begins.
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(SENT))
    }

    /// Resets the state for another I/O.
    pub(super) fn begin(&self) {
        self.0.store(SENT, Ordering::Relaxed);
    }

    /// Reports that the I/O is over. Called once for each I/O, by the
    /// completion.
    pub(super) fn back(&self) -> Back {
        match self.0.swap(BACK, Ordering::AcqRel) {
            LEFT => Back::Left,
            WANTED => Back::Wanted,
            _ => Back::Unclaimed,
        }
    }

    /// Leaves the buf to its completion. True when the I/O is over already:
    /// then the caller owns the buf. Called once, instead of
    /// [`want`](Self::want).
    pub(super) fn leave(&self) -> bool {
        self.0.swap(LEFT, Ordering::AcqRel) == BACK
    }

    /// Claims the buf for the calling thread. True when the I/O is over
    /// already; when false, the caller sleeps until it is over. The caller owns
    /// the buf either way. Called once, instead of [`leave`](Self::leave).
    pub(super) fn want(&self) -> bool {
        self.0.swap(WANTED, Ordering::AcqRel) == BACK
    }
}

/// A reference count.
pub(super) struct Shares(AtomicUsize);

impl Shares {
    /// A count of one.
    pub(super) fn one() -> Self {
        Self(AtomicUsize::new(1))
    }

    /// Adds a reference. The caller holds one.
    pub(super) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Drops a reference. True for the last one: its holder sees all writes of
    /// the other holders.
    pub(super) fn release(&self) -> bool {
        if self.0.fetch_sub(1, Ordering::Release) != 1 {
            return false;
        }
        fence(Ordering::Acquire);
        true
    }
}
