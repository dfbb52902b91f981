// SPDX-License-Identifier: BSD-2-Clause
//! The balance after kldunload(2): the module has left nothing behind.

use std::sync::atomic::Ordering;

use crate::{
    checks::{balance::none_left, quarantine, rules::rule},
    ffs::vnodeops,
    kernel::{
        buf, callout, condvar, counter, kva, malloc, mount, mutex, pmap, resident, sysctl,
        taskqueue, ucred, uma,
    },
};

/// After kldunload(2), nothing of the module's own may outlive its code.
pub fn check_left() {
    none_left(
        "after kldunload",
        &[
            ("mutexes", mutex::mutexes()),
            ("callouts pending or running", callout::active()),
            ("taskqueues", taskqueue::queues()),
            ("allocations of malloc(9)", malloc::allocations()),
        ],
    );
    malloc::check_freed();
    callout::forget();
}

/// After kldunload(2), everything that a module may hold has been given back.
pub fn check_balance() {
    let call = "after kldunload";
    rule(call, vnodeops::restored(), "an original VOP is not restored");
    none_left(
        call,
        &[
            ("bufs", buf::bufs()),
            ("bytes of address space", kva::address_space()),
            ("zones", uma::zones()),
            ("condition variables", condvar::condvars()),
            ("counters", counter::counters()),
            ("sysctl nodes", sysctl::registered()),
            ("mounts busy", mount::BUSY.load(Ordering::Relaxed)),
            ("mapped pages", pmap::MAPPED.load(Ordering::Relaxed)),
            ("pages in use", resident::used()),
            ("references on creds", ucred::CREDS.load(Ordering::Relaxed) as usize),
        ],
    );
    let alive = quarantine::live();
    rule(call, alive.is_empty(), format_args!("still alive: {}", alive.join(", ")));
    check_left();
}
