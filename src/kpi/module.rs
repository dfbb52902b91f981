// SPDX-License-Identifier: BSD-2-Clause
//! Module events (module(9)), and the check that the running kernel is the one
//! that the module was built for.

use core::{
    ffi::{CStr, c_int},
    fmt,
    mem::offset_of,
};

use super::{buf, errno::Errno, proc, sys, vm_page, vnode, vnode_if};

/// The handlers of module events.
pub trait Module {
    /// MOD_LOAD: start. An error refuses the load.
    fn load() -> Result<(), Errno>;
    /// MOD_QUIESCE: stop. An error refuses the unload.
    fn quiesce() -> Result<(), Errno>;
    /// MOD_UNLOAD: release all resources. The kernel removes the code
    /// afterwards.
    fn unload() -> Result<(), Errno>;
}

/// The module's event handler, which sys-headers/shim.c registers. It drives
/// the type `Asyncpager` at the crate's root.
#[cfg(target_os = "none")]
#[unsafe(no_mangle)]
unsafe extern "C" fn asyncpager_modevent(
    _: sys::module_t,
    what: c_int,
    _: *mut core::ffi::c_void,
) -> c_int {
    event::<crate::Asyncpager>(what)
}

/// Dispatches a module event to `M`. Returns 0 or an errno, for C.
pub fn event<M: Module>(what: c_int) -> c_int {
    let result = match what as sys::modeventtype {
        sys::MOD_LOAD => M::load(),
        sys::MOD_QUIESCE => M::quiesce(),
        sys::MOD_UNLOAD => M::unload(),
        sys::MOD_SHUTDOWN => Ok(()),
        _ => Err(Errno::EOPNOTSUPP),
    };
    result.map_or_else(Errno::code, |()| 0)
}

/// Refuses a kernel of another release, or one with other structure layouts.
/// Prints what to build instead. Sleeps: yes. Errors: ENOEXEC.
pub fn check_kernel() -> Result<(), Errno> {
    // SAFETY: plain ints, set at build time.
    let (running, built) = unsafe { (sys::osreldate, sys::shim_built_for) };
    if running / 100_000 != built / 100_000 {
        let release = running / 100_000;
        crate::kprintln!(
            "built for FreeBSD {} ({built}), but this kernel is FreeBSD {release} ({running}): \
             build with `make kmod REL={release}`",
            built / 100_000
        );
        return Err(Errno::ENOEXEC);
    }
    check_zones()?;
    for (structure, known) in [
        ("vop_vector", vnode_if::layout_is_known()),
        ("vm_page", vm_page::layout_is_known()),
        ("vnode", vnode::layout_is_known()),
    ] {
        if !known {
            return refuse(
                format_args!("struct {structure} of this kernel"),
                format_args!("its fields"),
            );
        }
    }
    if let Some(field) = vnode::ffs_mismatch() {
        return refuse(format_args!("{field} of a mounted FFS"), format_args!("its value"));
    }
    proc::check_td_sa().or_else(|number| {
        refuse(
            format_args!("thread.td_sa of this kernel"),
            format_args!("system call {number}, not kldload(2)'s {}", sys::SYS_kldload),
        )
    })
}

/// Compares the sizes of structures with the item sizes of their uma(9) zones.
fn check_zones() -> Result<(), Errno> {
    let pages = buf::max_pages() as usize + 1;
    let zones: [(&CStr, &str, usize); 4] = [
        (c"vm.uma.pbuf.size", "buf", offset_of!(sys::buf, b_pages) + pages * size_of::<usize>()),
        (c"vm.uma.VNODE.size", "vnode", size_of::<sys::vnode>()),
        (c"vm.uma.VM_OBJECT.size", "vm_object", size_of::<sys::vm_object>()),
        (c"vm.uma.Mountpoints.size", "mount", size_of::<sys::mount>()),
    ];
    for (name, structure, expected) in zones {
        // SAFETY: a NUL-terminated name; module events may sleep.
        let found = unsafe { sys::shim_zone_item_size(name.as_ptr()) };
        if found == 0 {
            let name = name.to_str().unwrap_or("");
            crate::kprintln!(
                "struct {structure} cannot be checked, since this kernel has no sysctl {name}: \
                 load the module into a kernel of a release that it was built for"
            );
            return Err(Errno::ENOEXEC);
        }
        // uma(9) rounds an item's size up to its alignment.
        if found.next_multiple_of(8) != expected.next_multiple_of(8) {
            return refuse(
                format_args!("struct {structure} of this kernel"),
                format_args!("{found} bytes, not {expected}"),
            );
        }
    }
    Ok(())
}

/// Prints that the layout of `what` differs from the headers; `how`: the
/// evidence. Errors: ENOEXEC, always.
fn refuse(what: fmt::Arguments<'_>, how: fmt::Arguments<'_>) -> Result<(), Errno> {
    crate::kprintln!(
        "{what} differs from the headers the module was built with ({how}): build it against \
         the kernel's own sources, `make kmod SYSDIR=/usr/src/sys`"
    );
    Err(Errno::ENOEXEC)
}
