// SPDX-License-Identifier: BSD-2-Clause
//! Vnodes and what the pager asks of their mounts (vnode(9), VOP_BMAP(9)).

use core::{
    ffi::{CStr, c_int},
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
pub struct Extent {
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

    /// Where the file's filesystem is mounted, for messages.
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
        // SAFETY: live by the invariant.
        unsafe { (*self.0.as_ptr()).v_mount }
    }

    /// What tells the filesystem's mounting from others, earlier ones on the
    /// same device included; not to be looked behind.
    pub fn mounting(&self) -> usize {
        let mount = self.mount();
        if mount.is_null() {
            return 0;
        }
        // SAFETY: a vnode that is not doomed keeps its mount. The number of
        // times that this structure was used is set before that.
        (mount as usize).wrapping_add(unsafe { (*mount).mnt_gen } as usize)
    }

    /// The device below, without a look at the block map. Never sleeps.
    pub fn device(&self) -> Result<Device<'a>, Errno> {
        let mut bo = ptr::null_mut();
        // Without a_bnp, VOP_BMAP(9) answers from the mount alone.
        self.vop_bmap(0, Some(&mut bo), None, None)?;
        NonNull::new(bo).map(|bo| Device(bo, PhantomData)).ok_or(Errno::EOPNOTSUPP)
    }

    /// VOP_BMAP(9) for the logical block `lbn`. May read an indirect block.
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

    /// Where an indirect block, by its negative number, is on the device, in
    /// units of DEV_BSIZE; `None` when there is none. The blocks above it are
    /// in memory, so that this does not read.
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
        // SAFETY: a live vnode, locked by the VOP's caller or by this thread;
        // each result has a place or is not wanted.
        Errno::check(unsafe { sys::shim_VOP_BMAP(self.0.as_ptr(), lbn, bo, blkno, after, before) })
    }

    /// Whether a block, an indirect one if `lbn` is negative, can be had
    /// without a disk. A hint: nothing keeps it there. Does not sleep.
    pub fn in_memory(&self, lbn: i64) -> bool {
        // SAFETY: a live vnode, locked by the VOP's caller.
        unsafe { sys::shim_block_in_memory(self.0.as_ptr(), lbn) }
    }

    /// Have a block of the file, an indirect one if `lbn` is negative, read
    /// from `blkno`, in units of DEV_BSIZE, into the buffer cache. False if it
    /// is there already. May sleep for a buffer, not for the disk unless
    /// somebody else is reading the block.
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

/// Names a file's object without keeping it.
///
/// # Invariants
///
/// `object` was a vm_object once. Their memory is never given back
/// (UMA_ZONE_NOFREE) and their locks stay initialized, so it can be locked at
/// any time; while it is, and names `vnode` as its handle, the vnode lives:
/// vnode_destroy_vobject() needs the write lock to part them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    object: NonNull<sys::vm_object>,
    vnode: NonNull<sys::vnode>,
}

// SAFETY: addresses, which are looked behind under the object's lock only.
unsafe impl Send for Identity {}

impl Identity {
    /// The name of a locked vnode's object.
    pub fn new(vnode: Vnode<'_>, object: Object<'_>) -> Self {
        Self { object: object.address(), vnode: vnode.address() }
    }

