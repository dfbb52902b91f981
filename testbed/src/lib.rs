// SPDX-License-Identifier: BSD-2-Clause
//! asyncpager-testbed: runs asyncpager.ko, the very file that kldload takes, in
//! userspace, and checks that it keeps the kernel's rules.
//!
//! From the ground up: the host gives memory, CPUs and time; the checks watch rules;
//! above them the simulated kernel, the disk, FFS and its consumers; kld loads the
//! module into that; rule tests, scenarios and commands use it. A folder imports only
//! from those named before it.

mod host;

mod checks;

mod kernel;

mod disk;

mod ffs;

mod consumers;

mod kld;

mod rule_tests;

mod scenarios;

pub mod commands;

pub use commands::bench;
