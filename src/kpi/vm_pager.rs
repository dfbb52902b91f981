// SPDX-License-Identifier: BSD-2-Clause
//! What a pager answers (vm/vm_pager.h).

use core::ffi::c_int;

use super::{errno::Errno, sys};

/// A pager's answer that is not `VM_PAGER_OK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagerError {
    /// `VM_PAGER_BAD`: the object has no such page, now or ever.
    Bad,
    /// `VM_PAGER_FAIL`: the page is not there.
    Fail,
    /// `VM_PAGER_ERROR`: the page is there and could not be read.
    Error,
    /// `VM_PAGER_AGAIN`: no resources just now.
    Again,
}

impl PagerError {
    /// A pager's return value.
    pub fn check(code: c_int) -> Result<(), Self> {
        match code {
            sys::VM_PAGER_OK => Ok(()),
            sys::VM_PAGER_BAD => Err(Self::Bad),
            sys::VM_PAGER_FAIL => Err(Self::Fail),
            sys::VM_PAGER_AGAIN => Err(Self::Again),
            _ => Err(Self::Error),
        }
    }

    /// The `VM_PAGER_*` code.
    pub const fn code(self) -> c_int {
        match self {
            Self::Bad => sys::VM_PAGER_BAD,
            Self::Fail => sys::VM_PAGER_FAIL,
            Self::Error => sys::VM_PAGER_ERROR,
            Self::Again => sys::VM_PAGER_AGAIN,
        }
    }

    /// The error that iodone's owner is told, mapped as the swap pager's
    /// emulation of pgo_getpages_async does.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Fail => Errno::EINVAL,
            Self::Again => Errno::ENOMEM,
            Self::Bad | Self::Error => Errno::EIO,
        }
    }
}
