// SPDX-License-Identifier: BSD-2-Clause
//! Vnodes, and what the pager needs of their mounts (vnode(9), VOP_BMAP(9)).

use core::{
    ffi::{CStr, c_int},
    marker::PhantomData,
    ptr::{self, NonNull},
};

use super::{errno::Errno, sys, vm_object::Object};

/// A borrowed vnode: the VOP's caller or an I/O keeps it for `'a`.
///
/// # Invariants
///
/// During a VOP the caller holds the vnode's lock. During an I/O the vnode's
/// object has busied pages, for which reclaim waits.
#[derive(Clone, Copy)]
pub struct Vnode<'a>(NonNull<sys::vnode>, PhantomData<&'a sys::vnode>);

/// The device below a filesystem, by its bufobj.
#[derive(Clone, Copy)]
pub struct Device<'a>(NonNull<sys::bufobj>, PhantomData<&'a sys::bufobj>);

/// The answer of VOP_BMAP(9) for one logical block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The block's place, in units of DEV_BSIZE; `None` for a hole.
    pub blkno: Option<i64>,
    /// File blocks before this one that are contiguous with it on the device.
    pub before: u32,
    /// File blocks after this one that are contiguous with it on the device.
    pub after: u32,
}

impl<'a> Vnode<'a> {
    /// # Safety
    ///
    /// The vnode lives for `'a`; see the invariant.
    pub(super) unsafe fn new(vp: NonNull<sys::vnode>) -> Self {
        Self(vp, PhantomData)
    }

    /// Whether the vnode has been reclaimed, or has lost its mount or object.
    pub fn is_doomed(&self) -> bool {
        // SAFETY: live (invariant).
        unsafe {
            let vp = self.0.as_ptr();
            sys::shim_VN_IS_DOOMED(vp)
                || (*vp).v_mount.is_null()
                || (*vp).v_bufobj.bo_object.is_null()
        }
    }

    /// The vnode's vector of operations.
    pub(super) fn v_op(&self) -> *const sys::vop_vector {
        // SAFETY: live (invariant).
        unsafe { (*self.0.as_ptr()).v_op as *const sys::vop_vector }
    }

