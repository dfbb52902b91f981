// SPDX-License-Identifier: BSD-2-Clause
//! Consumers of pages: sendfile(2) and write(2).

pub mod sendfile;
pub mod write;
