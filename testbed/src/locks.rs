// SPDX-License-Identifier: BSD-2-Clause
//! rwlock(9), mutex(9) and the lock of a vnode, with owners; see [`witness`].

use std::{
    collections::HashMap,
    ffi::{CStr, c_char, c_int, c_void},
    mem::offset_of,
    ptr,
    sync::{Condvar, LazyLock, Mutex, MutexGuard, atomic::Ordering},
};

use asyncpager::kpi::sys;

use crate::{
    clock::Patience,
    cpu,
    rules::{may_sleep, record, rule, violation},
    schedule,
    witness::{self, Class, Lock, Place},
};

/// A lock that nobody gets within so many seconds is a deadlock.
const PATIENCE: u32 = 60;

/// Who has a lock.
#[derive(Default)]
struct State {
    writer: bool,
    readers: usize,
}

static LOCKS: LazyLock<Mutex<HashMap<usize, State>>> = LazyLock::new(Mutex::default);
static LOCK_FREE: Condvar = Condvar::new();

fn state(locks: &mut HashMap<usize, State>, address: usize) -> &mut State {
    locks.entry(address).or_default()
}

/// Take it if nobody is in the way.
fn try_take(locks: &mut HashMap<usize, State>, address: usize, exclusive: bool) -> bool {
    let state = state(locks, address);
    let free = !state.writer && (!exclusive || state.readers == 0);
    if free && exclusive {
        state.writer = true;
    } else if free {
        state.readers += 1;
    }
    free
}

/// Wait until the lock is ours.
fn take(lock: Lock, exclusive: bool, place: Place, call: &str) {
    witness::check(&lock, &place);
    let mut patience = Patience::seconds(PATIENCE);
    let mut locks = LOCKS.lock().unwrap();
    while !try_take(&mut locks, lock.address, exclusive) {
        locks = wait(locks, &mut patience, call);
    }
    drop(locks);
    witness::acquired(lock, exclusive, place);
}

fn wait<'a>(
    locks: MutexGuard<'a, HashMap<usize, State>>,
    patience: &mut Patience,
    call: &str,
) -> MutexGuard<'a, HashMap<usize, State>> {
    if schedule::is_one_thread() {
        drop(locks);
        rule(call, schedule::pump(), "deadlock: nobody is left to release the lock");
        return LOCKS.lock().unwrap();
    }
    let (locks, late) = LOCK_FREE.wait_timeout(locks, Patience::STEP).unwrap();
    rule(call, !late.timed_out() || patience.spend(), "deadlock: nobody releases the lock");
    locks
}

fn release(call: &str, address: usize, exclusive: bool) {
    if !witness::released(call, address, exclusive) {
        return;
    }
    let mut locks = LOCKS.lock().unwrap();
    let state = state(&mut locks, address);
    if exclusive {
        state.writer = false;
    } else {
        state.readers -= 1;
    }
    LOCK_FREE.notify_all();
}

/// The lock's memory is gone; nobody may have it.
pub fn forget(call: &str, address: usize) {
    let state = LOCKS.lock().unwrap().remove(&address).unwrap_or_default();
    rule(call, !state.writer && state.readers == 0, "its lock is held");
}

// rwlock(9): the module has no other than the object's.

fn object_class() -> Class {
    static CLASS: LazyLock<Class> = LazyLock::new(|| witness::class("vm object", "rwlock"));
    *CLASS
}

fn rwlock(cookie: *mut usize) -> Lock {
    let (address, class) = (cookie as usize, object_class());
    // The kernel lets two objects' locks be held together. Nobody here has a
    // reason to, and no order between two objects is known.
    Lock { address, class, sleepable: false, recursable: false, dup_ok: false }
}

/// The address by which an object's lock is known.
pub fn object_cookie(object: *mut sys::vm_object) -> usize {
    object as usize + offset_of!(sys::vm_object, lock) + offset_of!(sys::rwlock, rw_lock)
}

/// Whether this thread holds the object's lock in any mode.
pub fn object_locked(object: *mut sys::vm_object) -> bool {
    witness::held(object_cookie(object)).is_some()
}

/// Whether this thread holds the object's write lock.
pub fn object_write_locked(object: *mut sys::vm_object) -> bool {
    witness::held(object_cookie(object)) == Some(true)
}

/// Hold the object's write lock for as long as `f` runs.
pub fn with_object<T>(object: *mut sys::vm_object, f: impl FnOnce() -> T) -> T {
    let cookie = object_cookie(object) as *mut usize;
    rw_wlock(cookie, ptr::null(), 0);
    let result = f();
    rw_wunlock(cookie, ptr::null(), 0);
    result
}

