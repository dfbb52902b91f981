// SPDX-License-Identifier: BSD-2-Clause
//! The data path, in reading order: [`request`] → [`plan`] → [`submit`] →
//! [`complete`].

pub mod bufs;
pub mod complete;
pub mod deferred;
pub mod latency;
pub mod plan;
pub mod request;
pub mod submit;
pub mod worker;

use self::request::{Call, Miss, REQUESTS, prepare};
use crate::{
    kpi::{
        errno::Errno,
        getpages::{Answer, Getpages},
        vm_page::BusiedPage,
    },
    stats,
};

/// Creates the request zone, the bufs and the worker threads. Sleeps: yes.
/// Errors: EINVAL, ENOMEM.
pub fn start() -> Result<(), Errno> {
    REQUESTS.create(c"asyncpager requests")?;
    bufs::create().inspect_err(|_| REQUESTS.destroy())?;
    worker::start();
    Ok(())
}

/// Releases what [`start`] created. No request is in progress. Sleeps: yes.
pub fn end() {
    worker::end();
    bufs::destroy();
    REQUESTS.destroy();
}

/// Serves a call of VOP_GETPAGES_ASYNC; or of VOP_GETPAGES, when its reply is
/// not async: then this waits for the I/O. `promised`: our VOP_BMAP has
/// promised this call a run without a look at the block map. `miss`: receives
/// the pages that an async call has to read.
///
/// Locks: vnode; object not. Sleeps: for the block map, unless `promised` and a
/// buf for the deferred map is free; for a buf while the device may have no
/// more; for the data only when the call is synchronous.
pub fn getpages<'a>(vop: Getpages<'a>, promised: bool, miss: &mut Option<Miss>) -> Answer<'a> {
    stats::PAGES_REQUESTED.add(vop.pages.len() as u32);
    let mut call = match prepare(vop) {
        Ok(call) => call,
        Err(answer) => return answer,
    };
    let target = call.target;
    if target.wanted == 0 {
        // A single page whose invalid part lies behind the end of the file.
        target.pages.iter().for_each(BusiedPage::zero_invalid);
        stats::PAGES_VALID.add(1);
        return finished(call);
    }
    if !call.vop.reply.is_async() {
        return submit::read(call);
    }
    let noted = miss.insert(Miss::new(&target, call.vop.ahead.wish()));
    if promised {
        match deferred::send(call) {
            Ok(answer) => {
                noted.ask.unmapped = true;
                return answer;
            }
            Err(again) => call = again,
        }
    }
    submit::send(call, noted)
}

/// Answers a call whose pages need no I/O.
fn finished(mut call: Call<'_>) -> Answer<'_> {
    call.vop.behind.report(0);
    call.vop.ahead.report(0);
    call.vop.reply.send(Ok(()));
    Answer::Done(Ok(()))
}
