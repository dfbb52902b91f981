// SPDX-License-Identifier: BSD-2-Clause
//! A vnode's VM object and its lock (vm/vm_object.h, VM_OBJECT_WLOCK).

use core::{marker::PhantomData, ptr::NonNull};

use super::sys;

/// The VM object of a vnode.
///
/// # Invariants
///
/// The object outlives `'a`: pages of it are busied, or its
/// paging_in_progress is held, for as long.
#[derive(Clone, Copy)]
pub struct Object<'a>(NonNull<sys::vm_object>, PhantomData<&'a sys::vm_object>);

impl<'a> Object<'a> {
    /// # Safety
    ///
    /// The object stays for `'a`; see the invariant.
    pub(super) unsafe fn new(object: NonNull<sys::vm_object>) -> Self {
        Self(object, PhantomData)
    }

    /// Pages that the object can hold. Stable while the vnode is locked; a
    /// hint otherwise.
    pub fn size(&self) -> u64 {
        // SAFETY: live by the invariant; one aligned word, so never torn.
        unsafe { (&raw const (*self.0.as_ptr()).size).read_volatile() }
    }

    /// The file's size in bytes. Stable while the vnode is locked; a hint otherwise.
    pub fn vnp_size(&self) -> u64 {
        // SAFETY: live by the invariant, and an OBJT_VNODE one, so that the
        // union holds vnp; one aligned word.
        unsafe { sys::shim_vnp_size(self.0.as_ptr()) }
    }

    pub(super) fn address(&self) -> NonNull<sys::vm_object> {
        self.0
    }

    pub(super) fn as_ptr(&self) -> *mut sys::vm_object {
        self.0.as_ptr()
    }

    /// Raise paging_in_progress: the object, and the vnode with it, stay until
    /// the result is dropped, though pages may come and go. Does not sleep.
    pub fn paging(&self) -> Paging {
        // SAFETY: live by the invariant.
        unsafe { sys::vm_object_pip_add(self.0.as_ptr(), 1) };
        Paging(self.0)
    }

    /// Read-lock: the size holds still. Does not sleep.
    pub fn read(&self) -> ReadLocked<'_> {
        // SAFETY: live by the invariant; nothing in this crate takes a second
        // object's lock or locks one twice.
        unsafe { sys::shim_VM_OBJECT_RLOCK(self.0.as_ptr()) };
        ReadLocked { object: self, vnp_size: self.vnp_size() }
    }

    /// Write-lock: pages may be allocated and removed. Does not sleep.
    pub fn write(&self) -> WriteLocked<'_> {
        // SAFETY: as for `read`.
        unsafe { sys::shim_VM_OBJECT_WLOCK(self.0.as_ptr()) };
        WriteLocked(self)
    }
}

/// A count in an object's paging_in_progress; dropping it gives it back, and
/// vnode and mount may go away with it.
pub struct Paging(NonNull<sys::vm_object>);

// SAFETY: the count is the object's and not a thread's.
unsafe impl Send for Paging {}

impl Drop for Paging {
    fn drop(&mut self) {
        // SAFETY: raised by `Object::paging`, so that the object is alive.
        unsafe { sys::vm_object_pip_wakeup(self.0.as_ptr()) };
    }
}

/// A read-locked object; dropping it unlocks.
///
/// # Invariants
///
/// `vnp_size` is the object's: vnode_pager_setsize() needs the write lock.
pub struct ReadLocked<'a> {
    object: &'a Object<'a>,
    vnp_size: u64,
}

impl ReadLocked<'_> {
    /// The file's size in bytes.
    pub fn vnp_size(&self) -> u64 {
        self.vnp_size
    }

    /// Whether there is a page at `pindex` that somebody has busied and wired
    /// and of which nothing is valid: it is about to be asked for.
    pub fn is_wanted(&self, pindex: u64) -> bool {
        // SAFETY: the object is locked, so that a page found stays.
        unsafe {
            let page = sys::vm_page_lookup(self.object.as_ptr(), pindex);
            !page.is_null()
                && sys::shim_vm_page_xbusied(page)
                && sys::shim_vm_page_wired(page)
                && (*page).valid == 0
        }
    }
}

impl Drop for ReadLocked<'_> {
    fn drop(&mut self) {
        // SAFETY: locked by `read`, by this thread.
        unsafe { sys::shim_VM_OBJECT_RUNLOCK(self.object.as_ptr()) };
    }
}

/// A write-locked object; dropping it unlocks.
pub struct WriteLocked<'a>(&'a Object<'a>);

impl WriteLocked<'_> {
    /// A new page at `pindex`, exclusive-busied and invalid; `None` when there
    /// is one already or no memory at hand. Never sleeps.
    pub(super) fn alloc_absent(&self, pindex: u64) -> Option<NonNull<sys::vm_page>> {
        let object = (self.0).0.as_ptr();
        // SAFETY: the object is write-locked; without VM_ALLOC_WAITOK the
        // allocation neither sleeps nor drops the lock, so that the page that
        // was not there a line ago still is not.
        unsafe {
            if !sys::vm_page_lookup(object, pindex).is_null() {
                return None;
            }
            NonNull::new(sys::vm_page_alloc(object, pindex, sys::VM_ALLOC_NORMAL))
        }
    }
}

impl WriteLocked<'_> {
    /// How many pages from `pindex` on exist, up to `limit`.
    pub fn existing(&self, pindex: u64, limit: u32) -> u32 {
        let object = (self.0).0.as_ptr();
        // SAFETY: the object is write-locked.
        let exists = |i: &u32| unsafe {
            !sys::vm_page_lookup(object, pindex.saturating_add(u64::from(*i))).is_null()
        };
        (0..limit).take_while(exists).count() as u32
    }
}

impl Drop for WriteLocked<'_> {
    fn drop(&mut self) {
        // SAFETY: locked by `write`, by this thread.
        unsafe { sys::shim_VM_OBJECT_WUNLOCK((self.0).0.as_ptr()) };
    }
}
