// SPDX-License-Identifier: BSD-2-Clause
//! Error numbers, as intro(2) has them.

use core::{ffi::c_int, fmt};

use super::sys;

/// An error number; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(c_int);

impl Errno {
    /// Input/output error.
    pub const EIO: Self = Self(sys::EIO);
    /// Device not configured: the device is gone, and a retry is useless.
    pub const ENXIO: Self = Self(sys::ENXIO);
    /// Invalid argument.
    pub const EINVAL: Self = Self(sys::EINVAL);
    /// Cannot allocate memory.
    pub const ENOMEM: Self = Self(sys::ENOMEM);
    /// Device busy.
    pub const EBUSY: Self = Self(sys::EBUSY);
    /// Resource temporarily unavailable.
    pub const EAGAIN: Self = Self(sys::EAGAIN);
    /// Operation not supported: the filesystem has no such VOP.
    pub const EOPNOTSUPP: Self = Self(sys::EOPNOTSUPP);
    /// Exec format error: the module was built for another kernel.
    pub const ENOEXEC: Self = Self(sys::ENOEXEC);

    /// Converts a kernel function's return value: 0 is success.
    pub fn check(code: c_int) -> Result<(), Self> {
        match code {
            0 => Ok(()),
            code => Err(Self(code)),
        }
    }

    /// The number, for C.
    pub const fn code(self) -> c_int {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
