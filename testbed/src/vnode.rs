// SPDX-License-Identifier: BSD-2-Clause
//! References on vnodes and their locks (vnode(9), vget(9), vn_lock(9)).

use std::ffi::{c_char, c_int, c_void};

use asyncpager::kpi::sys;

use crate::{
    locks,
    rules::{may_sleep, record, rule},
    vfs,
    witness::Place,
};

/// The counters, changed by one thread at a time: [`vfs::with_vnode`] holds
/// the interlock.
fn change(call: &str, vnode: *mut sys::vnode, hold: c_int, used: c_int) -> (c_int, c_int) {
    vfs::with_vnode(call, vnode, |fields| {
        let (hold, used) = (fields.v_holdcnt as c_int + hold, fields.v_usecount as c_int + used);
        record(call, format_args!("vnode {vnode:?} hold {hold} use {used}"));
        rule(call, hold >= 0 && used >= 0, "more references are dropped than were taken");
        (fields.v_holdcnt, fields.v_usecount) = (hold as u32, used as u32);
        (hold, used)
    })
}

/// `vhold`.
pub extern "C" fn vhold(vnode: *mut sys::vnode) {
    change("vhold", vnode, 1, 0);
}

/// `vholdnz`.
pub extern "C" fn vholdnz(vnode: *mut sys::vnode) {
    let (hold, _) = change("vholdnz", vnode, 1, 0);
    rule("vholdnz", hold > 1, "the vnode was not held");
}

/// `vdrop`.
pub extern "C" fn vdrop(vnode: *mut sys::vnode) {
    let (hold, used) = change("vdrop", vnode, -1, 0);
    rule("vdrop", hold > 0 || used == 0, "the hold belonged to a reference that is still there");
    if hold == 0 {
        vfs::let_go(vnode);
    }
}

/// `vref`.
pub extern "C" fn vref(vnode: *mut sys::vnode) {
    let (_, used) = change("vref", vnode, 0, 1);
    // The first reference holds the vnode.
    if used == 1 {
        change("vref", vnode, 1, 0);
    }
}

/// `vrele`.
pub extern "C" fn vrele(vnode: *mut sys::vnode) {
    let call = "vrele";
    // The last reference locks the vnode to make it inactive.
    may_sleep(call);
    rule(call, locks::vnode_locked(vnode).is_none(), "the vnode is locked by this thread: vput()");
    let (_, used) = change(call, vnode, 0, -1);
    if used == 0 {
        vdrop(vnode);
    }
}

/// `vput`.
pub extern "C" fn vput(vnode: *mut sys::vnode) {
    locks::unlock_vnode("vput", vnode);
    vrele(vnode);
}

/// `_vn_lock`.
pub extern "C" fn vn_lock(
    vnode: *mut sys::vnode,
    flags: c_int,
    file: *const c_char,
    line: c_int,
) -> c_int {
    let call = "vn_lock";
    let mode = flags & (sys::LK_SHARED | sys::LK_EXCLUSIVE);
    rule(
        call,
        mode == sys::LK_SHARED || mode == sys::LK_EXCLUSIVE,
        "neither LK_SHARED nor LK_EXCLUSIVE",
    );
    let held = vfs::with_vnode(call, vnode, |fields| fields.v_holdcnt > 0);
    rule(call, held, "the vnode is not held");
    let exclusive = mode == sys::LK_EXCLUSIVE;
    let wait = flags & sys::LK_NOWAIT == 0;
    if !locks::lock_vnode(vnode, exclusive, wait, Place::new(call, file, line)) {
        return sys::EBUSY;
    }
    if flags & sys::LK_RETRY == 0 && vfs::is_doomed(call, vnode) {
        locks::unlock_vnode(call, vnode);
        return sys::ENOENT;
    }
    0
}

/// `vget`.
pub extern "C" fn vget(vnode: *mut sys::vnode, flags: c_int) -> c_int {
    vref(vnode);
    let error = vn_lock(vnode, flags, std::ptr::null(), 0);
    if error != 0 {
        vrele(vnode);
    }
    error
}

/// The arguments of VOP_UNLOCK(9).
#[repr(C)]
pub struct UnlockArgs {
    desc: *const c_void,
    vnode: *mut sys::vnode,
}

/// `VOP_UNLOCK_APV`.
pub unsafe extern "C" fn vop_unlock_apv(_: *mut sys::vop_vector, ap: *mut UnlockArgs) -> c_int {
    // SAFETY: the caller's argument block.
    locks::unlock_vnode("VOP_UNLOCK", unsafe { (*ap).vnode });
    0
}
