// SPDX-License-Identifier: BSD-2-Clause
//! sysctl(9): the module's tree, made at load and taken down at unload.

use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_int, c_void},
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
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

bitflags::bitflags! {
    /// An oid's type and flags (CTLTYPE_*, CTLFLAG_*).
    #[derive(Clone, Copy, Debug)]
    pub struct OidKind: u32 {
        /// A node that has children.
        const NODE = sys::CTLTYPE_NODE as u32 | sys::CTLFLAG_RW as u32;
        /// A 64-bit number to read.
        const COUNTER = sys::CTLTYPE_U64 as u32 | sys::CTLFLAG_RD as u32 | sys::CTLFLAG_MPSAFE as u32;
        /// A 32-bit number to read and write, and a loader tunable.
        const NUMBER = sys::CTLTYPE_UINT as u32 | sys::CTLFLAG_RWTUN as u32 | sys::CTLFLAG_MPSAFE as u32;
        /// A 32-bit number that only the loader sets.
        const BOOT_NUMBER = sys::CTLTYPE_UINT as u32 | sys::CTLFLAG_RDTUN as u32 | sys::CTLFLAG_MPSAFE as u32;
        /// A bool to read and write, and a loader tunable.
        const SWITCH = sys::CTLTYPE_U8 as u32 | sys::CTLFLAG_RWTUN as u32 | sys::CTLFLAG_MPSAFE as u32;
    }
}

/// A number that has bounds.
pub struct Limit {
    value: AtomicU32,
    min: u32,
    max: u32,
}

impl Limit {
    /// A number between `min` and `max`, both included.
    pub const fn new(value: u32, min: u32, max: u32) -> Self {
        Self { value: AtomicU32::new(value), min, max }
    }

    /// The number.
    pub fn get(&self) -> u32 {
        self.value.load(Ordering::Relaxed)
    }
}

/// Handler of a [`Limit`]: EINVAL for a number out of bounds.
unsafe extern "C" fn limit(
    oid: *mut sys::sysctl_oid,
    arg: *mut c_void,
    _: sys::intmax_t,
    req: *mut sys::sysctl_req,
) -> c_int {
    // SAFETY: `Context::limit` registered a static Limit.
    let limit = unsafe { &*arg.cast_const().cast::<Limit>() };
    let mut new = limit.get();
    // SAFETY: called by sysctl(9); `new` is a place for one unsigned int.
    let error = unsafe { sys::sysctl_handle_int(oid, (&raw mut new).cast(), 0, req) };
    // SAFETY: as above.
    if error != 0 || unsafe { (*req).newptr.is_null() } {
        return error;
    }
    if new < limit.min || new > limit.max {
        return sys::EINVAL;
    }
    limit.value.store(new, Ordering::Relaxed);
    0
}

/// A switch that is more than a value.
pub trait Switch: 'static {
    /// Whether it is on.
    fn get() -> bool;
    /// Turn it on or off. May sleep.
    fn set(on: bool) -> Result<(), Errno>;
}

/// Handler of a [`Switch`].
unsafe extern "C" fn switch<S: Switch>(
    oid: *mut sys::sysctl_oid,
    _: *mut c_void,
    _: sys::intmax_t,
    req: *mut sys::sysctl_req,
) -> c_int {
    let mut new = S::get();
    // SAFETY: called by sysctl(9); `new` is a place for one bool.
    let error = unsafe { sys::sysctl_handle_bool(oid, (&raw mut new).cast(), 0, req) };
    // SAFETY: as above.
    if error != 0 || unsafe { (*req).newptr.is_null() } {
        return error;
    }
    S::set(new).map_or_else(Errno::code, |()| 0)
}

/// C's type of a sysctl handler.
type HandlerFn = unsafe extern "C" fn(
    *mut sys::sysctl_oid,
    *mut c_void,
    sys::intmax_t,
    *mut sys::sysctl_req,
) -> c_int;

impl Default for Context {
    fn default() -> Self {
        Self::new()
    }
}

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
    pub fn node(
        &'static self,
        parent: Node,
        name: &'static CStr,
        descr: &'static CStr,
    ) -> Result<Node, Errno> {
        let oid = self.add(parent, name, descr, OidKind::NODE, ptr::null_mut(), None, c"N")?;
        // SAFETY: just registered; lives until the context is freed.
        Ok(Node(unsafe { &raw mut (*oid).oid_children }))
    }

    /// Add a counter(9), read-only.
    pub fn counter(
        &'static self,
        parent: Node,
        name: &'static CStr,
        descr: &'static CStr,
        counter: &'static Counter,
    ) -> Result<(), Errno> {
        self.add(
            parent,
            name,
            descr,
            OidKind::COUNTER,
            counter.location(),
            Some(sys::sysctl_handle_counter_u64),
            c"QU",
        )
        .map(drop)
    }

    /// Add a switch that is a loader tunable too.
    pub fn switch(
        &'static self,
        parent: Node,
        name: &'static CStr,
        descr: &'static CStr,
        value: &'static AtomicBool,
    ) -> Result<(), Errno> {
        let handler = Some(sys::sysctl_handle_bool as HandlerFn);
        self.add(parent, name, descr, OidKind::SWITCH, value.as_ptr().cast(), handler, c"CU")
            .map(drop)
    }

    /// Add a switch that is more than a value, and a loader tunable.
    pub fn handled_switch<S: Switch>(
        &'static self,
        parent: Node,
        name: &'static CStr,
        descr: &'static CStr,
    ) -> Result<(), Errno> {
        let handler = Some(switch::<S> as HandlerFn);
        self.add(parent, name, descr, OidKind::SWITCH, ptr::null_mut(), handler, c"CU").map(drop)
    }

    /// Add a number that is a loader tunable too; `boot` says that it is
    /// nothing else.
    pub fn limit(
        &'static self,
        parent: Node,
        name: &'static CStr,
        descr: &'static CStr,
        value: &'static Limit,
        boot: bool,
    ) -> Result<(), Errno> {
        let kind = if boot { OidKind::BOOT_NUMBER } else { OidKind::NUMBER };
        let arg = ptr::from_ref(value).cast_mut().cast();
        self.add(parent, name, descr, kind, arg, Some(limit), c"IU").map(drop)
    }

    #[allow(clippy::too_many_arguments)] // sysctl_add_oid()'s own
    fn add(
        &'static self,
        parent: Node,
        name: &'static CStr,
        descr: &'static CStr,
        kind: OidKind,
        arg: *mut c_void,
        handler: Option<HandlerFn>,
        format: &'static CStr,
    ) -> Result<*mut sys::sysctl_oid, Errno> {
        // SAFETY: every pointer is static or the kernel's; may sleep, as
        // module events may.
        let oid = unsafe {
            sys::sysctl_add_oid(
                self.list(),
                parent.0,
                sys::OID_AUTO,
                name.as_ptr(),
                kind.bits() as c_int,
                arg,
                0,
                handler,
                format.as_ptr(),
                descr.as_ptr(),
                ptr::null(),
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
