// SPDX-License-Identifier: BSD-2-Clause
//! sysctl(9): the tree that the module registers, and loader tunables.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{CStr, c_char, c_int, c_void},
    sync::Mutex,
};

use asyncpager::kpi::sys;

use crate::{
    checks::{rules::rule, sleep::may_sleep},
    host::low_memory,
    kernel::{
        buf, counter,
        differences::{self, Difference},
    },
};

struct Oid {
    path: String,
    oid: usize,
    kind: u32,
}

static OIDS: Mutex<Vec<Oid>> = Mutex::new(Vec::new());
static TUNABLES: Mutex<Option<HashMap<String, String>>> = Mutex::new(None);

/// The node `vfs`.
pub fn vfs() -> *mut sys::sysctl_oid {
    static PLACE: std::sync::LazyLock<usize> =
        std::sync::LazyLock::new(|| low_memory::zeroed::<sys::sysctl_oid>() as usize);
    *PLACE as *mut sys::sysctl_oid
}

/// Set what loader.conf would.
pub fn tunables(all: impl IntoIterator<Item = (String, String)>) {
    *TUNABLES.lock().unwrap() = Some(all.into_iter().collect());
}

/// Nodes registered now.
pub fn registered() -> usize {
    OIDS.lock().unwrap().len()
}

/// Every counter's name and value.
pub fn counters() -> BTreeMap<String, u64> {
    let oids = OIDS.lock().unwrap();
    oids.iter()
        .filter(|oid| oid.kind & sys::CTLTYPE as u32 == sys::CTLTYPE_U64 as u32)
        .map(|oid| {
            // SAFETY: a live oid, whose arg1 points at the counter's handle.
            let handle =
                unsafe { *(*(oid.oid as *mut sys::sysctl_oid)).oid_arg1.cast::<*mut u64>() };
            (oid.path.clone(), counter::counter_u64_fetch(handle))
        })
        .collect()
}

/// Write a switch, as sysctl(8) does. The handler's errno, or ENOENT.
pub fn write(path: &str, value: bool) -> c_int {
    number(path, u32::from(value))
}

/// A counter of `vfs.asyncpager.stats`.
pub fn counter(name: &str) -> u64 {
    counters().get(&format!("vfs.asyncpager.stats.{name}")).copied().unwrap_or(u64::MAX)
}

/// A counter of `vfs.asyncpager.readahead.stats`.
pub fn ahead(name: &str) -> u64 {
    counters().get(&format!("vfs.asyncpager.readahead.stats.{name}")).copied().unwrap_or(u64::MAX)
}

/// Write a number, as sysctl(8) does. The handler's errno, or ENOENT.
pub fn number(path: &str, value: u32) -> c_int {
    let oids = OIDS.lock().unwrap();
    let oid = oids.iter().find(|oid| oid.path == path).map(|oid| (oid.oid, oid.kind));
    drop(oids);
    oid.map_or(libc::ENOENT, |(oid, kind)| set(oid as *mut sys::sysctl_oid, kind, value))
}

fn set(oid: *mut sys::sysctl_oid, kind: u32, value: u32) -> c_int {
    let width = if kind & sys::CTLTYPE as u32 == sys::CTLTYPE_U8 as u32 { 1 } else { 4 };
    let value = value.to_le_bytes();
    // SAFETY: a request of our own; the oid is live, and its handler is the
    // module's or ours.
    unsafe {
        let mut request: sys::sysctl_req = std::mem::zeroed();
        request.newptr = (&raw const value).cast();
        request.newlen = width;
        (*oid).oid_handler.map_or(libc::EINVAL, |handler| {
            handler(oid, (*oid).oid_arg1, (*oid).oid_arg2, &mut request)
        })
    }
}

static CONTEXTS: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// `sysctl_ctx_init`.
pub extern "C" fn sysctl_ctx_init(context: *mut c_void) -> c_int {
    CONTEXTS.lock().unwrap().push(context as usize);
    0
}

/// `sysctl_ctx_free`: the module has one context only.
pub extern "C" fn sysctl_ctx_free(context: *mut c_void) -> c_int {
    let call = "sysctl_ctx_free";
    may_sleep(call);
    let mut contexts = CONTEXTS.lock().unwrap();
    let at = contexts.iter().position(|c| *c == context as usize);
    rule(call, at.is_some(), "not an initialized context");
    at.map(|at| contexts.remove(at));
    OIDS.lock().unwrap().clear();
    0
}

