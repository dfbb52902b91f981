// SPDX-License-Identifier: BSD-2-Clause
//! `ffs_vnodeops1` and `ffs_vnodeops2`: the original VOPs, which the module replaces.

use std::{
    ffi::{c_int, c_void},
    sync::{
        LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use asyncpager::kpi::sys;

use crate::{
    checks::sleep::may_sleep,
    ffs::{
        file::{Bmap, File},
        stock,
    },
    host::low_memory,
    kernel::{resident::Page, vm_pager::Iodone},
};

/// Calls of the original VOPs: sync, async.
pub static ORIGINAL: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// `ffs_vnodeops1` and `ffs_vnodeops2`.
pub fn vectors() -> [*mut sys::vop_vector; 2] {
    static PLACES: LazyLock<[usize; 2]> = LazyLock::new(|| {
        [0, 1].map(|_| {
            let vector: *mut sys::vop_vector = low_memory::zeroed();
            // SAFETY: fresh memory.
            unsafe {
                (*vector).vop_getpages = Some(original_getpages);
                (*vector).vop_getpages_async = Some(original_getpages_async);
                (*vector).vop_bmap = Some(original_bmap);
            }
            vector as usize
        })
    });
    PLACES.map(|place| place as *mut sys::vop_vector)
}

/// Whether both vectors have their original entries.
pub fn restored() -> bool {
    vectors().iter().all(|vector| {
        // SAFETY: live for ever.
        unsafe {
            (**vector).vop_getpages.map(|f| f as usize)
                == Some(original_getpages as *const () as usize)
                && (**vector).vop_getpages_async.map(|f| f as usize)
                    == Some(original_getpages_async as *const () as usize)
                && (**vector).vop_bmap.map(|f| f as usize)
                    == Some(original_bmap as *const () as usize)
        }
    })
}

/// Whether no entry of both vectors but that of getpages is the original.
pub fn taken() -> bool {
    vectors().iter().all(|vector| {
        // SAFETY: live for ever.
        unsafe {
            (**vector).vop_getpages_async.map(|f| f as usize)
                != Some(original_getpages_async as *const () as usize)
                && (**vector).vop_bmap.map(|f| f as usize)
                    != Some(original_bmap as *const () as usize)
        }
    })
}

/// ufs_bmap().
unsafe extern "C" fn original_bmap(ap: *mut sys::vop_bmap_args) -> c_int {
    // SAFETY: the caller's argument block; its pointers are valid or NULL.
    unsafe {
        let file = File::of("VOP_BMAP", (*ap).a_vp);
        if file.mount.bmap == Bmap::Unsupported {
            return sys::EOPNOTSUPP;
        }
        if let Some(bo) = (*ap).a_bop.as_mut() {
            *bo = file.disk().bufobj;
        }
        let Some(bn) = (*ap).a_bnp.as_mut() else { return 0 };
        may_sleep("VOP_BMAP");
        if file.mount.bmap == Bmap::Fails {
            return sys::EIO;
        }
        let indirect = &file.inode.indirect;
        if (*ap).a_bn < 0 {
            *bn = indirect.place((*ap).a_bn).unwrap_or(-1);
            return 0;
        }
        let lbn = (*ap).a_bn as u64;
        if let Err(errno) = file.maps.bring(file.disk(), indirect, lbn, file.mount.block) {
            return errno;
        }
        let (place, after, before) = file.bmap(lbn);
        *bn = place;
        if let Some(run) = (*ap).a_runp.as_mut() {
            *run = after;
        }
        if let Some(run) = (*ap).a_runb.as_mut() {
            *run = before;
        }
    }
    0
}

/// Calls of the original async VOP are emulated over the sync one.
pub static EMULATED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" fn original_getpages(ap: *mut sys::vop_getpages_args) -> c_int {
    ORIGINAL[0].fetch_add(1, Ordering::Relaxed);
    // SAFETY: the caller's argument block.
    unsafe {
        let ap = &*ap;
        let (behind, ahead) = (ap.a_rbehind, ap.a_rahead);
        original(ap.a_vp, ap.a_m, ap.a_count, behind, ahead, None, stock::getpages)
    }
}

unsafe extern "C" fn original_getpages_async(ap: *mut sys::vop_getpages_async_args) -> c_int {
    ORIGINAL[1].fetch_add(1, Ordering::Relaxed);
    // SAFETY: the caller's argument block.
    unsafe {
        let ap = &*ap;
        let iodone = ap.a_iodone.map(|iodone| (iodone, ap.a_arg));
        let (behind, ahead) = (ap.a_rbehind, ap.a_rahead);
        original(ap.a_vp, ap.a_m, ap.a_count, behind, ahead, iodone, |call| {
            let sector = call.file.disk().sector();
            match call.iodone {
                Some(_) if !EMULATED.load(Ordering::Relaxed) => stock::getpages_async(call, sector),
                _ => stock::emulation(call),
            }
        })
    }
}

/// A call of an original VOP, as its model wants it.
unsafe fn original(
    vnode: *mut sys::vnode,
    array: *mut *mut sys::vm_page,
    count: c_int,
    behind: *mut c_int,
    ahead: *mut c_int,
    iodone: Option<(Iodone, *mut c_void)>,
    serve: impl FnOnce(&mut stock::Call) -> c_int,
) -> c_int {
    let name = "the original VOP";
    may_sleep(name);
    // SAFETY: the caller's array and places.
    unsafe {
        let mut call = stock::Call {
            file: File::of(name, vnode),
            array,
            pages: (0..count as usize).map(|i| Page(*array.add(i))).collect(),
            behind: behind.as_ref().map_or(0, |n| *n as usize),
            ahead: ahead.as_ref().map_or(0, |n| *n as usize),
            iodone,
        };
        let code = serve(&mut call);
        for (place, n) in [(behind, call.behind), (ahead, call.ahead)] {
            if let Some(place) = place.as_mut() {
                *place = n as c_int;
            }
        }
        code
    }
}
