// SPDX-License-Identifier: BSD-2-Clause
//! WITNESS: the locks that each thread holds, and the order in which locks are taken.
//!
//! A lock belongs to a class. Taking a lock of class B with one of class A held
//! says that A comes before B, from then on and for all instances. The order is
//! checked before the lock is waited for, so that a deadlock shows when it
//! becomes possible and not only when it happens.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{CStr, c_char, c_int},
    fmt,
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::{
    checks::rules::{rule, violation},
    host::thread,
};

/// The most classes that the order can hold.
const CLASSES: usize = 64;

/// A class of locks.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Class(usize);

/// A lock and its options.
#[derive(Clone, Copy, Debug)]
pub struct Lock {
    /// Where it is.
    pub address: usize,
    /// Its class.
    pub class: Class,
    /// It may be held while sleeping, as lockmgr(9)'s may.
    pub sleepable: bool,
    /// Its owner may take it again.
    pub recursable: bool,
    /// Another one of the class may be held as well.
    pub dup_ok: bool,
}

/// Where a lock was taken.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    call: &'static str,
    /// The address of a module's `__FILE__`, which stays mapped when the
    /// module goes, or 0.
    file: usize,
    line: c_int,
    thread: u64,
}

impl Place {
    /// `call`, at the file and line that the KPI was given, if it was.
    pub fn new(call: &'static str, file: *const c_char, line: c_int) -> Self {
        Self { call, file: file as usize, line, thread: thread::number() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.call)?;
        if self.file != 0 {
            // SAFETY: a C string, as `new` got it.
            let file = unsafe { CStr::from_ptr(self.file as *const c_char) };
            write!(f, " at {}:{}", file.to_string_lossy(), self.line)?;
        }
        write!(f, " in thread {}", self.thread)
    }
}

struct Held {
    lock: Lock,
    exclusive: bool,
    depth: usize,
    place: Place,
}

thread_local! {
    static HELD: RefCell<Vec<Held>> = const { RefCell::new(Vec::new()) };
}

static NAMES: Mutex<Vec<(String, &'static str)>> = Mutex::new(Vec::new());

/// Bit b of word a: class a comes before class b.
static BEFORE: [AtomicU64; CLASSES] = [const { AtomicU64::new(0) }; CLASSES];

/// Where a pair was first taken in this order: the first lock, then the second.
type Pair<T> = HashMap<(T, T), (Place, Place)>;

static CLASS_PLACES: LazyLock<Mutex<Pair<usize>>> = LazyLock::new(Mutex::default);
static INSTANCE_PLACES: LazyLock<Mutex<Pair<usize>>> = LazyLock::new(Mutex::default);

/// The class called `name`, all of whose locks are of one `kind`.
pub fn class(name: &str, kind: &'static str) -> Class {
    let mut names = NAMES.lock().unwrap();
    let at = names.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
        names.push((name.to_string(), kind));
        names.len() - 1
    });
    let earlier = names[at].1;
    rule("witness_init", earlier == kind, format_args!("lock {name} is a {kind} and a {earlier}"));
    assert!(at < CLASSES, "more than {CLASSES} classes of locks");
    Class(at)
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&NAMES.lock().unwrap()[self.0].0)
    }
}

/// This thread is about to wait for a lock.
pub fn check(lock: &Lock, place: &Place) {
    let call = place.call;
    HELD.with_borrow(|held| {
        for other in held {
            if other.lock.address == lock.address {
                rule(
                    call,
                    lock.recursable,
                    format_args!(
                        "recursing on a {} that was taken by {} and must not recurse",
                        lock.class, other.place
                    ),
                );
                continue;
            }
            if lock.sleepable && !other.lock.sleepable {
                violation(
                    call,
                    format_args!(
                        "a {}, which may sleep, with a {} held since {}",
                        lock.class, other.lock.class, other.place
                    ),
                );
            }
            if other.lock.class == lock.class {
                rule(
                    call,
                    lock.dup_ok,
                    format_args!(
                        "a second lock of class {}, and the first is held since {}",
                        lock.class, other.place
                    ),
                );
                instance_order(other, lock, place);
            } else {
                class_order(other, lock, place);
            }
        }
    });
}

