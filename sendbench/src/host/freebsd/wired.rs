// SPDX-License-Identifier: BSD-2-Clause
//! Memory taken away: wired with mlock(2), so that the page daemon has little left to work with.

use std::io;

use anyhow::{Result, ensure};

use super::sysctl;
use crate::undo;

const LIMIT: &str = "vm.max_user_wired";
const PAGE: u64 = 4096;

/// Wire memory until `percent` of all is wired, what the kernel has wired included.
/// It stays so until the process ends.
pub fn wire(percent: u8) -> Result<()> {
    let pages = sysctl::number("vm.stats.vm.v_page_count")?;
    let wired = sysctl::number("vm.stats.vm.v_wire_count")?;
    let want = (pages * u64::from(percent) / 100).saturating_sub(wired);
    if want == 0 {
        return Ok(());
    }
    let limit = sysctl::number(LIMIT)?;
    undo::later(format!("set {LIMIT}={limit}"), move || sysctl::set(LIMIT, limit));
    sysctl::set(LIMIT, limit.max(pages))?;
    let bytes = (want * PAGE) as usize;
    // SAFETY: a new mapping that nothing uses and that is never unmapped.
    unsafe {
        let map = libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_ANON | libc::MAP_PRIVATE,
            -1,
            0,
        );
        ensure!(map != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        ensure!(
            libc::mlock(map, bytes) == 0,
            "cannot wire {} MiB: {}",
            bytes >> 20,
            io::Error::last_os_error()
        );
    }
    Ok(())
}