    /// A number that spreads files evenly.
    pub fn hash(&self) -> usize {
        // vm_objects are 256 bytes or more; Fibonacci hashing of the rest.
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

    /// Look at the object's pages. `None` when its lock is not to be had at
    /// once; of a file that is gone nothing is seen. Never sleeps.
    pub fn look<T>(&self, look: impl FnOnce(Option<&Seen<'_>>) -> T) -> Option<T> {
        // SAFETY: an initialized lock by the invariant.
        if !unsafe { sys::shim_VM_OBJECT_TRYRLOCK(self.object.as_ptr()) } {
            return None;
        }
        // SAFETY: locked, so that it stays while the lock is held.
        let object = unsafe { Object::new(self.object) };
        let seen = self.is_alive().then_some(Seen(&object));
        let result = look(seen.as_ref());
        // SAFETY: locked above, by this thread.
        unsafe { sys::shim_VM_OBJECT_RUNLOCK(self.object.as_ptr()) };
        Some(result)
    }

    /// Keep the vnode's memory; `None` when the file is gone. Does not sleep.
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

/// A read-locked object of a live file, to look at only.
pub struct Seen<'a>(&'a Object<'a>);

impl Seen<'_> {
    /// Whether there is a page at `pindex` that somebody has wired: it is on
    /// its way to a socket.
    pub fn is_wired(&self, pindex: u64) -> bool {
        // SAFETY: the object is locked, so that a page found stays.
        unsafe {
            let page = sys::vm_page_lookup(self.0.as_ptr(), pindex);
            !page.is_null() && sys::shim_vm_page_wired(page)
        }
    }
}

/// A vnode whose memory is kept (vhold(9)): it can still be reclaimed, which
/// does not wait for this. Dropping it may sleep.
pub struct HeldVnode(NonNull<sys::vnode>);

impl HeldVnode {
    /// # Safety
    ///
    /// The vnode lives now: its object is locked and names it.
    pub(super) unsafe fn new(vp: NonNull<sys::vnode>) -> Self {
        // SAFETY: by the caller's promise.
        unsafe { sys::vhold(vp.as_ptr()) };
        Self(vp)
    }

    /// Lock the vnode shared, if that is possible at once and it has not been
    /// reclaimed.
    pub fn try_lock(&self) -> Option<LockedVnode<'_>> {
        // SAFETY: a held vnode; LK_NOWAIT. Without LK_RETRY a doomed one is
        // not locked.
        let error = unsafe { sys::shim_vn_lock_shared_nowait(self.0.as_ptr()) };
        // SAFETY: locked, so it stays for the guard's life.
        (error == 0).then(|| LockedVnode(unsafe { Vnode::new(self.0) }))
    }
}

impl Drop for HeldVnode {
    fn drop(&mut self) {
        // SAFETY: held by `new`; called in a thread that may sleep.
        unsafe { sys::vdrop(self.0.as_ptr()) };
    }
}

/// A vnode that this thread has locked shared; dropping it unlocks.
pub struct LockedVnode<'a>(Vnode<'a>);

impl<'a> LockedVnode<'a> {
    /// The vnode, for as long as this is held.
    pub fn vnode(&self) -> Vnode<'_> {
        self.0
    }
}

impl Drop for LockedVnode<'_> {
    fn drop(&mut self) {
        // SAFETY: locked by `try_lock`, by this thread.
        unsafe { sys::shim_VOP_UNLOCK(self.0.as_ptr()) };
    }
}

impl<'a> Device<'a> {
    /// Bytes of a sector, the unit of its transfers.
    pub fn sector(&self) -> u32 {
        // SAFETY: a mounted filesystem keeps its device's bufobj.
        unsafe { (*self.0.as_ptr()).bo_bsize }.max(0) as u32
    }

    /// # Safety
    ///
    /// The bufobj stays for `'a`: a buf of a mounted filesystem names it.
    pub(super) unsafe fn new(bo: NonNull<sys::bufobj>) -> Self {
        Self(bo, PhantomData)
    }

    /// Whether a read of a sector that was never written may be an error, or that
    /// cannot be told now. Locks: none of GEOM's. Sleeps: no.
    pub fn verifies(&self) -> bool {
        // SAFETY: a mounted filesystem keeps its device's bufobj and consumer.
        unsafe { sys::shim_device_verifies(self.0.as_ptr()) }
    }

    /// What tells this device from others; not to be looked behind.
    pub fn id(&self) -> usize {
        self.0.as_ptr() as usize
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

/// The field of FFS's structures that does not read as the headers have it, in a
/// filesystem that is mounted. `None` also when none is mounted: the shims check
/// the structures again at each use. May sleep.
pub(super) fn ffs_mismatch() -> Option<&'static str> {
    // SAFETY: module events may sleep; the answer is NULL or a C string that stays.
    let field = unsafe {
        let field = sys::shim_ffs_mismatch();
        (!field.is_null()).then(|| CStr::from_ptr(field))
    };
    field.map(|field| field.to_str().unwrap_or("a field"))
}
