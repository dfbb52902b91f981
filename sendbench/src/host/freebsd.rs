// SPDX-License-Identifier: BSD-2-Clause
//! FreeBSD itself.

mod disk;
mod socket;
mod sysctl;
mod wired;

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use self::{disk::Nop, socket::Queue};
use crate::{
    content::Content,
    host::{Counters, Event, Host, Stop, Usage, thread_usage},
    interrupt,
    result::{Machine, SendOptions, Variant},
    undo,
    unusable::unusable,
    workload::{FileSpec, Layout},
};

const SWITCH: &str = "vfs.asyncpager.enabled";
const STATS: &str = "vfs.asyncpager.stats";
const PIECE: usize = 1 << 20;

/// Where the files shall lie.
pub enum Place {
    /// In a directory that is there. The cache is dropped file by file.
    Directory(PathBuf),
    /// On a device of which everything may be lost.
    Device(String),
    /// On a memory disk.
    Memory,
}

/// What is wanted of the disk.
pub struct Wish {
    /// Where.
    pub place: Place,
    /// Whether its latency will be set.
    pub latency: bool,
    /// Whether a device gets a new filesystem.
    pub newfs: bool,
    /// Bytes of all files.
    pub bytes: u64,
    /// Per cent of memory to be wired during the runs.
    pub wire: Option<u8>,
}

/// See the module's documentation.
pub struct FreeBsd {
    dir: PathBuf,
    /// The device and its mount point, when they are ours.
    mounted: Option<(String, PathBuf)>,
    nop: Option<Nop>,
    disk: String,
    wire: Option<u8>,
}

impl FreeBsd {
    /// Whether the module is loaded.
    pub fn module_loaded() -> bool {
        sysctl::exists(SWITCH)
    }

    /// Set up the disk. What has been set up is taken down by [`undo::all`].
    pub fn new(wish: &Wish) -> Result<Self> {
        // SAFETY: no arguments.
        if unsafe { libc::geteuid() } != 0 && !matches!(wish.place, Place::Directory(_)) {
            return Err(unusable("making a disk needs root; --dir takes a directory instead"));
        }
        if let Ok(before) = sysctl::number(SWITCH) {
            undo::later(format!("set {SWITCH}={before}"), move || {
                // Unloaded in the meantime: nothing to put back.
                if sysctl::exists(SWITCH) { sysctl::set(SWITCH, before) } else { Ok(()) }
            });
        }
        let device = match &wish.place {
            Place::Directory(dir) => return Self::in_directory(dir, wish),
            Place::Device(device) => device.trim_start_matches("/dev/").to_string(),
            Place::Memory => {
                let name = disk::md_create(wish.bytes + wish.bytes / 8 + (64 << 20))?;
                let md = name.clone();
                undo::later(format!("detach {md}"), move || disk::md_destroy(&md));
                name
            }
        };
        let path = format!("/dev/{device}");
        ensure!(Path::new(&path).exists(), "no device {path}");
        let memory = matches!(wish.place, Place::Memory);
        if memory || wish.newfs {
            disk::newfs(&path)?;
        }
        let nop = if wish.latency { Some(Nop::create(&device)?) } else { None };
        if let Some(nop) = &nop {
            let nop = nop.clone();
            undo::later(format!("destroy {}", nop.name()), move || nop.destroy());
        }
        let device = nop.as_ref().map_or(path.clone(), |nop| format!("/dev/{}", nop.name()));
        let at = std::env::temp_dir().join(format!("sendbench.{}", std::process::id()));
        fs::create_dir(&at).with_context(|| format!("cannot make {}", at.display()))?;
        {
            let at = at.clone();
            undo::later(format!("remove {}", at.display()), move || Ok(fs::remove_dir(&at)?));
        }
        {
            let (at, nop) = (at.clone(), nop.clone());
            undo::later(format!("unmount {}", at.display()), move || {
                // Faster, and no reason not to try the rest.
                let _ = nop.map(|nop| nop.latency(0));
                disk::unmount(&at, true)
            });
        }
        disk::mount(&device, &at)?;
        let kind = if memory { "md(4), swap-backed" } else { path.as_str() };
        let disk = match nop {
            Some(_) => format!("{kind}, with gnop(8)"),
            None => kind.to_string(),
        };
        let dir = at.join("sendbench");
        // Of an earlier run, with --no-newfs.
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir)?;
        Ok(Self { dir, mounted: Some((device, at)), nop, disk, wire: wish.wire })
    }

    fn in_directory(parent: &Path, wish: &Wish) -> Result<Self> {
        if wish.latency {
            return Err(unusable(
                "--latency needs a disk of its own: give --device, or neither --device nor --dir",
            ));
        }
        let (device, kind, _) = disk::filesystem(parent)?;
        ensure!(kind == "ufs", "{} is {kind}, not ufs: asyncpager serves FFS", parent.display());
        let dir = parent.join(format!("sendbench.{}", std::process::id()));
        fs::create_dir(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        {
            let dir = dir.clone();
            undo::later(format!("remove {}", dir.display()), move || Ok(fs::remove_dir_all(&dir)?));
        }
        let disk = format!("{device}, as it is");
        Ok(Self { dir, mounted: None, nop: None, disk, wire: wish.wire })
    }

    fn path(&self, file: &FileSpec) -> PathBuf {
        self.dir.join(&file.name)
    }

    /// Write `file`, and return its extents if it was to lie in several.
    fn write(&self, spec: &FileSpec, seed: u64, progress: &dyn Fn(u64)) -> Result<Option<u64>> {
        let path = self.path(spec);
        let content = Content::new(seed, spec.number);
        let begin = self.data_offset(spec)?;
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        let Layout::Extents(extent) = spec.layout else {
            let file = options.open(&path)?;
            let mut buf = vec![0; PIECE];
            let mut at = 0;
            while at < spec.size {
                interrupt::check()?;
                let piece = &mut buf[..(spec.size - at).min(PIECE as u64) as usize];
                content.fill(begin + at, piece);
                file.write_all_at(piece, begin + at)?;
                at += piece.len() as u64;
                progress(piece.len() as u64);
            }
            file.sync_all()?;
            return Ok(None);
        };
        // Synchronous writes to two files in turn: each block is allocated when it
        // is written, and ffs_reallocblks() has no chance to gather them.
        let wedge_path = path.with_extension("wedge");
        let (file, mut wedge) = {
            options.custom_flags(libc::O_SYNC);
            (options.open(&path)?, options.open(&wedge_path)?)
        };
        let block = file.metadata()?.blksize();
        let (mut buf, filler) = (vec![0; extent as usize], vec![0; block as usize]);
        let mut at = 0;
        while at < spec.size {
            interrupt::check()?;
            let piece = &mut buf[..(spec.size - at).min(extent) as usize];
            content.fill(at, piece);
            file.write_all_at(piece, at)?;
            wedge.write_all(&filler)?;
            at += piece.len() as u64;
            progress(piece.len() as u64);
        }
        fs::remove_file(&wedge_path)?;
        Ok(disk::extents(&file, 0, spec.size, block))
    }
}

