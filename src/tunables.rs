// SPDX-License-Identifier: BSD-2-Clause
//! Settings below `vfs.asyncpager`: sysctls and loader tunables.

use crate::{
    kpi::{
        errno::Errno,
        sysctl::{Context, Switch},
    },
    pager::{bufs, latency},
    readahead, stats, vop,
};

static CONTEXT: Context = Context::new();

/// Registers the settings and counters. Loader tunables take effect here.
/// Sleeps: yes. Errors: ENOMEM.
pub fn register() -> Result<(), Errno> {
    let node = CONTEXT.begin(c"asyncpager", c"Asynchronous getpages for FFS")?;
    let all = || {
        CONTEXT.switch(
            node,
            c"enabled",
            c"Serve getpages; 0: leave it to the original VOP",
            &vop::ENABLED,
        )?;
        CONTEXT.handled_switch::<Sync>(node, c"sync", c"Serve synchronous getpages too")?;
        CONTEXT.switch(
            node,
            c"map",
            c"Do not let sendfile wait for a file's block map",
            &vop::MAP,
        )?;
        let descr = c"Bufs for I/O; 0: as many as the vnode pager has";
        CONTEXT.limit(node, c"bufs", descr, &bufs::BUFS, true)?;
        let below = CONTEXT.node(node, c"readahead", c"Read-ahead that follows streams")?;
        let descr = c"Follow streams; 0: read ahead only what a call wishes for";
        CONTEXT.switch(below, c"enabled", descr, &readahead::ENABLED)?;
        let descr = c"Read a file's first indirect block and what it leads to at once";
        CONTEXT.switch(below, c"guess", descr, &readahead::speculative::ENABLED)?;
        for (name, descr, limit, boot) in [
            (c"max", c"Bytes read ahead of one stream, at most", &readahead::MAX, false),
            (c"initial", c"Bytes read ahead of a new stream", &readahead::INITIAL, false),
            (c"in_flight", c"Bufs that one device may have", &readahead::IN_FLIGHT, false),
            (
                c"latency_min",
                c"Microseconds from which on a device's latency is worth hiding",
                &latency::MIN,
                false,
            ),
            (c"poll", c"Microseconds between looks at consumers", &readahead::POLL, false),
            (c"streams", c"Streams that can be followed at a time", &readahead::STREAMS, true),
        ] {
            CONTEXT.limit(below, name, descr, limit, boot)?;
        }
        stats::register(&CONTEXT, node, below)
    };
    all().inspect_err(|_| release())
}

/// Removes the tree and frees the counters. Sleeps: yes.
pub fn release() {
    CONTEXT.end();
    stats::release();
}

/// `vfs.asyncpager.sync`.
struct Sync;

impl Switch for Sync {
    fn get() -> bool {
        vop::sync()
    }

    fn set(on: bool) -> Result<(), Errno> {
        vop::set_sync(on)
    }
}
