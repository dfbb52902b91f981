// SPDX-License-Identifier: BSD-2-Clause
//! The VM object of a vnode, and its lock (vm/vm_object.h, VM_OBJECT_WLOCK).

use core::{marker::PhantomData, ptr::NonNull};

use super::sys;

/// The VM object of a vnode.
///
/// # Invariants
///
/// The object outlives `'a`: for as long, its pages are busied, its
/// paging_in_progress is raised, or its vnode is locked.
#[derive(Clone, Copy)]
pub struct Object<'a>(NonNull<sys::vm_object>, PhantomData<&'a sys::vm_object>);

impl<'a> Object<'a> {
    /// # Safety
    ///
    /// The object lives for `'a`; see the invariant.
    pub(super) unsafe fn new(object: NonNull<sys::vm_object>) -> Self {
        Self(object, PhantomData)
    }

    /// The object's size in pages. Stable while the vnode is locked; otherwise
    /// a hint.
    pub fn size(&self) -> u64 {
        // SAFETY: live (invariant); reads one aligned word, which cannot tear.
        unsafe { (&raw const (*self.0.as_ptr()).size).read_volatile() }
    }

    /// The file's size in bytes. Stable while the vnode is locked; otherwise a
    /// hint.
    pub fn vnp_size(&self) -> u64 {
        // SAFETY: live (invariant), and of type OBJT_VNODE, so that the union
        // holds vnp. Reads one aligned word.
        unsafe { sys::shim_vnp_size(self.0.as_ptr()) }
    }

    pub(super) fn address(&self) -> NonNull<sys::vm_object> {
        self.0
    }

    pub(super) fn as_ptr(&self) -> *mut sys::vm_object {
        self.0.as_ptr()
    }

    /// Raises paging_in_progress. Until the result is dropped the object and
    /// the vnode stay; pages may come and go. Sleeps: no.
    pub fn paging(&self) -> Paging {
        // SAFETY: live (invariant).
        unsafe { sys::vm_object_pip_add(self.0.as_ptr(), 1) };
        Paging(self.0)
    }

    /// Read-locks the object: the file's size stays as it is. Sleeps: no.
    pub fn read(&self) -> ReadLocked<'_> {
        // SAFETY: live (invariant). This crate never locks a second object, and
        // never locks one twice.
        unsafe { sys::shim_VM_OBJECT_RLOCK(self.0.as_ptr()) };
        ReadLocked { object: self, vnp_size: self.vnp_size() }
    }

    /// Write-locks the object, to allocate and remove pages. Sleeps: no.
    pub fn write(&self) -> WriteLocked<'_> {
        // SAFETY: as for `read`.
        unsafe { sys::shim_VM_OBJECT_WLOCK(self.0.as_ptr()) };
        WriteLocked(self)
    }
}

/// A count in an object's paging_in_progress. Dropping it lowers the count:
/// vnode and mount may go away then.
pub struct Paging(NonNull<sys::vm_object>);

// SAFETY: the count belongs to the object, not to a thread.
unsafe impl Send for Paging {}

impl Drop for Paging {
    fn drop(&mut self) {
        // SAFETY: `Object::paging` raised the count, so the object is alive.
        unsafe { sys::vm_object_pip_wakeup(self.0.as_ptr()) };
    }
}

/// A read-locked object; dropping it unlocks.
///
/// # Invariants
///
/// `vnp_size` is the object's current value: vnode_pager_setsize() needs the
/// write lock to change it.
pub struct ReadLocked<'a> {
    object: &'a Object<'a>,
    vnp_size: u64,
}

impl ReadLocked<'_> {
    /// The file's size in bytes.
    pub fn vnp_size(&self) -> u64 {
        self.vnp_size
    }

    /// Whether a page at `pindex` exists, is exclusive-busied and wired, and
    /// has no valid bits: a thread is about to request it.
    pub fn is_wanted(&self, pindex: u64) -> bool {
        // SAFETY: the object is locked, so the page found stays.
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
        // SAFETY: this thread locked it in `read`.
        unsafe { sys::shim_VM_OBJECT_RUNLOCK(self.object.as_ptr()) };
    }
}

/// A write-locked object; dropping it unlocks.
pub struct WriteLocked<'a>(&'a Object<'a>);

impl WriteLocked<'_> {
    /// Allocates a page at `pindex`, exclusive-busied and invalid. `None` when
    /// one exists already or memory is short. Sleeps: no.
    pub(super) fn alloc_absent(&self, pindex: u64) -> Option<NonNull<sys::vm_page>> {
        let object = (self.0).0.as_ptr();
        // SAFETY: the object is write-locked. Without VM_ALLOC_WAITOK the
        // allocation neither sleeps nor drops the lock, so the page is still
        // absent.
        unsafe {
            if !sys::vm_page_lookup(object, pindex).is_null() {
                return None;
            }
            NonNull::new(sys::vm_page_alloc(object, pindex, sys::VM_ALLOC_NORMAL))
        }
    }
}

impl WriteLocked<'_> {
    /// The number of consecutive existing pages from `pindex` on, up to
    /// `limit`.
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
        // SAFETY: this thread locked it in `write`.
        unsafe { sys::shim_VM_OBJECT_WUNLOCK((self.0).0.as_ptr()) };
    }
}