/// `sysctl_add_oid`.
#[allow(clippy::too_many_arguments)] // the kernel's own
pub extern "C" fn sysctl_add_oid(
    ctx: *mut c_void,
    parent: *mut sys::sysctl_oid_list,
    _nbr: c_int,
    name: *const c_char,
    kind: c_int,
    arg1: *mut c_void,
    arg2: sys::intmax_t,
    handler: sys_handler,
    _fmt: *const c_char,
    _descr: *const c_char,
    _label: *const c_char,
) -> *mut sys::sysctl_oid {
    may_sleep("sysctl_add_oid");
    rule(
        "sysctl_add_oid",
        CONTEXTS.lock().unwrap().contains(&(ctx as usize)),
        "not an initialized context",
    );
    let oid: *mut sys::sysctl_oid = low_memory::zeroed();
    // SAFETY: a fresh oid; the name is a C string; the children list is an
    // oid's first field, so that a parent list is its oid's address.
    let name = unsafe {
        (*oid).oid_arg1 = arg1;
        (*oid).oid_arg2 = arg2;
        (*oid).oid_handler = handler;
        CStr::from_ptr(name).to_string_lossy().into_owned()
    };
    let prefix = OIDS
        .lock()
        .unwrap()
        .iter()
        .find(|oid| oid.oid == parent as usize)
        .map_or_else(|| "vfs".to_string(), |oid| oid.path.clone());
    let path = format!("{prefix}.{name}");
    OIDS.lock().unwrap().push(Oid { path: path.clone(), oid: oid as usize, kind: kind as u32 });
    let tunable = TUNABLES.lock().unwrap().as_ref().and_then(|all| all.get(&path).cloned());
    if let Some(value) = tunable.filter(|_| kind as u32 & sys::CTLFLAG_TUN as u32 != 0) {
        match value.parse::<u32>() {
            Ok(value) => {
                let errno = set(oid, kind as u32, value);
                if errno != 0 {
                    eprintln!("kernel: Setting sysctl {path} failed: {errno}");
                }
            }
            // As the kernel does: the tunable does not parse and is passed over.
            Err(_) => eprintln!("kernel: invalid value for tunable {path}: {value}"),
        }
    }
    oid
}

#[allow(non_camel_case_types)]
type sys_handler = Option<
    unsafe extern "C" fn(
        *mut sys::sysctl_oid,
        *mut c_void,
        sys::intmax_t,
        *mut sys::sysctl_req,
    ) -> c_int,
>;

/// `sysctl_handle_bool`.
pub unsafe extern "C" fn sysctl_handle_bool(
    _: *mut sys::sysctl_oid,
    arg1: *mut c_void,
    _: sys::intmax_t,
    req: *mut sys::sysctl_req,
) -> c_int {
    // SAFETY: a handler's arguments: a place for one bool, and the request.
    unsafe {
        if let Some(new) = (*req).newptr.cast::<u8>().as_ref() {
            arg1.cast::<u8>().write(u8::from(*new != 0));
        }
    }
    0
}

/// `sysctl_handle_int`.
pub unsafe extern "C" fn sysctl_handle_int(
    _: *mut sys::sysctl_oid,
    arg1: *mut c_void,
    _: sys::intmax_t,
    req: *mut sys::sysctl_req,
) -> c_int {
    // SAFETY: a handler's arguments: a place for one int, and the request.
    unsafe {
        if !(*req).newptr.is_null() {
            arg1.cast::<u32>().write((*req).newptr.cast::<u32>().read_unaligned());
        }
    }
    0
}

/// `sysctl_handle_counter_u64`: the testbed reads counters by itself.
pub unsafe extern "C" fn sysctl_handle_counter_u64(
    _: *mut sys::sysctl_oid,
    _: *mut c_void,
    _: sys::intmax_t,
    _: *mut sys::sysctl_req,
) -> c_int {
    libc::EPERM
}

/// `kernel_sysctlbyname`: the sizes that uma(9) tells.
#[allow(clippy::too_many_arguments)] // the kernel's own
pub unsafe extern "C" fn kernel_sysctlbyname(
    _: *mut c_void,
    name: *const c_char,
    old: *mut c_void,
    _oldlen: *mut usize,
    _: *mut c_void,
    _: usize,
    _: *mut usize,
    _: c_int,
) -> c_int {
    let zones = [
        ("pbuf", buf::PBUF_SIZE, Difference::Buf, Difference::NoBufZone),
        ("VNODE", size_of::<sys::vnode>(), Difference::Vnode, Difference::NoVnodeZone),
        (
            "VM_OBJECT",
            size_of::<sys::vm_object>(),
            Difference::VmObject,
            Difference::NoVmObjectZone,
        ),
        ("Mountpoints", size_of::<sys::mount>(), Difference::Mount, Difference::NoMountZone),
    ];
    // SAFETY: a C string.
    let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
    let zone = zones.iter().find(|(zone, ..)| name == format!("vm.uma.{zone}.size"));
    let Some((_, size, larger, _)) = zone.filter(|(.., missing)| !differences::is(*missing)) else {
        return libc::ENOENT;
    };
    let size = size + if differences::is(*larger) { 64 } else { 0 };
    // SAFETY: a place for an int.
    unsafe { old.cast::<u32>().write(size as u32) };
    0
}
