// SPDX-License-Identifier: BSD-2-Clause
//! sysctl(9): the module's tree, made at load and taken down at unload.

use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_int, c_void},
    mem::MaybeUninit,
    ptr,
    sync::atomic::AtomicBool,
};

use super::{counter::Counter, errno::Errno, sys};

/// The nodes that the module has registered.
///
/// # Invariants
///
/// Touched only by module events, which the kernel serializes.
pub struct Context(UnsafeCell<MaybeUninit<sys::sysctl_ctx_list>>);

// SAFETY: see the invariant.
unsafe impl Sync for Context {}

/// A node whose children may be added.
#[derive(Clone, Copy)]
pub struct Node(*mut sys::sysctl_oid_list);

/// C's type of a sysctl handler.
pub type HandlerFn =
    unsafe extern "C" fn(*mut sys::sysctl_oid, *mut c_void, sys::intmax_t, *mut sys::sysctl_req) -> c_int;

impl Context {
    /// An empty tree.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    fn list(&self) -> *mut sys::sysctl_ctx_list {
        self.0.get().cast()
    }

    /// Begin the tree with a node below `vfs`.
    pub fn begin(&'static self, name: &'static CStr, descr: &'static CStr) -> Result<Node, Errno> {
        // SAFETY: module events are serialized; the list is initialized
        // before anything is added, and the node `vfs` is the kernel's.
        unsafe {
            if sys::sysctl_ctx_init(self.list()) != 0 {
                return Err(Errno::ENOMEM);
            }
            self.node(Node(&raw mut sys::sysctl___vfs.oid_children), name, descr)
        }
    }

    /// Add a node.
    pub fn node(&'static self, parent: Node, name: &'static CStr, descr: &'static CStr) -> Result<Node, Errno> {
        let oid = self.add(
            parent, name, descr, sys::CTLTYPE_NODE as u32 | sys::CTLFLAG_RW as u32,
            ptr::null_mut(), None, c"N",
        )?;
        // SAFETY: just registered; lives until the context is freed.
        Ok(Node(unsafe { &raw mut (*oid).oid_children }))
    }

    /// Add a counter(9), read-only.
    pub fn counter(
        &'static self, parent: Node, name: &'static CStr, descr: &'static CStr, counter: &'static Counter,
    ) -> Result<(), Errno> {
        self.add(
            parent, name, descr,
            sys::CTLTYPE_U64 as u32 | sys::CTLFLAG_RD as u32 | sys::CTLFLAG_MPSAFE as u32,
            counter.location(), Some(sys::sysctl_handle_counter_u64), c"QU",
        )
        .map(drop)
    }

    /// Add a switch that is a loader tunable too. `handler` is
    /// sysctl_handle_bool() or wraps it.
    pub fn switch(
        &'static self, parent: Node, name: &'static CStr, descr: &'static CStr,
        value: &'static AtomicBool, handler: Option<HandlerFn>,
    ) -> Result<(), Errno> {
        self.add(
            parent, name, descr,
            sys::CTLTYPE_U8 as u32 | sys::CTLFLAG_RWTUN as u32 | sys::CTLFLAG_MPSAFE as u32,
            value.as_ptr().cast(), handler.or(Some(sys::sysctl_handle_bool)), c"CU",
        )
        .map(drop)
    }

    #[allow(clippy::too_many_arguments)] // sysctl_add_oid()'s own
    fn add(
        &'static self, parent: Node, name: &'static CStr, descr: &'static CStr, kind: u32,
        arg: *mut c_void, handler: Option<HandlerFn>, format: &'static CStr,
    ) -> Result<*mut sys::sysctl_oid, Errno> {
        // SAFETY: every pointer is static or the kernel's; may sleep, as
        // module events may.
        let oid = unsafe {
            sys::sysctl_add_oid(
                self.list(), parent.0, sys::OID_AUTO, name.as_ptr(), kind as c_int, arg, 0,
                handler, format.as_ptr(), descr.as_ptr(), ptr::null(),
            )
        };
        if oid.is_null() { Err(Errno::ENOMEM) } else { Ok(oid) }
    }

    /// Take the tree down, after the handlers in it have returned.
    pub fn end(&'static self) {
        // SAFETY: initialized by `begin`, freed once.
        unsafe { sys::sysctl_ctx_free(self.list()) };
    }
}

/// What sysctl_handle_bool() makes of a request to a switch: the new value,
/// if one was written and is good.
///
/// # Safety
///
/// The arguments are those of a sysctl handler in progress.
pub unsafe fn written_switch(
    oid: *mut sys::sysctl_oid, req: *mut sys::sysctl_req, value: bool,
) -> Result<Option<bool>, Errno> {
    let mut new = value;
    // SAFETY: by the caller's promise; `new` is a place for one bool.
    unsafe {
        Errno::check(sys::sysctl_handle_bool(oid, (&raw mut new).cast(), 0, req))?;
        Ok((!(*req).newptr.is_null()).then_some(new))
    }
}
