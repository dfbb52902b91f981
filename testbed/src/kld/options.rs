// SPDX-License-Identifier: BSD-2-Clause
//! Options of kldload.

use std::ffi::c_int;

use crate::kernel::differences::Difference;

/// Options of kldload.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kernel's `osreldate`.
    pub osreldate: c_int,
    /// In what the kernel differs from the headers.
    pub differs: Option<Difference>,
    /// It is the loader that loads the module, and no filesystem is mounted yet.
    pub boot: bool,
    /// Loader tunables.
    pub tunables: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { osreldate: 1_402_000, differs: None, boot: false, tunables: Vec::new() }
    }
}