/// `__rw_rlock`.
pub extern "C" fn rw_rlock(cookie: *mut usize, file: *const c_char, line: c_int) {
    take(rwlock(cookie), false, Place::new("rw_rlock", file, line), "rw_rlock");
}

/// `__rw_try_rlock`.
pub extern "C" fn rw_try_rlock(cookie: *mut usize, file: *const c_char, line: c_int) -> c_int {
    let lock = rwlock(cookie);
    let got = try_take(&mut LOCKS.lock().unwrap(), lock.address, false);
    if got {
        witness::acquired(lock, false, Place::new("rw_try_rlock", file, line));
    }
    c_int::from(got)
}

/// `_rw_runlock_cookie`.
pub extern "C" fn rw_runlock(cookie: *mut usize, _: *const c_char, _: c_int) {
    release("rw_runlock", cookie as usize, false);
}

/// `_rw_wlock_cookie`.
pub extern "C" fn rw_wlock(cookie: *mut usize, file: *const c_char, line: c_int) {
    take(rwlock(cookie), true, Place::new("rw_wlock", file, line), "rw_wlock");
}

/// `_rw_wunlock_cookie`.
pub extern "C" fn rw_wunlock(cookie: *mut usize, _: *const c_char, _: c_int) {
    release("rw_wunlock", cookie as usize, true);
}

// The vnode's lock.

/// What is known of a vnode's lock.
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

