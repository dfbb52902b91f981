// SPDX-License-Identifier: BSD-2-Clause
//! The host: memory, CPUs, threads, time, and the linker. It does not know the
//! simulated kernel.

pub mod clock;
pub mod cpu;
pub mod elf;
pub mod low_memory;
pub mod memory;
pub mod schedule;
pub mod thread;
