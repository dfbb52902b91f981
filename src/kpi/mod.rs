// SPDX-License-Identifier: BSD-2-Clause
//! The kernel programming interface: only these files call the kernel.
//!
//! Each file wraps one C header and is named after it. The exported interface
//! is safe: a type stands for a right that the kernel has granted (a busied
//! page, a held lock, an owned buf). The invariants of a type are the
//! conditions that the kernel's own functions assert.

pub mod buf;
pub mod callout;
pub mod condvar;
pub mod counter;
pub mod errno;
pub mod getpages;
pub mod malloc;
pub mod module;
pub mod mutex;
pub mod proc;
pub mod smp;
mod sync;
pub mod sys;
pub mod sysctl;
pub mod systm;
pub mod taskqueue;
pub mod ufs;
mod uma;
pub mod vm_object;
pub mod vm_page;
pub mod vm_pager;
pub mod vnode;
pub mod vnode_if;

/// The atomics that [`sync`] uses. The loom tests substitute loom's.
mod atomic {
    pub use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering, fence};
}
