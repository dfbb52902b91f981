// SPDX-License-Identifier: BSD-2-Clause
//! Vnodes: which are live, references on them, and their locks (vnode(9),
//! vget(9), vn_lock(9)).

use std::{
    any::Any,
    collections::HashMap,
    ffi::{c_char, c_int, c_void},
    ptr,
    sync::{Arc, LazyLock, Mutex},
};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        quarantine,
        rules::{record, rule, violation},
        sleep::may_sleep,
        witness::{self, Class, Lock, Place},
    },
    kernel::lock,
};

/// What a filesystem keeps for a vnode.
pub type Private = Arc<dyn Any + Send + Sync>;

/// Live vnodes. The table's mutex is the interlock of all.
static VNODES: LazyLock<Mutex<HashMap<usize, Private>>> = LazyLock::new(Mutex::default);

/// A vnode is live from now on, until the last hold is dropped.
pub fn register(vnode: *mut sys::vnode, private: Private) {
    VNODES.lock().unwrap().insert(vnode as usize, private);
}

/// What the filesystem keeps for the vnode.
pub fn private(call: &str, vnode: *mut sys::vnode) -> Private {
    let private = VNODES.lock().unwrap().get(&(vnode as usize)).cloned();
    private.unwrap_or_else(|| violation(call, "not a live vnode"))
}

/// Looks at a vnode's fields with its interlock held.
pub fn with_vnode<T>(
    call: &str,
    vnode: *mut sys::vnode,
    f: impl FnOnce(&mut sys::vnode) -> T,
) -> T {
    try_with_vnode(vnode, f).unwrap_or_else(|| violation(call, "not a live vnode"))
}

/// The same for a vnode that may be gone.
pub fn try_with_vnode<T>(
    vnode: *mut sys::vnode,
    f: impl FnOnce(&mut sys::vnode) -> T,
) -> Option<T> {
    let vnodes = VNODES.lock().unwrap();
    // SAFETY: a live vnode; VNODES is the interlock of all.
    vnodes.contains_key(&(vnode as usize)).then(|| f(unsafe { &mut *vnode }))
}

/// VN_IS_DOOMED().
pub fn is_doomed(call: &str, vnode: *mut sys::vnode) -> bool {
    with_vnode(call, vnode, |fields| i32::from(fields.v_irflag) & sys::VIRF_DOOMED != 0)
}

/// The last hold is dropped: the vnode's memory is freed.
fn free(vnode: *mut sys::vnode) {
    let private = VNODES.lock().unwrap().remove(&(vnode as usize));
    drop(private);
    lock::forget("vdrop", vnode as usize);
    quarantine::free(vnode);
}

// The vnode's lock.

/// A vnode's lock, as WITNESS knows it.
pub fn vnode_lock(vnode: *mut sys::vnode) -> Lock {
    static CLASS: LazyLock<Class> = LazyLock::new(|| witness::class("vnode", "lockmgr"));
    Lock {
        address: vnode as usize,
        class: *CLASS,
        sleepable: true,
        recursable: false,
        dup_ok: false,
    }
}

/// Takes the vnode's lock. Without `wait`, false when it is not free.
pub fn lock_vnode(vnode: *mut sys::vnode, exclusive: bool, wait: bool, place: Place) -> bool {
    let (call, lock) = ("vn_lock", vnode_lock(vnode));
    if wait {
        may_sleep(call);
        lock::take(lock, exclusive, place, call);
        return true;
    }
    let got = lock::try_lock(lock.address, exclusive);
    if got {
        witness::acquired(lock, exclusive, place);
    }
    got
}

/// Whether this thread holds the vnode's lock, and exclusively.
pub fn vnode_locked(vnode: *mut sys::vnode) -> Option<bool> {
    witness::held(vnode as usize)
}

/// Release the vnode's lock, whichever way this thread has it.
pub fn unlock_vnode(call: &str, vnode: *mut sys::vnode) {
    let Some(exclusive) = vnode_locked(vnode) else {
        violation(call, "this thread does not hold the vnode's lock");
    };
    lock::release(call, vnode as usize, exclusive);
}

/// The vnode's lock, held.
pub struct VnodeLocked(*mut sys::vnode);

impl VnodeLocked {
    /// Take it, shared or exclusive.
    pub fn new(vnode: *mut sys::vnode, exclusive: bool, call: &'static str) -> Self {
        lock_vnode(vnode, exclusive, true, Place::new(call, ptr::null(), 0));
        Self(vnode)
    }
}

impl Drop for VnodeLocked {
    fn drop(&mut self) {
        unlock_vnode("VOP_UNLOCK", self.0);
    }
}

// References.

/// The counters, changed by one thread at a time: [`with_vnode`] holds
/// the interlock.
fn change(call: &str, vnode: *mut sys::vnode, hold: c_int, used: c_int) -> (c_int, c_int) {
    with_vnode(call, vnode, |fields| {
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
        free(vnode);
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
    rule(call, vnode_locked(vnode).is_none(), "the vnode is locked by this thread: vput()");
    let (_, used) = change(call, vnode, 0, -1);
    if used == 0 {
        vdrop(vnode);
    }
}

/// `vput`.
pub extern "C" fn vput(vnode: *mut sys::vnode) {
    unlock_vnode("vput", vnode);
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
    let held = with_vnode(call, vnode, |fields| fields.v_holdcnt > 0);
    rule(call, held, "the vnode is not held");
    let exclusive = mode == sys::LK_EXCLUSIVE;
    let wait = flags & sys::LK_NOWAIT == 0;
    if !lock_vnode(vnode, exclusive, wait, Place::new(call, file, line)) {
        return sys::EBUSY;
    }
    if flags & sys::LK_RETRY == 0 && is_doomed(call, vnode) {
        unlock_vnode(call, vnode);
        return sys::ENOENT;
    }
    0
}

/// `vget`.
pub extern "C" fn vget(vnode: *mut sys::vnode, flags: c_int) -> c_int {
    vref(vnode);
    let error = vn_lock(vnode, flags, ptr::null(), 0);
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
    unlock_vnode("VOP_UNLOCK", unsafe { (*ap).vnode });
    0
}
