// SPDX-License-Identifier: BSD-2-Clause
//! The owners of all locks, and waiting for them. The order of locks is [`witness`]'s.

use std::{
    collections::HashMap,
    sync::{Condvar, LazyLock, Mutex, MutexGuard},
};

use crate::{
    checks::{
        rules::rule,
        witness::{self, Lock, Place},
    },
    host::{clock::Patience, schedule},
};

/// Seconds after which a thread that waits for a lock is deadlocked.
const PATIENCE: u32 = 60;

/// The owners of a lock.
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

/// Takes the lock if no other owner is in the way.
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

/// Takes the lock if it is free for that mode.
pub fn try_lock(address: usize, exclusive: bool) -> bool {
    try_take(&mut LOCKS.lock().unwrap(), address, exclusive)
}

/// Whether a thread holds the lock exclusively.
pub fn is_owned(address: usize) -> bool {
    state(&mut LOCKS.lock().unwrap(), address).writer
}

/// Forgets the lock, in whatever state it is.
pub fn remove(address: usize) {
    LOCKS.lock().unwrap().remove(&address);
}

/// Sleeps until the lock is free, and takes it.
pub fn take(lock: Lock, exclusive: bool, place: Place, call: &str) {
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
        rule(call, schedule::pump(), "deadlock: no thread is left to release the lock");
        return LOCKS.lock().unwrap();
    }
    let (locks, late) = LOCK_FREE.wait_timeout(locks, Patience::STEP).unwrap();
    rule(call, !late.timed_out() || patience.spend(), "deadlock: no thread releases the lock");
    locks
}

/// Releases the lock, which this thread must hold in that mode.
pub fn release(call: &str, address: usize, exclusive: bool) {
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

/// The memory of the lock is freed: no thread may hold it.
pub fn forget(call: &str, address: usize) {
    let state = LOCKS.lock().unwrap().remove(&address).unwrap_or_default();
    rule(call, !state.writer && state.readers == 0, "its lock is held");
}