impl Host for FreeBsd {
    type File = File;
    type Queue = Queue;
    type Server = socket::TcpServer;
    type Client = socket::TcpClient;

    fn prepare(
        &self,
        files: &[FileSpec],
        seed: u64,
        progress: &dyn Fn(u64),
    ) -> Result<Option<u64>> {
        let mut extents = None;
        // Last what leaves the free space in pieces.
        let mut files: Vec<&FileSpec> = files.iter().collect();
        files.sort_by_key(|file| matches!(file.layout, Layout::Extents(_)));
        for file in files {
            let told = self
                .write(file, seed, progress)
                .with_context(|| format!("cannot write {}", self.path(file).display()))?;
            extents = extents.or(told);
        }
        if let Some(percent) = self.wire {
            wired::wire(percent)?;
        }
        Ok(extents)
    }

    fn data_offset(&self, file: &FileSpec) -> Result<u64> {
        if file.layout != Layout::Deep {
            return Ok(0);
        }
        let (_, _, block) = disk::filesystem(&self.dir)?;
        Ok(deep_offset(block, file.size))
    }

    fn latency(&self, milliseconds: u64) -> Result<()> {
        match &self.nop {
            Some(nop) => nop.latency(milliseconds),
            // A disk is made without gnop(8) when it has nothing to add.
            None if milliseconds == 0 => Ok(()),
            None => bail!("this disk's latency cannot be set"),
        }
    }

    fn switch(&self, variant: Variant) -> Result<()> {
        match (variant, sysctl::exists(SWITCH)) {
            (Variant::Stock, false) => Ok(()),
            (Variant::Asyncpager, false) => {
                Err(unusable("asyncpager is not loaded: kldload asyncpager.ko"))
            }
            (variant, true) => sysctl::set(SWITCH, u64::from(variant == Variant::Asyncpager)),
        }
    }

    fn make_cold(&self, files: &[FileSpec]) -> Result<()> {
        if let Some((device, at)) = &self.mounted {
            disk::unmount(at, false)?;
            return disk::mount(device, at);
        }
        for spec in files {
            let file = File::open(self.path(spec))?;
            drop_pages(&file, self.data_offset(spec)?, spec.size)
                .with_context(|| format!("cannot drop {} from memory", spec.name))?;
        }
        Ok(())
    }

    fn open(&self, file: &FileSpec) -> Result<File> {
        let path = self.path(file);
        File::open(&path).with_context(|| format!("cannot open {}", path.display()))
    }

    fn queue(&self) -> Result<Queue> {
        Queue::new()
    }

