// SPDX-License-Identifier: BSD-2-Clause
//! asyncpager: asynchronous getpages for FFS, so that sendfile(2) does not wait
//! for file data from the disk.
//!
//! The module replaces `vop_getpages_async` and `vop_bmap` in the vop_vectors
//! of FFS, and on request `vop_getpages`. A page from the disk to the socket
//! passes [`vop`] (the entry point), [`pager`] (request, plan, submit,
//! complete) and [`kpi`] (the kernel). [`readahead`] reads the next pages in
//! advance.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

pub mod drain;
pub mod fair;
pub mod fs;
#[allow(unsafe_code)]
pub mod kpi;
pub mod pager;
pub mod readahead;
pub mod stats;
pub mod tunables;
pub mod vop;

use core::sync::atomic::{AtomicBool, Ordering};

use kpi::{
    errno::Errno,
    module::{self, Module},
};

/// The module's event handlers.
pub struct Asyncpager;

/// Set once MOD_LOAD has resources for MOD_UNLOAD to release: the kernel sends
/// MOD_UNLOAD after a failed MOD_LOAD too.
static LOADED: AtomicBool = AtomicBool::new(false);

impl Module for Asyncpager {
    fn load() -> Result<(), Errno> {
        module::check_kernel()?;
        // Tunables first: they set the sizes of the rest.
        tunables::register().inspect_err(|error| kprintln!("no sysctls, errno {error}"))?;
        pager::start().inspect_err(|error| {
            kprintln!("no memory for bufs, errno {error}");
            tunables::release();
        })?;
        readahead::start().inspect_err(|error| {
            kprintln!("no memory for streams, errno {error}");
            pager::end();
            tunables::release();
        })?;
        drain::start();
        // From here on MOD_UNLOAD undoes everything. The kernel sends it after
        // a failure too.
        LOADED.store(true, Ordering::Relaxed);
        vop::take()
    }

    fn quiesce() -> Result<(), Errno> {
        vop::restore()
    }

    fn unload() -> Result<(), Errno> {
        if !LOADED.load(Ordering::Relaxed) {
            return Ok(());
        }
        // A forced unload skips quiesce. Otherwise this finds nothing to do.
        vop::restore()?;
        readahead::end();
        pager::end();
        drain::end();
        tunables::release();
        LOADED.store(false, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => kpi::systm::panic(format_args!(
            "asyncpager: {} at {}:{}",
            info.message(),
            at.file(),
            at.line()
        )),
        None => kpi::systm::panic(format_args!("asyncpager: {}", info.message())),
    }
}
