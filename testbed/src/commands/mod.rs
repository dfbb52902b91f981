// SPDX-License-Identifier: BSD-2-Clause
//! The commands of the command line.

pub mod bench;
pub mod check;
pub mod compare;
pub mod explain;
pub mod options;
pub mod replay;
pub mod rules;
pub mod serve;
pub mod torture;