    /// The vnode's VM object. `None` when the vnode has none.
    pub fn object(&self) -> Option<Object<'a>> {
        // SAFETY: live (invariant), and so is the object: it outlives the
        // vnode's lock and its busied pages.
        unsafe {
            NonNull::new((*self.0.as_ptr()).v_bufobj.bo_object).map(|object| Object::new(object))
        }
    }

    /// The filesystem's block size (f_iosize), in bytes. 0 without a mount.
    pub fn block_size(&self) -> u32 {
        let mount = self.mount();
        if mount.is_null() {
            return 0;
        }
        // SAFETY: a vnode that is not doomed keeps its mount.
        unsafe { u32::try_from((*mount).mnt_stat.f_iosize).unwrap_or(0) }
    }

    /// Whether the mount accepts unmapped bufs.
    pub fn takes_unmapped(&self) -> bool {
        let mount = self.mount();
        // SAFETY: a vnode that is not doomed keeps its mount.
        // unmapped_buf_allowed is constant after boot.
        unsafe {
            !mount.is_null()
                && (*mount).mnt_kern_flag & sys::MNTK_UNMAPPED_BUFS != 0
                && sys::unmapped_buf_allowed != 0
        }
    }

    /// The mount point of the file's filesystem, for messages.
    pub fn mounted_on(&self) -> &str {
        let mount = self.mount();
        if mount.is_null() {
            return "(no mount)";
        }
        // SAFETY: a vnode that is not doomed keeps its mount, whose name is
        // NUL-terminated.
        let name = unsafe { CStr::from_ptr((&raw const (*mount).mnt_stat.f_mntonname).cast()) };
        name.to_str().unwrap_or("?")
    }

    fn mount(&self) -> *mut sys::mount {
        // SAFETY: live (invariant).
        unsafe { (*self.0.as_ptr()).v_mount }
    }

    /// A number that identifies one mounting of the filesystem. It differs from
    /// that of an earlier mounting on the same device. Never dereferenced; 0
    /// without a mount.
    pub fn mounting(&self) -> usize {
        let mount = self.mount();
        if mount.is_null() {
            return 0;
        }
        // SAFETY: a vnode that is not doomed keeps its mount. mnt_gen, the
        // number of times that this structure was used, was set before.
        (mount as usize).wrapping_add(unsafe { (*mount).mnt_gen } as usize)
    }

    /// The device below the filesystem. Does not read the block map. Locks:
    /// vnode. Sleeps: no. Errors: EOPNOTSUPP.
    pub fn device(&self) -> Result<Device<'a>, Errno> {
        let mut bo = ptr::null_mut();
        // Without a_bnp, VOP_BMAP(9) answers from the mount alone.
        self.vop_bmap(0, Some(&mut bo), None, None)?;
        NonNull::new(bo).map(|bo| Device(bo, PhantomData)).ok_or(Errno::EOPNOTSUPP)
    }

    /// VOP_BMAP(9) of the logical block `lbn`. May read an indirect block.
    /// Locks: vnode. Sleeps: yes.
    pub fn bmap(&self, lbn: u64) -> Result<Extent, Errno> {
        let lbn = i64::try_from(lbn).map_err(|_| Errno::EINVAL)?;
        let (mut blkno, mut after, mut before) = (-1, 0, 0);
        self.vop_bmap(lbn, None, Some(&mut blkno), Some((&mut after, &mut before)))?;
        Ok(Extent {
            blkno: (blkno != -1).then_some(blkno),
            before: before.max(0) as u32,
            after: after.max(0) as u32,
        })
    }

    /// The place of an indirect block, in units of DEV_BSIZE; `None` when it is
    /// not allocated. `lbn`: its negative number. The caller ensures that the
    /// blocks above it are in memory, so that this does not read. Locks: vnode.
    pub fn bmap_indirect(&self, lbn: i64) -> Result<Option<i64>, Errno> {
        let mut blkno = -1;
        self.vop_bmap(lbn, None, Some(&mut blkno), None)?;
        Ok((blkno > 0).then_some(blkno))
    }

    fn vop_bmap(
        &self,
        lbn: sys::daddr_t,
        bo: Option<&mut *mut sys::bufobj>,
        blkno: Option<&mut sys::daddr_t>,
        runs: Option<(&mut c_int, &mut c_int)>,
    ) -> Result<(), Errno> {
        let bo = bo.map_or(ptr::null_mut(), ptr::from_mut);
        let blkno = blkno.map_or(ptr::null_mut(), ptr::from_mut);
        let (after, before) = runs.map_or((ptr::null_mut(), ptr::null_mut()), |(after, before)| {
            (ptr::from_mut(after), ptr::from_mut(before))
        });
        // SAFETY: a live vnode, locked by the VOP's caller or by this thread.
        // Each result has memory or is NULL.
        Errno::check(unsafe { sys::shim_VOP_BMAP(self.0.as_ptr(), lbn, bo, blkno, after, before) })
    }

    /// Whether a block is available without a read from the disk. `lbn`:
    /// negative for an indirect block. A hint: the block may leave memory at
    /// any time. Locks: vnode. Sleeps: no.
    pub fn in_memory(&self, lbn: i64) -> bool {
        // SAFETY: a live vnode, locked by the VOP's caller.
        unsafe { sys::shim_block_in_memory(self.0.as_ptr(), lbn) }
    }

    /// Starts to read a block of the file into the buffer cache. `lbn`:
    /// negative for an indirect block. `blkno`: its place, in units of
    /// DEV_BSIZE. False when the block is in the cache already. Locks: vnode.
    /// Sleeps: for a buffer, and for the disk when another thread is reading
    /// the block.
    pub fn read_block(&self, lbn: i64, blkno: i64) -> bool {
        // SAFETY: a live vnode, locked by this thread, which may sleep.
        unsafe { sys::shim_read_block(self.0.as_ptr(), lbn, blkno) }
    }

    pub(super) fn address(&self) -> NonNull<sys::vnode> {
        self.0
    }

    pub(super) fn as_ptr(&self) -> *mut sys::vnode {
        self.0.as_ptr()
    }
}

