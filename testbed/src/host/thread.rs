// SPDX-License-Identifier: BSD-2-Clause
//! The calling host thread: its number, and the kind of kernel thread it plays.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

/// A kind of kernel thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// A process, or a thread of the module's own.
    Thread,
    /// The disk's completion thread; it must not sleep.
    Completion,
    /// A softclock thread, which runs callouts; it must not sleep.
    Callout,
    /// A taskqueue's thread; it may sleep.
    Task,
}

impl Context {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Thread => "thread",
            Self::Completion => "completion",
            Self::Callout => "callout",
            Self::Task => "task",
        }
    }

    /// Whether such a thread may sleep.
    pub fn may_sleep(self) -> bool {
        matches!(self, Self::Thread | Self::Task)
    }
}

static THREADS: AtomicU64 = AtomicU64::new(1);

thread_local! {
    static CONTEXT: Cell<Context> = const { Cell::new(Context::Thread) };
    static NUMBER: u64 = THREADS.fetch_add(1, Ordering::Relaxed);
}

/// The number of the calling thread.
pub fn number() -> u64 {
    NUMBER.with(|number| *number)
}

/// The kind of kernel thread that the calling thread plays.
pub fn context() -> Context {
    CONTEXT.get()
}

/// Runs `f` with the calling thread as another kind of kernel thread.
pub fn in_context<T>(context: Context, f: impl FnOnce() -> T) -> T {
    let before = CONTEXT.replace(context);
    let result = f();
    CONTEXT.set(before);
    result
}