fn class_order(first: &Held, second: &Lock, place: &Place) {
    let (a, b) = (first.lock.class.0, second.class.0);
    if BEFORE[a].load(Ordering::Acquire) & 1 << b != 0 {
        return;
    }
    let mut places = CLASS_PLACES.lock().unwrap();
    if let Some(path) = path(b, a) {
        // The first step of the way back names the places of the other order.
        let step = (path[0], path[1]);
        let (earlier, later) = &places[&step];
        violation(
            place.call,
            format_args!(
                "lock order reversal: {} (held since {}), then {}; earlier {} ({earlier}), then {} ({later})",
                first.lock.class,
                first.place,
                second.class,
                Class(step.0),
                Class(step.1),
            ),
        );
    }
    places.insert((a, b), (first.place, *place));
    BEFORE[a].fetch_or(1 << b, Ordering::Release);
}

/// The classes on a way from `from` to `to`, if there is one.
fn path(from: usize, to: usize) -> Option<Vec<usize>> {
    let mut ways = vec![vec![from]];
    let mut seen = 1u64 << from;
    while let Some(way) = ways.pop() {
        let at = way[way.len() - 1];
        if at == to {
            return Some(way);
        }
        let next = BEFORE[at].load(Ordering::Acquire) & !seen;
        seen |= next;
        for step in (0..CLASSES).filter(|step| next & 1 << step != 0) {
            ways.push([&way[..], &[step]].concat());
        }
    }
    None
}

fn instance_order(first: &Held, second: &Lock, place: &Place) {
    let mut places = INSTANCE_PLACES.lock().unwrap();
    let pair = (first.lock.address, second.address);
    if let Some((earlier, later)) = places.get(&(pair.1, pair.0)) {
        violation(
            place.call,
            format_args!(
                "lock order reversal between two of class {}: {:#x} (held since {}), then {:#x}; \
                 earlier the other way round ({earlier}, then {later})",
                second.class, pair.0, first.place, pair.1,
            ),
        );
    }
    places.entry(pair).or_insert_with(|| (first.place, *place));
}

/// A lock is destroyed: the next one at its address is another lock.
pub fn forget(address: usize) {
    INSTANCE_PLACES.lock().unwrap().retain(|(a, b), _| *a != address && *b != address);
}

/// This thread holds the lock now.
pub fn acquired(lock: Lock, exclusive: bool, place: Place) {
    HELD.with_borrow_mut(|held| {
        match held.iter_mut().find(|other| other.lock.address == lock.address) {
            Some(same) => same.depth += 1,
            None => held.push(Held { lock, exclusive, depth: 1, place }),
        }
    });
}

/// Releases a lock that this thread must hold in that mode; whether that was the last
/// hold.
pub fn released(call: &str, address: usize, exclusive: bool) -> bool {
    HELD.with_borrow_mut(|held| {
        let Some(at) = held.iter().position(|other| other.lock.address == address) else {
            violation(call, "releasing a lock that this thread does not hold");
        };
        rule(
            call,
            held[at].exclusive == exclusive,
            format_args!("the lock was taken in the other mode by {}", held[at].place),
        );
        held[at].depth -= 1;
        let last = held[at].depth == 0;
        if last {
            held.remove(at);
        }
        last
    })
}

/// Whether this thread holds the lock at `address`, and exclusively.
pub fn held(address: usize) -> Option<bool> {
    HELD.with_borrow(|held| {
        held.iter().find(|other| other.lock.address == address).map(|other| other.exclusive)
    })
}

fn unsleepable(call: &str, what: &str) {
    HELD.with_borrow(|held| {
        if let Some(held) = held.iter().find(|held| !held.lock.sleepable) {
            let (class, place) = (held.lock.class, &held.place);
            violation(call, format_args!("{what} with a {class} lock held since {place}"));
        }
    });
}

/// The thread sleeps: it must hold no lock that forbids that.
pub fn sleeping(call: &str) {
    unsleepable(call, "sleeping");
}

/// The call is made with no lock held that forbids to sleep.
pub fn lockless(call: &str) {
    unsleepable(call, "called");
}

/// Run `f` with none of this thread's locks; it must give back what it takes.
pub fn without_locks<T>(call: &str, f: impl FnOnce() -> T) -> T {
    let before = HELD.take();
    let result = f();
    HELD.with_borrow(|held| {
        if let Some(held) = held.first() {
            let (class, place) = (held.lock.class, &held.place);
            violation(call, format_args!("returned with a {class} lock held since {place}"));
        }
    });
    HELD.set(before);
    result
}

/// How often this thread holds the lock.
pub fn depth(address: usize) -> usize {
    HELD.with_borrow(|held| {
        held.iter().find(|other| other.lock.address == address).map_or(0, |other| other.depth)
    })
}