/// The name of a file's object. It does not keep the file.
///
/// # Invariants
///
/// `object` has been a vm_object. The memory of vm_objects is never given back
/// (UMA_ZONE_NOFREE) and their locks stay initialized, so it can be locked at
/// any time. While it is locked and its handle is `vnode`, the vnode lives:
/// vnode_destroy_vobject() needs the write lock to part them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    object: NonNull<sys::vm_object>,
    vnode: NonNull<sys::vnode>,
}

// SAFETY: the addresses are dereferenced only under the object's lock.
unsafe impl Send for Identity {}

impl Identity {
    /// The name of a locked vnode's object.
    pub fn new(vnode: Vnode<'_>, object: Object<'_>) -> Self {
        Self { object: object.address(), vnode: vnode.address() }
    }

    /// A hash of the object's address.
    pub fn hash(&self) -> usize {
        // A vm_object has 256 bytes or more. Fibonacci hashing spreads the
        // other bits.
        (self.object.as_ptr() as usize >> 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
    }

    fn is_alive(&self) -> bool {
        let object = self.object.as_ptr();
        // SAFETY: the caller has locked the object; see the invariant.
        unsafe {
            u32::from((*object).type_) == sys::OBJT_VNODE
                && core::ptr::eq((*object).handle, self.vnode.as_ptr().cast())
        }
    }

    /// Calls `look` with the object read-locked; with `None` when the file is
    /// gone. Returns `None` when the lock is not free. Sleeps: no.
    pub fn look<T>(&self, look: impl FnOnce(Option<&Seen<'_>>) -> T) -> Option<T> {
        // SAFETY: the lock is initialized (invariant).
        if !unsafe { sys::shim_VM_OBJECT_TRYRLOCK(self.object.as_ptr()) } {
            return None;
        }
        // SAFETY: locked, so the object stays while the lock is held.
        let object = unsafe { Object::new(self.object) };
        let seen = self.is_alive().then_some(Seen(&object));
        let result = look(seen.as_ref());
        // SAFETY: this thread locked it above.
        unsafe { sys::shim_VM_OBJECT_RUNLOCK(self.object.as_ptr()) };
        Some(result)
    }

    /// Holds the vnode (vhold(9)). `None` when the file is gone. Sleeps: no.
    pub fn hold(&self) -> Option<HeldVnode> {
        // SAFETY: as in `look`; the vnode lives while its object is locked.
        unsafe {
            sys::shim_VM_OBJECT_RLOCK(self.object.as_ptr());
            let held = self.is_alive().then(|| HeldVnode::new(self.vnode));
            sys::shim_VM_OBJECT_RUNLOCK(self.object.as_ptr());
            held
        }
    }

    /// Whether a locked vnode still has this object.
    pub fn is_of(&self, vnode: Vnode<'_>) -> bool {
        vnode.address() == self.vnode && vnode.object().is_some_and(|o| o.address() == self.object)
    }
}

/// The read-locked object of a live file.
pub struct Seen<'a>(&'a Object<'a>);

impl Seen<'_> {
    /// Whether a wired page exists at `pindex`: it is in a socket buffer, or
    /// about to be.
    pub fn is_wired(&self, pindex: u64) -> bool {
        // SAFETY: the object is locked, so the page found stays.
        unsafe {
            let page = sys::vm_page_lookup(self.0.as_ptr(), pindex);
            !page.is_null() && sys::shim_vm_page_wired(page)
        }
    }
}

/// A held vnode (vhold(9)): its memory stays, but it can be reclaimed at any
/// time. Dropping it may sleep.
pub struct HeldVnode(NonNull<sys::vnode>);

impl HeldVnode {
    /// # Safety
    ///
    /// The vnode lives now: its object is locked and names it as its handle.
    pub(super) unsafe fn new(vp: NonNull<sys::vnode>) -> Self {
        // SAFETY: see this function's contract.
        unsafe { sys::vhold(vp.as_ptr()) };
        Self(vp)
    }

