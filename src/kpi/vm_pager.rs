// SPDX-License-Identifier: BSD-2-Clause
//! The return values of a pager (vm/vm_pager.h).

use core::ffi::c_int;

use super::{errno::Errno, sys};

/// A pager's error: any return value other than `VM_PAGER_OK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagerError {
    /// `VM_PAGER_BAD`: the object has no such page, now or ever.
    Bad,
    /// `VM_PAGER_FAIL`: the page does not exist in the backing store.
    Fail,
    /// `VM_PAGER_ERROR`: the page exists, and reading it failed.
    Error,
    /// `VM_PAGER_AGAIN`: resources are short; a retry may succeed.
    Again,
}

impl PagerError {
    /// Converts a pager's return value. An unknown code becomes
    /// [`Self::Error`].
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

    /// The errno for `a_iodone`, mapped as the swap pager maps it when it
    /// emulates pgo_getpages_async.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Fail => Errno::EINVAL,
            Self::Again => Errno::ENOMEM,
            Self::Bad | Self::Error => Errno::EIO,
        }
    }
}
