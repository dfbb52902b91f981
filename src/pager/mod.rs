// SPDX-License-Identifier: BSD-2-Clause
//! The data path, in reading order: [`request`] → [`plan`] → [`submit`] → [`complete`].

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

/// Make what the data path needs. May sleep.
pub fn start() -> Result<(), Errno> {
    REQUESTS.create(c"asyncpager requests")?;
    bufs::create().inspect_err(|_| REQUESTS.destroy())?;
    worker::start();
    Ok(())
}

/// Give everything back. No request is in progress. May sleep.
pub fn end() {
    worker::end();
    bufs::destroy();
    REQUESTS.destroy();
}

/// Serve a call of VOP_GETPAGES_ASYNC, or of VOP_GETPAGES when its reply is
/// not async: then this waits for the I/O. `promised` says that the caller
/// was told of a run that nobody has looked up yet. What an async call missed
/// is noted in `miss`.
///
/// The vnode is locked and the object is not. May sleep for the block map
/// unless `promised`, and for a buf while all are in flight; never for the data
/// of an async call.
pub fn getpages<'a>(vop: Getpages<'a>, promised: bool, miss: &mut Option<Miss>) -> Answer<'a> {
    stats::PAGES_REQUESTED.add(vop.pages.len() as u32);
    let mut call = match prepare(vop) {
        Ok(call) => call,
        Err(answer) => return answer,
    };
    let target = call.target;
    if target.wanted == 0 {
        // The only page, and what it lacks lies behind the end of the file.
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

/// All pages are valid, without any I/O.
fn finished(mut call: Call<'_>) -> Answer<'_> {
    call.vop.behind.report(0);
    call.vop.ahead.report(0);
    call.vop.reply.send(Ok(()));
    Answer::Done(Ok(()))
}