    /// Locks the vnode shared. `None` when the lock is not free, or the vnode
    /// has been reclaimed. Sleeps: no.
    pub fn try_lock(&self) -> Option<LockedVnode<'_>> {
        // SAFETY: a held vnode. LK_NOWAIT does not sleep. Without LK_RETRY a
        // doomed vnode is not locked.
        let error = unsafe { sys::shim_vn_lock_shared_nowait(self.0.as_ptr()) };
        // SAFETY: locked, so the vnode stays while the guard lives.
        (error == 0).then(|| LockedVnode(unsafe { Vnode::new(self.0) }))
    }
}

impl Drop for HeldVnode {
    fn drop(&mut self) {
        // SAFETY: `new` held the vnode; this thread may sleep.
        unsafe { sys::vdrop(self.0.as_ptr()) };
    }
}

/// A vnode that this thread has locked shared. Dropping it unlocks.
pub struct LockedVnode<'a>(Vnode<'a>);

impl<'a> LockedVnode<'a> {
    /// The vnode, while the lock is held.
    pub fn vnode(&self) -> Vnode<'_> {
        self.0
    }
}

impl Drop for LockedVnode<'_> {
    fn drop(&mut self) {
        // SAFETY: this thread locked it in `try_lock`.
        unsafe { sys::shim_VOP_UNLOCK(self.0.as_ptr()) };
    }
}

impl<'a> Device<'a> {
    /// The sector size, the unit of the device's transfers. Bytes.
    pub fn sector(&self) -> u32 {
        // SAFETY: a mounted filesystem keeps its device's bufobj.
        unsafe { (*self.0.as_ptr()).bo_bsize }.max(0) as u32
    }

    /// # Safety
    ///
    /// The bufobj lives for `'a`: a buf of a mounted filesystem names it.
    pub(super) unsafe fn new(bo: NonNull<sys::bufobj>) -> Self {
        Self(bo, PhantomData)
    }

    /// Whether a read of a sector that was never written may fail. True also
    /// when GEOM's topology lock is not free to find out. Sleeps: no.
    pub fn verifies(&self) -> bool {
        // SAFETY: a mounted filesystem keeps its device's bufobj and consumer.
        unsafe { sys::shim_device_verifies(self.0.as_ptr()) }
    }

    /// A number that identifies the device. Never dereferenced.
    pub fn id(&self) -> usize {
        self.0.as_ptr() as usize
    }

    pub(super) fn as_ptr(&self) -> *mut sys::bufobj {
        self.0.as_ptr()
    }
}

/// Whether struct vnode matches the headers: the root vnode is a directory with
/// a mount.
pub(super) fn layout_is_known() -> bool {
    // SAFETY: a module is loaded from a root filesystem, whose vnode stays.
    unsafe {
        let root = sys::rootvnode;
        root.is_null() || ((*root).v_type == sys::VDIR && !(*root).v_mount.is_null())
    }
}

/// The first field of a mounted FFS that does not match the headers. `None`
/// also when no FFS is mounted: the shims check the structures again at each
/// use. Sleeps: yes.
pub(super) fn ffs_mismatch() -> Option<&'static str> {
    // SAFETY: module events may sleep. The answer is NULL or a static C string.
    let field = unsafe {
        let field = sys::shim_ffs_mismatch();
        (!field.is_null()).then(|| CStr::from_ptr(field))
    };
    field.map(|field| field.to_str().unwrap_or("a field"))
}
