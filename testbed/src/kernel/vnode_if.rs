// SPDX-License-Identifier: BSD-2-Clause
//! Calls of a VOP through the vnode's own vop_vector (vnode_if.h).

use std::ffi::c_int;

use asyncpager::kpi::sys;

use crate::{checks::rules::rule, kernel::vnode};

/// `VOP_BMAP_APV`: the vnode's own VOP.
pub extern "C" fn vop_bmap_apv(_: *mut sys::vop_vector, ap: *mut sys::vop_bmap_args) -> c_int {
    let call = "VOP_BMAP";
    // SAFETY: the caller's argument block.
    unsafe {
        let vnode = (*ap).a_vp;
        vnode::with_vnode(call, vnode, |_| ());
        rule(call, vnode::vnode_locked(vnode).is_some(), "the vnode is not locked");
        (*(*vnode).v_op).vop_bmap.map_or(sys::EOPNOTSUPP, |vop| vop(ap))
    }
}
