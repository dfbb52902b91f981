// SPDX-License-Identifier: BSD-2-Clause
//! The kernel programming interface: the only place that calls the kernel.
//!
//! One file for each family, named as the C header is. What these files give
//! to the rest of the crate is safe: a type stands for what the kernel has
//! granted (a busied page, a held lock, an owned buf) and its invariants are
//! what the kernel's own functions assert.

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

/// What [`sync`] is made of; loom's, in its tests.
mod atomic {
    pub use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering, fence};
}
