// SPDX-License-Identifier: BSD-2-Clause
//! A file of FFS: its inode, vnode and object, its block map, and its uses.

use std::{
    ffi::c_int,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use asyncpager::kpi::sys;

use crate::{
    checks::rules::violation,
    disk::{device::Disk, ufs::Inode},
    ffs::{dinode::set_size, indirect_cache::IndirectCache},
    kernel::{
        buf::MAXPHYS,
        vnode::{self, VnodeLocked, is_doomed, with_vnode},
        vnode_pager,
    },
};

/// How VOP_BMAP(9) answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bmap {
    /// From the inode.
    Good,
    /// EOPNOTSUPP: the filesystem has none.
    Unsupported,
    /// EIO: the indirect block cannot be read.
    Fails,
}

/// How a filesystem is mounted.
#[derive(Clone, Copy, Debug)]
pub struct Mount {
    /// f_iosize: bytes of a block.
    pub block: u64,
    /// MNTK_UNMAPPED_BUFS.
    pub unmapped: bool,
    /// `mnt_flag`, such as MNT_ASYNC.
    pub flags: u64,
    /// How VOP_BMAP(9) answers.
    pub bmap: Bmap,
}

/// An open file.
pub struct File {
    /// Its inode.
    pub inode: Inode,
    /// Its vnode.
    pub vnode: *mut sys::vnode,
    /// The vnode's object.
    pub object: *mut sys::vm_object,
    /// How its filesystem is mounted.
    pub mount: Mount,
    /// Which of its indirect blocks are in the buffer cache.
    pub maps: IndirectCache,
    size: AtomicU64,
    disk: Arc<Disk>,
}

// SAFETY: the fields behind the pointers follow the kernel's locking, and their
// memory faults after its end.
unsafe impl Send for File {}
// SAFETY: as above.
unsafe impl Sync for File {}

impl File {
    /// The file of a new vnode with its object.
    pub fn new(
        inode: Inode,
        vnode: *mut sys::vnode,
        object: *mut sys::vm_object,
        mount: Mount,
        disk: &Arc<Disk>,
    ) -> Self {
        let (maps, size) = (IndirectCache::default(), AtomicU64::new(inode.size));
        Self { inode, vnode, object, mount, maps, size, disk: disk.clone() }
    }

    /// The file of a live vnode.
    pub fn of(call: &str, vnode: *mut sys::vnode) -> Arc<Self> {
        let file = vnode::private(call, vnode).downcast();
        file.unwrap_or_else(|_| violation(call, "not a vnode of FFS"))
    }

    /// The file's size now, in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The disk that it is on.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Truncates or extends it to `size` bytes, at most to the inode's:
    /// vnode_pager_setsize() under the exclusive vnode lock.
    pub fn set_size(&self, size: u64) {
        let _exclusive = VnodeLocked::new(self.vnode, true, "ffs_truncate");
        let size = size.min(self.inode.size);
        with_vnode("ffs_truncate", self.vnode, |fields| {
            // SAFETY: the inode lives until the vnode is doomed.
            unsafe { set_size(fields.v_data.cast(), size) }
        });
        vnode_pager::set_size(self.object, size);
        self.size.store(size, Ordering::Release);
    }

    /// softdep_setup_freeblocks(): a truncation to 0 sets the inode's size and frees
    /// the blocks before it waits for busied pages. It takes no vnode lock here: a
    /// reader of the block map holds that lock while the disk hangs.
    pub fn free_blocks(&self) {
        with_vnode("ffs_truncate", self.vnode, |fields| {
            // SAFETY: the inode lives until the vnode is doomed.
            unsafe { set_size(fields.v_data.cast(), 0) }
        });
    }

    /// Takes a reference on the vnode and its shared lock; `None` when the file is gone.
    pub fn enter(&self, call: &'static str) -> Option<Entered> {
        self.enter_as(call, false)
    }

    /// The same with the exclusive lock.
    pub fn enter_exclusive(&self, call: &'static str) -> Option<Entered> {
        self.enter_as(call, true)
    }

    fn enter_as(&self, call: &'static str, exclusive: bool) -> Option<Entered> {
        let referenced = vnode::try_with_vnode(self.vnode, |fields| {
            let live = fields.v_usecount > 0;
            fields.v_usecount += u32::from(live);
            live
        });
        if referenced != Some(true) {
            return None;
        }
        let locked = VnodeLocked::new(self.vnode, exclusive, call);
        let doomed = is_doomed(call, self.vnode);
        let entered = Entered { locked: Some(locked), vnode: self.vnode };
        (!doomed).then_some(entered)
    }

    /// The block map of the inode: the block's place in units of DEV_BSIZE, or -1 for a
    /// hole, and how many blocks follow and precede it on the disk.
    pub fn bmap(&self, lbn: u64) -> (i64, c_int, c_int) {
        let unit = (self.mount.block / 512) as i64;
        let at = |lbn: u64| self.inode.map.get(lbn as usize).copied().flatten();
        let Some(place) = at(lbn) else { return (-1, 0, 0) };
        // ufs_bmaparray() limits it by mnt_iosize_max.
        let most = MAXPHYS as i64 / self.mount.block as i64 - 1;
        let after =
            (1..=most).take_while(|i| at(lbn + *i as u64) == Some(place + i * unit)).count();
        let before = (1..=most)
            .take_while(|i| lbn.checked_sub(*i as u64).and_then(at) == Some(place - i * unit))
            .count();
        (place, after as c_int, before as c_int)
    }
}

/// A use of a file: see [`File::enter`].
pub struct Entered {
    locked: Option<VnodeLocked>,
    vnode: *mut sys::vnode,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.locked = None;
        vnode::vrele(self.vnode);
    }
}
