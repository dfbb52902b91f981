// SPDX-License-Identifier: BSD-2-Clause
//! FFS: its files, its original VOPs, its buffers.

pub mod buffers;
pub mod dinode;
pub mod file;
pub mod indirect_cache;
pub mod lifecycle;
pub mod stock;
pub mod ufsmount;
pub mod vnodeops;
pub mod writeback;
