// SPDX-License-Identifier: BSD-2-Clause
//! A loaded module with a disk below it, and what every run checks at its end.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use anyhow::{Result, bail};

use crate::{
    consumers::write::Versions,
    disk::{
        device::{self, Disk},
        indirect::{DIRECT, Indirect},
        ufs::Inode,
    },
    ffs::file::{Bmap, File, Mount},
    kld::{boot::boot, left, module::Module, options::Options},
};

/// A scenario.
pub type Run = fn(&mut Fixture, &Path) -> Result<()>;

/// A disk beside the fixture's, with the same bytes at its beginning.
pub struct OtherDisk {
    /// The disk.
    pub disk: Arc<Disk>,
    thread: Option<JoinHandle<()>>,
    files: Vec<Arc<File>>,
}

impl OtherDisk {
    /// A file whose blocks are these of the disk.
    pub fn file(&mut self, block: u64, map: &[Option<u64>], size: u64) -> Arc<File> {
        let map: Vec<_> = map.iter().map(|b| b.map(|b| (b * block / 512) as i64)).collect();
        let mut top = self.disk.image().len();
        let indirect = Indirect::lay_out(&self.disk, &mut top, &map, block);
        let inode = Inode { path: "other".into(), number: 5, size, map, indirect };
        let mount = Mount { block, unmapped: true, flags: 0, bmap: Bmap::Good };
        let file = File::open(inode, mount, &self.disk, true);
        self.files.push(file.clone());
        file
    }
}

impl Drop for OtherDisk {
    /// Close its files, and end its thread.
    fn drop(&mut self) {
        self.disk.complete_now();
        self.files.drain(..).for_each(|file| file.close());
        self.disk.stop();
        self.thread.take().map(JoinHandle::join);
    }
}

/// See the module's documentation.
pub struct Fixture {
    /// The module; `None` between unload and load.
    pub module: Option<Module>,
    /// The disk.
    pub disk: Arc<Disk>,
    /// Versions of the file that is written to.
    pub versions: Versions,
    thread: Option<JoinHandle<()>>,
    files: Mutex<Vec<Arc<File>>>,
    /// Below this byte of the disk the next indirect block is put.
    top: Mutex<usize>,
}

impl Fixture {
    /// Load the module, or none, over a disk that holds `image`.
    pub fn new(
        ko: Option<&Path>,
        options: &Options,
        image: Vec<u8>,
        sector: i32,
        seed: u64,
        threaded: bool,
    ) -> Result<Self> {
        boot(!threaded, seed);
        let module = ko.map(|ko| Module::load(ko, options)).transpose()?;
        let top = Mutex::new(image.len());
        let (disk, thread) = Disk::new(image, sector, seed, threaded);
        let (versions, files) = (Versions::default(), Mutex::default());
        Ok(Self { module, disk, versions, thread, files, top })
    }

    /// Open a file of the disk.
    pub fn open(&self, inode: Inode, mount: Mount, ufs2: bool) -> Arc<File> {
        let file = File::open(inode, mount, &self.disk, ufs2);
        self.files.lock().unwrap().push(file.clone());
        file
    }

    /// A file whose blocks are at the given blocks of the disk.
    pub fn synthetic(
        &self,
        block: u64,
        map: &[Option<u64>],
        size: u64,
        unmapped: bool,
    ) -> Arc<File> {
        self.named("synthetic", block, map, size, unmapped)
    }

    /// The same with a path.
    pub fn named(
        &self,
        path: &str,
        block: u64,
        map: &[Option<u64>],
        size: u64,
        unmapped: bool,
    ) -> Arc<File> {
        let mut top = self.top.lock().unwrap();
        self.laid_out(path, block, map, size, unmapped, &mut top)
    }

    /// The same, with its indirect blocks below byte `top` of the disk.
    pub fn laid_out(
        &self,
        path: &str,
        block: u64,
        map: &[Option<u64>],
        size: u64,
        unmapped: bool,
        top: &mut usize,
    ) -> Arc<File> {
        let map: Vec<_> = map.iter().map(|b| b.map(|b| (b * block / 512) as i64)).collect();
        let indirect = Indirect::lay_out(&self.disk, top, &map, block);
        let inode = Inode { path: path.into(), number: 4, size, map, indirect };
        self.open(inode, Mount { block, unmapped, flags: 0, bmap: Bmap::Good }, true)
    }

    /// The same, but as FFS lays a file out: behind the blocks of `map` that are
    /// in the inode there is the indirect block, and behind that all others.
    pub fn straight(
        &self,
        path: &str,
        block: u64,
        map: &[Option<u64>],
        size: u64,
        unmapped: bool,
    ) -> Arc<File> {
        let mut top = self.top.lock().unwrap();
        let direct = map.len().min(DIRECT as usize);
        let first = *top as u64 / block - (map.len() - direct) as u64;
        *top = (first * block) as usize;
        let place = |(i, at): (usize, &Option<u64>)| match i.checked_sub(direct) {
            Some(i) => at.map(|_| first + i as u64),
            None => *at,
        };
        let map: Vec<_> = map.iter().enumerate().map(place).collect();
        self.laid_out(path, block, &map, size, unmapped, &mut top)
    }

    /// Another disk, of `bytes` bytes.
    pub fn other_disk(&self, bytes: usize, seed: u64) -> OtherDisk {
        let image = self.disk.image()[..bytes].to_vec();
        let (disk, thread) = Disk::new(image, self.disk.sector() as i32, seed, true);
        OtherDisk { disk, thread, files: Vec::new() }
    }

    /// Unmounts a file by force in the middle of its use, and opens it anew.
    pub fn remount(&self, file: &Arc<File>, ufs2: bool) -> Arc<File> {
        self.files.lock().unwrap().retain(|other| !Arc::ptr_eq(other, file));
        file.gone();
        self.open(file.inode.clone(), file.mount, ufs2)
    }

    /// The file's byte at `at`.
    pub fn byte(&self, file: &File, at: u64) -> u8 {
        if at >= file.inode.size {
            return 0;
        }
        let block = file.mount.block;
        let place = file.inode.map.get((at / block) as usize).copied().flatten();
        place.map_or(0, |place| self.disk.image()[place as usize * 512 + (at % block) as usize])
    }

    /// The file's bytes from `at` on.
    pub fn bytes(&self, file: &File, at: u64, len: usize) -> Vec<u8> {
        let (block, end) = (file.mount.block, at + len as u64);
        let mut bytes = vec![0; len];
        let mut from = at;
        while from < end.min(file.inode.size) {
            let to = ((from / block + 1) * block).min(end).min(file.inode.size);
            let place = file.inode.map.get((from / block) as usize).copied().flatten();
            if let Some(place) = place {
                let start = place as usize * 512 + (from % block) as usize;
                bytes[(from - at) as usize..(to - at) as usize]
                    .copy_from_slice(&self.disk.image()[start..start + (to - from) as usize]);
            }
            from = to;
        }
        bytes
    }

    /// Close all files, unload the module, and see that nothing is left.
    pub fn finish(mut self) -> Result<()> {
        for file in self.files.lock().unwrap().drain(..) {
            file.close();
        }
        let module = self.module.take();
        let unloaded = module.map_or(Ok(()), |module| module.unload());
        while device::pump() {}
        self.disk.stop();
        self.thread.take().map(JoinHandle::join);
        if let Err(errno) = unloaded {
            bail!("kldunload failed, errno {errno}");
        }
        left::check_balance();
        Ok(())
    }
}
