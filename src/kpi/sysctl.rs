// SPDX-License-Identifier: BSD-2-Clause
//! sysctl(9): the module's tree. MOD_LOAD creates it and MOD_UNLOAD removes it.

use core::{
    cell::UnsafeCell,
    ffi::{CStr, c_int, c_void},
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use super::{counter::Counter, errno::Errno, sys};

/// The nodes that the module has registered (sysctl_ctx_init(9)).
///
/// # Invariants
///
/// Only module events access it, and the kernel serializes them.
pub struct Context(UnsafeCell<MaybeUninit<sys::sysctl_ctx_list>>);

// SAFETY: see the invariant.
unsafe impl Sync for Context {}

/// A node to which children can be added.
#[derive(Clone, Copy)]
pub struct Node(*mut sys::sysctl_oid_list);

bitflags::bitflags! {
    /// An oid's type and flags (CTLTYPE_*, CTLFLAG_*).
    #[derive(Clone, Copy, Debug)]
    pub struct OidKind: u32 {
        /// A node with children.
        const NODE = sys::CTLTYPE_NODE as u32 | sys::CTLFLAG_RW as u32;
        /// A read-only 64-bit number.
        const COUNTER = sys::CTLTYPE_U64 as u32 | sys::CTLFLAG_RD as u32 | sys::CTLFLAG_MPSAFE as u32;
        /// A writable 32-bit number that is also a loader tunable.
        const NUMBER = sys::CTLTYPE_UINT as u32 | sys::CTLFLAG_RWTUN as u32 | sys::CTLFLAG_MPSAFE as u32;
        /// A 32-bit number that only the loader sets; read-only afterwards.
        const BOOT_NUMBER = sys::CTLTYPE_UINT as u32 | sys::CTLFLAG_RDTUN as u32 | sys::CTLFLAG_MPSAFE as u32;
        /// A writable bool that is also a loader tunable.
        const SWITCH = sys::CTLTYPE_U8 as u32 | sys::CTLFLAG_RWTUN as u32 | sys::CTLFLAG_MPSAFE as u32;
    }
}

/// A number with bounds.
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

/// Handler of a [`Limit`]. Errors: EINVAL when the new value is out of bounds.
unsafe extern "C" fn limit(
    oid: *mut sys::sysctl_oid,
    arg: *mut c_void,
    _: sys::intmax_t,
    req: *mut sys::sysctl_req,
) -> c_int {
    // SAFETY: `Context::limit` registered a static Limit as the argument.
    let limit = unsafe { &*arg.cast_const().cast::<Limit>() };
    let mut new = limit.get();
    // SAFETY: sysctl(9) calls this; `new` has room for one unsigned int.
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

/// A switch with code behind it.
pub trait Switch: 'static {
    /// The switch's value.
    fn get() -> bool;
    /// Changes the switch. Sleeps: yes.
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
    // SAFETY: sysctl(9) calls this; `new` has room for one bool.
    let error = unsafe { sys::sysctl_handle_bool(oid, (&raw mut new).cast(), 0, req) };
    // SAFETY: as above.
    if error != 0 || unsafe { (*req).newptr.is_null() } {
        return error;
    }
    S::set(new).map_or_else(Errno::code, |()| 0)
}

/// The C type of a sysctl handler.
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

    /// Creates the tree's root node below `vfs`. Sleeps: yes. Errors: ENOMEM.
    pub fn begin(&'static self, name: &'static CStr, descr: &'static CStr) -> Result<Node, Errno> {
        // SAFETY: the kernel serializes module events. The list is initialized
        // before the first node, and the node `vfs` is the kernel's.
        unsafe {
            if sys::sysctl_ctx_init(self.list()) != 0 {
                return Err(Errno::ENOMEM);
            }
            self.node(Node(&raw mut sys::sysctl___vfs.oid_children), name, descr)
        }
    }

    /// Adds a node. Sleeps: yes. Errors: ENOMEM.
    pub fn node(
        &'static self,
        parent: Node,
        name: &'static CStr,
        descr: &'static CStr,
    ) -> Result<Node, Errno> {
        let oid = self.add(parent, name, descr, OidKind::NODE, ptr::null_mut(), None, c"N")?;
        // SAFETY: the oid was just registered and lives until the context is
        // freed.
        Ok(Node(unsafe { &raw mut (*oid).oid_children }))
    }

    /// Adds a read-only counter(9). Sleeps: yes. Errors: ENOMEM.
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

    /// Adds a switch that is also a loader tunable. Sleeps: yes. Errors:
    /// ENOMEM.
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

    /// Adds a [`Switch`] that is also a loader tunable. Sleeps: yes. Errors:
    /// ENOMEM.
    pub fn handled_switch<S: Switch>(
        &'static self,
        parent: Node,
        name: &'static CStr,
        descr: &'static CStr,
    ) -> Result<(), Errno> {
        let handler = Some(switch::<S> as HandlerFn);
        self.add(parent, name, descr, OidKind::SWITCH, ptr::null_mut(), handler, c"CU").map(drop)
    }

    /// Adds a number that is also a loader tunable. `boot`: only the loader
    /// sets it. Sleeps: yes. Errors: ENOMEM.
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
        // SAFETY: every pointer is static or the kernel's. sysctl_add_oid() may
        // sleep, as may module events.
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

    /// Removes the tree, and waits for handlers in progress. Sleeps: yes.
    pub fn end(&'static self) {
        // SAFETY: `begin` initialized the list; this frees it once.
        unsafe { sys::sysctl_ctx_free(self.list()) };
    }
}
