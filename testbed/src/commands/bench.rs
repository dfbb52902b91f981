// SPDX-License-Identifier: BSD-2-Clause
//! An interface for benchmarks: a loaded module over a disk in memory, files, a
//! sendfile in two halves, switches and counters.

use std::{collections::BTreeMap, io, path::Path, sync::Arc, time::Duration};

use anyhow::{Result, ensure};

use crate::{
    consumers::sendfile::Sending,
    disk::behaviour::Behaviour,
    ffs::file,
    kernel::{callout, proc, sysctl, vm_object},
    kld::options::Options,
    scenarios::fixture::Fixture,
};

/// Bytes of memory that files can be cached in.
pub const MEMORY: u64 = 256 << 20;

/// Bytes of a disk that are for indirect blocks.
const MAPS: usize = 8 << 20;

/// A loaded module over a disk.
pub struct Bench {
    fixture: Fixture,
    block: u64,
}

/// A file on the disk.
#[derive(Clone)]
pub struct File(Arc<file::File>);

/// A sendfile(2) with its I/O in flight.
pub struct Transfer(Sending);

/// Make the calling thread one that may run the module's code.
pub fn attach() {
    proc::attach();
}

impl Bench {
    /// Load the module over a disk that holds `image`, in blocks of `block` bytes.
    pub fn new(ko: &Path, image: Vec<u8>, block: u64, seed: u64) -> Result<Self> {
        Self::with(ko, image, block, seed, &[])
    }

    /// The same with loader tunables.
    pub fn with(
        ko: &Path,
        mut image: Vec<u8>,
        block: u64,
        seed: u64,
        tunables: &[(&str, &str)],
    ) -> Result<Self> {
        // Room for indirect blocks, behind what the caller has laid out.
        image.resize(image.len() + MAPS, 0);
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let tunables = tunables.iter().map(owned).collect();
        let options = Options { tunables, ..Options::default() };
        let fixture = Fixture::new(Some(ko), &options, image, 512, seed, true)?;
        Ok(Self { fixture, block })
    }

    /// Let every transfer of the disk take so long.
    pub fn latency(&self, latency: Duration) {
        self.fixture.disk.behave(Behaviour { latency: latency.into(), ..Behaviour::default() });
    }

    /// A file whose blocks are these of the disk; `None` is a hole.
    pub fn file(&self, name: &str, map: &[Option<u64>], size: u64) -> File {
        File(self.fixture.named(name, self.block, map, size, true))
    }

    /// Write a switch as sysctl(8) does.
    pub fn switch(&self, name: &str, on: bool) -> Result<()> {
        let errno = sysctl::write(name, on);
        ensure!(errno == 0, "sysctl {name}: {}", io::Error::from_raw_os_error(errno));
        Ok(())
    }

    /// Runs of the module's timer since the last call, the time that they took
    /// together, and the longest.
    pub fn timer(&self) -> (u64, Duration, Duration) {
        callout::took()
    }

    /// The module's counters.
    pub fn counters(&self) -> BTreeMap<String, u64> {
        sysctl::counters()
    }

    /// Close all files, unload the module, and see that nothing is left.
    pub fn finish(self) -> Result<()> {
        self.fixture.finish()
    }
}

impl File {
    /// Begin to send: start what is missing, wait for nothing but busy pages.
    pub fn send(&self, offset: u64, len: u64, readahead: u16) -> io::Result<Transfer> {
        let sending = Sending::begin(&self.0, offset, len, readahead.into());
        sending.map(Transfer).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    /// Frees the cached pages that are not in use.
    pub fn forget(&self) {
        self.0.maps.forget();
        vm_object::reclaim(self.0.object, 1, &mut fastrand::Rng::with_seed(0));
    }
}

impl Transfer {
    /// Wait for the pages, and give their bytes to `sink`.
    pub fn finish(self, nocache: bool, sink: impl FnMut(&[u8])) -> io::Result<()> {
        self.0.finish(nocache, sink).map_err(io::Error::from_raw_os_error)
    }
}