    fn connect(
        &self,
        queue: &Queue,
        connection: usize,
        options: &SendOptions,
    ) -> Result<(socket::TcpServer, socket::TcpClient)> {
        queue.connect(connection, options)
    }

    fn wait(&self, queue: &Queue, time: Duration, events: &mut Vec<Event>) -> io::Result<()> {
        queue.wait(time, events)
    }

    fn sendfile(
        &self,
        file: &File,
        server: &mut socket::TcpServer,
        offset: u64,
        len: u64,
        options: &SendOptions,
    ) -> io::Result<(u64, Stop)> {
        socket::sendfile(file, server, offset, len, options)
    }

    fn usage(&self) -> Usage {
        thread_usage()
    }

    fn counters(&self) -> Result<Counters> {
        let module = if sysctl::exists(SWITCH) { sysctl::below(STATS)? } else { Vec::new() };
        // user, nice, sys, intr, idle, in ticks of the statistics clock.
        let ticks: i64 = sysctl::longs("kern.cp_time")?.iter().take(4).sum();
        Ok(Counters {
            cpu: Some(ticks as f64 / clocks()?.1),
            pages_read: Some(sysctl::number("vm.stats.vm.v_vnodepgsin")?),
            module: module.into_iter().collect(),
        })
    }

    fn machine(&self) -> Result<Machine> {
        let (hz, _) = clocks()?;
        let mut warnings = Vec::new();
        if hz < 1000 && self.nop.is_some() {
            warnings.push(format!(
                "kern.hz is {hz}: gnop(8)'s latency has steps of {} ms; set kern.hz=1000 in loader.conf",
                1000 / hz.max(1)
            ));
        }
        let kernel = sysctl::text("kern.version")?;
        if let Some(percent) = self.wire {
            warnings.push(format!("{percent} % of memory is wired during the runs"));
        }
        let debug = ["kern.features.invariants", "debug.witness.watch"];
        if let Some(option) = debug.iter().find(|name| sysctl::exists(name)) {
            warnings.push(format!("this kernel checks itself ({option}), which takes time"));
        }
        Ok(Machine {
            system: format!("{} {}", sysctl::text("kern.ostype")?, sysctl::text("kern.osrelease")?),
            kernel: kernel.lines().next().unwrap_or_default().to_string(),
            cpus: sysctl::number("hw.ncpu")?,
            memory: sysctl::number("hw.physmem")?,
            hz: Some(hz),
            disk: self.disk.clone(),
            cold: match self.mounted {
                Some(_) => "unmounted and mounted again before each run".into(),
                None => "posix_fadvise(2) and msync(2) of each file before each run".into(),
            },
            warnings,
        })
    }

    fn finish(self) -> Result<()> {
        undo::all()
    }
}

/// Ticks a second of the clock and of the statistics clock.
fn clocks() -> Result<(u64, f64)> {
    // struct clockinfo: hz, tick, spare, stathz, profhz.
    match sysctl::ints("kern.clockrate")?[..] {
        [hz, _, _, stathz, ..] if hz > 0 && stathz > 0 => Ok((hz as u64, f64::from(stathz))),
        _ => bail!("sysctl kern.clockrate is not as expected"),
    }
}

/// Data here are reached through three levels of indirect blocks, and the middle
/// of them lies where one level-1 indirect block ends and the next begins.
fn deep_offset(block: u64, size: u64) -> u64 {
    // Pointers in a block: of 8 bytes on UFS2. With UFS1's 4 bytes there are twice
    // as many, so the start of its third level lies inside UFS2's third level too.
    let (ufs1, ufs2) = (block / 4, block / 8);
    let third = |pointers: u64| (12 + pointers + pointers * pointers) * block;
    let span = ufs2 * block;
    let beyond = (third(ufs1) + size).saturating_sub(third(ufs2));
    let middle = third(ufs2) + beyond.next_multiple_of(span);
    (middle - size / 2) / block * block
}

/// Take a file's pages out of memory.
fn drop_pages(file: &File, offset: u64, len: u64) -> Result<()> {
    file.sync_all()?;
    // SAFETY: a mapping of its own, unmapped before return.
    unsafe {
        libc::posix_fadvise(file.as_raw_fd(), offset as i64, len as i64, libc::POSIX_FADV_DONTNEED);
        let map = libc::mmap(
            std::ptr::null_mut(),
            len as usize,
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            offset as i64,
        );
        ensure!(map != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
        let done = libc::msync(map, len as usize, libc::MS_INVALIDATE);
        let error = io::Error::last_os_error();
        let mut resident = vec![0u8; len.div_ceil(4096) as usize];
        let looked = libc::mincore(map, len as usize, resident.as_mut_ptr().cast());
        libc::munmap(map, len as usize);
        ensure!(done == 0, "msync: {error}");
        let left = resident.iter().filter(|page| **page & 1 != 0).count();
        ensure!(looked != 0 || left == 0, "{left} of {} pages stay in memory", resident.len());
    }
    Ok(())
}