/// Take the vnode's lock; without `wait`, false when that cannot be at once.
pub fn lock_vnode(vnode: *mut sys::vnode, exclusive: bool, wait: bool, place: Place) -> bool {
    let (call, lock) = ("vn_lock", vnode_lock(vnode));
    if wait {
        may_sleep(call);
        take(lock, exclusive, place, call);
        return true;
    }
    let got = try_take(&mut LOCKS.lock().unwrap(), lock.address, exclusive);
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
    release(call, vnode as usize, exclusive);
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

// mutex(9).

struct Mtx {
    class: Class,
    opts: c_int,
    /// It is the kernel's own, and no module's.
    own: bool,
}

static MUTEXES: LazyLock<Mutex<HashMap<usize, Mtx>>> = LazyLock::new(Mutex::default);

/// Mutexes of modules that are initialized now.
pub fn mutexes() -> usize {
    MUTEXES.lock().unwrap().values().filter(|mtx| !mtx.own).count()
}

/// Make a mutex of the kernel's own.
pub fn own_mutex(mtx: *mut sys::mtx, name: &str) {
    let cookie = mtx as usize + offset_of!(sys::mtx, mtx_lock);
    let (class, opts) = (witness::class(name, "sleep mutex"), 0);
    MUTEXES.lock().unwrap().insert(cookie, Mtx { class, opts, own: true });
    // SAFETY: the caller's mutex.
    unsafe { (cookie as *mut usize).write(sys::MTX_UNOWNED as usize) };
}

/// Whether this thread holds the lock at this address.
pub fn holds(address: usize) -> bool {
    witness::held(address).is_some()
}

/// Whether a mutex lies in this memory.
pub fn mutex_within(memory: std::ops::Range<usize>) -> bool {
    MUTEXES.lock().unwrap().keys().any(|address| memory.contains(address))
}

/// The lock word of the mutex with this lock_object.
pub fn mtx_of(object: *mut sys::lock_object) -> *mut usize {
    (object as usize - offset_of!(sys::mtx, lock_object) + offset_of!(sys::mtx, mtx_lock))
        as *mut usize
}

fn mtx(call: &str, cookie: *mut usize, opts: c_int) -> Lock {
    let mutexes = MUTEXES.lock().unwrap();
    let Some(mtx) = mutexes.get(&(cookie as usize)) else {
        violation(call, format_args!("{cookie:?} is not an initialized mutex"));
    };
    Lock {
        address: cookie as usize,
        class: mtx.class,
        sleepable: false,
        recursable: (mtx.opts | opts) & sys::MTX_RECURSE != 0,
        dup_ok: (mtx.opts | opts) & sys::MTX_DUPOK != 0,
    }
}

/// `_mtx_init`.
pub unsafe extern "C" fn mtx_init(
    cookie: *mut usize,
    name: *const c_char,
    kind: *const c_char,
    opts: c_int,
) {
    let call = "mtx_init";
    rule(call, opts & sys::MTX_SPIN == 0, "the testbed has no spin mutexes");
    // SAFETY: C strings; the type may be NULL, and then the name is the class.
    let class = unsafe { CStr::from_ptr(if kind.is_null() { name } else { kind }) };
    let class = witness::class(&class.to_string_lossy(), "sleep mutex");
    record(call, format_args!("mutex {cookie:?} of class {class}"));
    let before = MUTEXES.lock().unwrap().insert(cookie as usize, Mtx { class, opts, own: false });
    rule(call, before.is_none(), format_args!("{cookie:?} is initialized already"));
    // SAFETY: the caller's mutex.
    unsafe { cookie.write(sys::MTX_UNOWNED as usize) };
}

/// `_mtx_destroy`.
pub unsafe extern "C" fn mtx_destroy(cookie: *mut usize) {
    let call = "mtx_destroy";
    let lock = mtx(call, cookie, 0);
    record(call, format_args!("mutex {cookie:?} of class {}", lock.class));
    if witness::held(lock.address).is_some() {
        let last = witness::released(call, lock.address, true);
        rule(call, last, "the mutex is recursed");
    } else {
        let mut locks = LOCKS.lock().unwrap();
        let owned = state(&mut locks, lock.address).writer;
        rule(call, !owned, "another thread owns the mutex");
    }
    LOCKS.lock().unwrap().remove(&lock.address);
    MUTEXES.lock().unwrap().remove(&lock.address);
    witness::forget(lock.address);
    // SAFETY: the caller's mutex, which nobody owns.
    unsafe { cookie.write(sys::MTX_DESTROYED as usize) };
}

/// `__mtx_lock_flags`.
pub unsafe extern "C" fn mtx_lock(
    cookie: *mut usize,
    opts: c_int,
    file: *const c_char,
    line: c_int,
) {
    let call = "mtx_lock";
    let lock = mtx(call, cookie, opts);
    let place = Place::new(call, file, line);
    if witness::held(lock.address).is_some() {
        witness::check(&lock, &place);
        witness::acquired(lock, true, place);
    } else {
        take(lock, true, place, call);
        // SAFETY: this thread owns the mutex now, and mtx_owned() looks there.
        unsafe { cookie.write(cpu::curthread() as usize) };
    }
}

/// `_mtx_trylock_flags_`.
pub unsafe extern "C" fn mtx_trylock(
    cookie: *mut usize,
    opts: c_int,
    file: *const c_char,
    line: c_int,
) -> c_int {
    let call = "mtx_trylock";
    let lock = mtx(call, cookie, opts);
    let mine = witness::held(lock.address).is_some();
    // No order is checked: nobody waits.
    let got = if mine {
        lock.recursable
    } else {
        try_take(&mut LOCKS.lock().unwrap(), lock.address, true)
    };
    if got {
        witness::acquired(lock, true, Place::new(call, file, line));
        // SAFETY: as in mtx_lock().
        unsafe { cookie.write(cpu::curthread() as usize) };
    }
    c_int::from(got)
}

/// `__mtx_unlock_flags`.
pub unsafe extern "C" fn mtx_unlock(cookie: *mut usize, _: c_int, _: *const c_char, _: c_int) {
    let call = "mtx_unlock";
    let lock = mtx(call, cookie, 0);
    if witness::held(lock.address) == Some(true) && witness::depth(lock.address) == 1 {
        // SAFETY: still this thread's.
        unsafe { cookie.write(sys::MTX_UNOWNED as usize) };
    }
    release(call, lock.address, true);
}

// sx(9): allproc_lock.

/// `sx_try_xlock_`: GEOM's topology lock, the only one that is tried.
pub extern "C" fn sx_try_xlock(sx: *mut c_void, file: *const c_char, line: c_int) -> c_int {
    static CLASS: LazyLock<Class> = LazyLock::new(|| witness::class("GEOM topology", "sx"));
    let lock = Lock {
        address: sx as usize,
        class: *CLASS,
        sleepable: true,
        recursable: false,
        dup_ok: false,
    };
    let got = try_take(&mut LOCKS.lock().unwrap(), lock.address, true);
    if got {
        witness::acquired(lock, true, Place::new("sx_try_xlock", file, line));
    }
    c_int::from(got)
}

/// `_sx_xunlock`.
pub extern "C" fn sx_xunlock(sx: *mut c_void, _: *const c_char, _: c_int) {
    release("sx_xunlock", sx as usize, true);
}

/// `_sx_slock`.
pub extern "C" fn sx_slock(sx: *mut c_void, _: c_int, file: *const c_char, line: c_int) -> c_int {
    static CLASS: LazyLock<Class> = LazyLock::new(|| witness::class("allproc", "sx"));
    let (call, address, class) = ("sx_slock", sx as usize, *CLASS);
    may_sleep(call);
    let lock = Lock { address, class, sleepable: true, recursable: false, dup_ok: false };
    take(lock, false, Place::new(call, file, line), call);
    cpu::list_threads();
    0
}

/// `_sx_sunlock`.
pub extern "C" fn sx_sunlock(sx: *mut c_void, _: *const c_char, _: c_int) {
    release("sx_sunlock", sx as usize, false);
    cpu::LISTED.fetch_add(1, Ordering::AcqRel);
}
