// SPDX-License-Identifier: BSD-2-Clause
//! A buf that a driver is given: its checks, and its data.

use asyncpager::kpi::sys;

use crate::{
    checks::{
        quarantine,
        rules::{record, rule},
        sleep::{may_sleep, no_lock},
    },
    host::memory::PAGE,
    kernel::{buf, resident::Page},
};

/// Copy data to where the buf wants it: its mapping, or its pages.
pub fn deliver(buf: &sys::buf, data: &[u8]) {
    if buf.b_data as usize != unmapped() {
        // SAFETY: a mapped buf: strategy() has checked that b_data lies in
        // the buf's own range; what is not mapped there faults.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), buf.b_data.cast(), data.len()) };
        return;
    }
    let pages: *const *mut sys::vm_page = (&raw const buf.b_pages).cast();
    let mut at = buf.b_offset as usize % PAGE;
    let mut rest = data;
    let mut index = 0;
    while !rest.is_empty() {
        let n = rest.len().min(PAGE - at);
        // SAFETY: strategy() has checked that b_npages covers the transfer.
        unsafe {
            Page(*pages.add(index)).data().add(at).copy_from_nonoverlapping(rest.as_ptr(), n)
        };
        rest = &rest[n..];
        at = 0;
        index += 1;
    }
}

/// The address that stands for "not mapped"; nothing is there.
pub fn unmapped() -> usize {
    static PLACE: std::sync::LazyLock<usize> =
        std::sync::LazyLock::new(|| quarantine::reserve(257, "unmapped_buf") as usize);
    *PLACE
}

/// Checks what a driver relies on: a read of whole sectors into busied pages that
/// follow each other, in a buf that belongs to no thread.
pub fn check(bo: *mut sys::bufobj, bp: *mut sys::buf) {
    let call = "bstrategy";
    // SAFETY: the caller gives the buf up.
    let buf = unsafe { &mut *bp };
    no_lock(call);
    // g_alloc_bio() waits for memory.
    may_sleep(call);
    rule(call, buf.b_bufobj == bo, "b_bufobj is another one");
    if buf.b_flags & sys::B_ASYNC as u32 != 0 {
        rule(call, buf::is_disowned(bp), "an async buf's lock still belongs to this thread");
    }
    rule(call, buf.b_iocmd == sys::BIO_READ as u16, "not a read");
    rule(call, !buf.b_rcred.is_null() && !buf.b_wcred.is_null(), "no creds are held");
    rule(call, buf.b_iodone.is_some(), "no b_iodone");
    rule(
        call,
        buf.b_runningbufspace == 0,
        "a read is charged to runningbufspace, which is writers'",
    );
    rule(call, buf.b_iooffset == buf.b_blkno * 512, "b_iooffset is not b_blkno's");
    rule(
        call,
        buf.b_ioflags == 0 && buf.b_flags & sys::B_DONE as u32 == 0,
        "flags of an earlier I/O are set",
    );
    // SAFETY: a live bufobj.
    let sector = i64::from(unsafe { (*bo).bo_bsize });
    rule(
        call,
        buf.b_bcount > 0 && buf.b_bcount % sector == 0,
        format_args!("{} bytes are not sectors", buf.b_bcount),
    );
    rule(call, buf.b_bcount == buf.b_bufsize, "b_bcount is not b_bufsize");
    let (offset, base) = (buf.b_offset as usize % PAGE, buf.b_kvabase as usize);
    let pages = (offset + buf.b_bcount as usize).div_ceil(PAGE);
    rule(
        call,
        pages == buf.b_npages as usize,
        format_args!("b_npages {} for {pages} pages", buf.b_npages),
    );
    if buf.b_data as usize != unmapped() {
        rule(
            call,
            buf.b_data as usize == base + offset,
            "b_data is not where the pages are mapped",
        );
    }
    let array: *const *mut sys::vm_page = (&raw const buf.b_pages).cast();
    let mut first = None;
    for i in 0..pages {
        // SAFETY: within b_npages.
        let page = Page(unsafe { *array.add(i) });
        if page == Page::bogus() {
            continue;
        }
        if page.fields().object.is_null() && page.fields().ref_count > 0 {
            // A page of the caller's own, which no other thread can find.
            continue;
        }
        rule(call, page.is_busy(), format_args!("page {i} is not busied"));
        let base = page.fields().pindex.wrapping_sub(i as u64);
        rule(call, *first.get_or_insert(base) == base, "pages are not consecutive");
        rule(
            call,
            offset != 0 || pages == 1 || page.fields().valid == 0 || sector < 512,
            "reading over a valid page",
        );
    }
    record(
        call,
        format_args!("buf {bp:?} {} bytes at {} in {pages} pages", buf.b_bcount, buf.b_iooffset),
    );
}
