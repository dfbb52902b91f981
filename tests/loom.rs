// SPDX-License-Identifier: BSD-2-Clause
//! The state machines of src/kpi/sync.rs in all interleavings of their threads.

mod atomic {
    pub use loom::sync::atomic::{AtomicU8, AtomicUsize, Ordering, fence};
}

#[path = "../src/kpi/sync.rs"]
mod sync;

use loom::{
    cell::UnsafeCell,
    sync::{Arc, Condvar, Mutex},
    thread,
};
use sync::{Back, Handover, Shares};

/// A buf: its owner writes to it, and loom sees two owners at once.
struct Buf {
    handover: Handover,
    owned: UnsafeCell<u32>,
    done: Mutex<bool>,
    wakeup: Condvar,
}

impl Buf {
    fn new() -> Arc<Self> {
        let (done, wakeup) = (Mutex::new(false), Condvar::new());
        Arc::new(Self { handover: Handover::new(), owned: UnsafeCell::new(0), done, wakeup })
    }

    fn own(&self) {
        // SAFETY: loom fails the test when two threads are here.
        self.owned.with_mut(|n| unsafe { *n += 1 });
    }

    /// b_iodone, in a thread of its own.
    fn complete(this: &Arc<Self>) -> thread::JoinHandle<()> {
        let buf = this.clone();
        thread::spawn(move || match buf.handover.back() {
            Back::Left => buf.own(),
            Back::Wanted => {
                *buf.done.lock().unwrap() = true;
                buf.wakeup.notify_one();
            }
            Back::Unclaimed => {}
        })
    }

    /// How often it had an owner, when all threads are gone.
    fn owners(&self) -> u32 {
        // SAFETY: the other thread has been joined.
        self.owned.with(|n| unsafe { *n })
    }
}

#[test]
fn a_buf_that_is_left_has_one_owner() {
    loom::model(|| {
        let buf = Buf::new();
        let completion = Buf::complete(&buf);
        if buf.handover.leave() {
            buf.own();
        }
        completion.join().unwrap();
        assert_eq!(buf.owners(), 1);
    });
}

#[test]
fn a_buf_that_is_wanted_is_the_threads() {
    loom::model(|| {
        let buf = Buf::new();
        let completion = Buf::complete(&buf);
        if !buf.handover.want() {
            let mut done = buf.done.lock().unwrap();
            while !*done {
                done = buf.wakeup.wait(done).unwrap();
            }
        }
        buf.own();
        completion.join().unwrap();
        assert_eq!(buf.owners(), 1);
    });
}

#[test]
fn a_buf_is_sent_again() {
    loom::model(|| {
        let buf = Buf::new();
        assert_eq!(buf.handover.back(), Back::Unclaimed);
        assert!(buf.handover.want());
        buf.handover.begin();
        let completion = Buf::complete(&buf);
        if buf.handover.leave() {
            buf.own();
        }
        completion.join().unwrap();
        assert_eq!(buf.owners(), 1);
    });
}

/// Parts of a request arrive while the thread that sends them adds more: one of
/// all is the last, and sees what the others have written.
#[test]
fn the_last_part_answers_once() {
    loom::model(|| {
        struct Request {
            shares: Shares,
            written: [UnsafeCell<u32>; 3],
            answers: loom::sync::atomic::AtomicUsize,
        }
        let arrive = |request: &Request, at: usize| {
            // SAFETY: each part writes in its own place; the last one reads all.
            request.written[at].with_mut(|n| unsafe { *n = 1 });
            if request.shares.release() {
                // SAFETY: the only share.
                let all = request.written.iter().map(|n| n.with(|n| unsafe { *n }));
                assert_eq!(all.sum::<u32>(), 3);
                request.answers.fetch_add(1, loom::sync::atomic::Ordering::Relaxed);
            }
        };
        let request = Arc::new(Request {
            shares: Shares::one(),
            written: [0; 3].map(UnsafeCell::new),
            answers: loom::sync::atomic::AtomicUsize::new(0),
        });
        let parts: Vec<_> = (0..2)
            .map(|at| {
                request.shares.add();
                let part = request.clone();
                thread::spawn(move || arrive(&part, at))
            })
            .collect();
        arrive(&request, 2);
        parts.into_iter().for_each(|part| part.join().unwrap());
        assert_eq!(request.answers.load(loom::sync::atomic::Ordering::Relaxed), 1);
    });
}
