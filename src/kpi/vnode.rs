// SPDX-License-Identifier: BSD-2-Clause
//! Vnodes and what the pager asks of their mounts (vnode(9), VOP_BMAP(9)).

use core::{
    ffi::{CStr, c_int},
    fmt,
    marker::PhantomData,
    ptr::{self, NonNull},
};

use super::{errno::Errno, sys, vm_object::Object};

/// A vnode that somebody else keeps for `'a`.
///
/// # Invariants
///
/// During a VOP the caller holds the vnode's lock; during an I/O the vnode's
/// object has busied pages, which reclaim waits for.
#[derive(Clone, Copy)]
pub struct Vnode<'a>(NonNull<sys::vnode>, PhantomData<&'a sys::vnode>);

/// The device below a filesystem, as bufs name it.
#[derive(Clone, Copy)]
pub struct Device<'a>(NonNull<sys::bufobj>, PhantomData<&'a sys::bufobj>);

/// What VOP_BMAP(9) says about one logical block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockMap {
    /// Where the block begins, in units of DEV_BSIZE; `None` for a hole.
    pub blkno: Option<i64>,
    /// Blocks before this one that lie just before it on the disk.
    pub before: u32,
    /// Blocks after this one that lie just after it on the disk.
    pub after: u32,
}

impl<'a> Vnode<'a> {
    /// # Safety
    ///
    /// The vnode stays for `'a`; see the invariant.
    pub(super) unsafe fn new(vp: NonNull<sys::vnode>) -> Self {
        Self(vp, PhantomData)
    }

    /// Whether the vnode has been reclaimed, or has lost its mount or object.
    pub fn is_doomed(&self) -> bool {
        // SAFETY: live by the invariant.
        unsafe {
            let vp = self.0.as_ptr();
            sys::shim_VN_IS_DOOMED(vp)
                || (*vp).v_mount.is_null()
                || (*vp).v_bufobj.bo_object.is_null()
        }
    }

    /// The vnode's vector of operations.
    pub(super) fn v_op(&self) -> *const sys::vop_vector {
        // SAFETY: live by the invariant.
        unsafe { (*self.0.as_ptr()).v_op as *const sys::vop_vector }
    }

    /// The vnode's VM object. `None` when the vnode has none.
    pub fn object(&self) -> Option<Object<'a>> {
        // SAFETY: live by the invariant, and so is the object: it goes away
        // only after the vnode's lock and its busied pages have.
        unsafe {
            NonNull::new((*self.0.as_ptr()).v_bufobj.bo_object).map(|object| Object::new(object))
        }
    }

    /// Bytes of a block of the filesystem (f_iosize).
    pub fn block_size(&self) -> u32 {
        let mount = self.mount();
        if mount.is_null() {
            return 0;
        }
        // SAFETY: a vnode that is not doomed keeps its mount.
        unsafe { u32::try_from((*mount).mnt_stat.f_iosize).unwrap_or(0) }
    }

    /// Whether the mount takes bufs whose pages are not mapped.
    pub fn takes_unmapped(&self) -> bool {
        let mount = self.mount();
        // SAFETY: a vnode that is not doomed keeps its mount;
        // unmapped_buf_allowed is set at boot.
        unsafe {
            !mount.is_null()
                && (*mount).mnt_kern_flag & sys::MNTK_UNMAPPED_BUFS != 0
                && sys::unmapped_buf_allowed != 0
        }
    }

    fn mount(&self) -> *mut sys::mount {
        // SAFETY: live by the invariant.
        unsafe { (*self.0.as_ptr()).v_mount }
    }

    /// The device below, without a look at the block map. Never sleeps.
    pub fn device(&self) -> Result<Device<'a>, Errno> {
        let mut bo = ptr::null_mut();
        // SAFETY: a live vnode, locked by the VOP's caller. Without a_bnp,
        // VOP_BMAP(9) answers from the mount alone.
        Errno::check(unsafe {
            sys::shim_VOP_BMAP(
                self.0.as_ptr(),
                0,
                &mut bo,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
            )
        })?;
        NonNull::new(bo).map(|bo| Device(bo, PhantomData)).ok_or(Errno::EOPNOTSUPP)
    }

    /// VOP_BMAP(9) for the logical block `lbn`. May read an indirect block.
    pub fn bmap(&self, lbn: u64) -> Result<BlockMap, Errno> {
        let lbn = i64::try_from(lbn).map_err(|_| Errno::EINVAL)?;
        let (mut blkno, mut after, mut before): (sys::daddr_t, c_int, c_int) = (-1, 0, 0);
        // SAFETY: a live vnode, locked by the VOP's caller; all three results
        // have a place.
        Errno::check(unsafe {
            sys::shim_VOP_BMAP(
                self.0.as_ptr(),
                lbn,
                ptr::null_mut(),
                &mut blkno,
                &mut after,
                &mut before,
            )
        })?;
        Ok(BlockMap {
            blkno: (blkno != -1).then_some(blkno),
            before: before.max(0) as u32,
            after: after.max(0) as u32,
        })
    }

    pub(super) fn as_ptr(&self) -> *mut sys::vnode {
        self.0.as_ptr()
    }
}

/// Names a file to a person: where it is mounted and its inode.
impl fmt::Display for Vnode<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mount = self.mount();
        if mount.is_null() {
            return f.write_str("(no mount)");
        }
        // SAFETY: a vnode that is not doomed keeps its mount, whose name is
        // NUL-terminated, and its inode; only FFS's vnodes come here.
        let (on, inode) = unsafe {
            (
                CStr::from_ptr((&raw const (*mount).mnt_stat.f_mntonname).cast()),
                sys::shim_inode_number(self.0.as_ptr()),
            )
        };
        write!(f, "{} inode {inode}", on.to_str().unwrap_or("?"))
    }
}

impl Device<'_> {
    /// Bytes of a sector, the unit of its transfers.
    pub fn sector(&self) -> u32 {
        // SAFETY: a mounted filesystem keeps its device's bufobj.
        unsafe { (*self.0.as_ptr()).bo_bsize }.max(0) as u32
    }

    pub(super) fn as_ptr(&self) -> *mut sys::bufobj {
        self.0.as_ptr()
    }
}

/// Whether the root vnode reads as one: a directory that has a mount.
pub(super) fn layout_is_known() -> bool {
    // SAFETY: a module is loaded from a root filesystem, which stays.
    unsafe {
        let root = sys::rootvnode;
        root.is_null() || ((*root).v_type == sys::VDIR && !(*root).v_mount.is_null())
    }
}
