// SPDX-License-Identifier: BSD-2-Clause
//! The simulated kernel: a file for each family of its KPI, with the checks of
//! INVARIANTS, of WITNESS, and more.
//!
//! - threads: `pcpu`, `proc`, `sched`, `counter`
//! - locks and sleeping: `lock`, `mutex`, `rwlock`, `sx`, `condvar`
//! - deferred work: `callout`, `taskqueue`
//! - memory: `resident`, `vm_page`, `vm_object`, `pmap`, `kva`, `uma`, `malloc`
//! - pagers: `vm_pager`, `vnode_pager`
//! - bufs and vnodes: `buf`, `ucred`, `vnode`, `vnode_if`, `mount`
//! - the rest: `module`, `sysctl`, `systm`
//! - for tests: `shortage` injects failures, `differences` changes structures

pub mod buf;
pub mod callout;
pub mod condvar;
pub mod counter;
pub mod differences;
pub mod kva;
pub mod lock;
pub mod malloc;
pub mod module;
pub mod mount;
pub mod mutex;
pub mod pcpu;
pub mod pmap;
pub mod proc;
pub mod resident;
pub mod rwlock;
pub mod sched;
pub mod shortage;
pub mod sx;
pub mod sysctl;
pub mod systm;
pub mod taskqueue;
pub mod ucred;
pub mod uma;
pub mod vm_object;
pub mod vm_page;
pub mod vm_pager;
pub mod vnode;
pub mod vnode_if;
pub mod vnode_pager;
