// SPDX-License-Identifier: BSD-2-Clause
//! Boots the kernel, loads modules, and checks that they leave nothing behind.

pub mod boot;
pub mod left;
pub mod module;
pub mod options;
pub mod symbols;
