// SPDX-License-Identifier: BSD-2-Clause
//! Buffers of indirect blocks, as the module asks the buffer cache for them
//! (getblk(9), sys/buf.h).

use std::{ffi::c_int, sync::LazyLock};

use asyncpager::kpi::sys;

use crate::{
    checks::{quarantine, rules::rule, sleep::may_sleep},
    ffs::file::File,
    host::low_memory,
    kernel::{buf, pcpu, vnode},
};

/// `gbincore_unlocked`: a buffer for each block of the file that is in memory.
pub extern "C" fn gbincore_unlocked(bo: *mut sys::bufobj, lbn: i64) -> *mut sys::buf {
    static VALID: LazyLock<usize> = LazyLock::new(|| {
        let bp: *mut sys::buf = low_memory::zeroed();
        // SAFETY: fresh memory.
        unsafe { (*bp).b_flags = sys::B_CACHE as u32 };
        bp as usize
    });
    let vnode = bo as usize - std::mem::offset_of!(sys::vnode, v_bufobj);
    let file = File::of("gbincore_unlocked", vnode as *mut sys::vnode);
    let there = file.maps.has(&file.inode.indirect, lbn);
    if there { *VALID as *mut sys::buf } else { std::ptr::null_mut() }
}

/// `getblk`, of an indirect block: its buffer, locked, after any read of it has ended.
pub extern "C" fn getblk(
    vnode: *mut sys::vnode,
    lbn: i64,
    size: c_int,
    _: c_int,
    _: c_int,
    _: c_int,
) -> *mut sys::buf {
    static OPS: LazyLock<usize> = LazyLock::new(|| {
        let ops: *mut sys::buf_ops = low_memory::zeroed();
        // SAFETY: fresh memory.
        unsafe { (*ops).bop_strategy = Some(read_block) };
        ops as usize
    });
    let call = "getblk";
    may_sleep(call);
    rule(call, vnode::vnode_locked(vnode).is_some(), "the vnode is not locked");
    let file = File::of(call, vnode);
    rule(call, i64::from(size) == file.mount.block as i64, "not the size of a block");
    let there = file.maps.settle(&file.inode.indirect, lbn);
    let bp: *mut sys::buf = quarantine::allocate("buffer");
    // SAFETY: fresh memory; the vnode is locked.
    unsafe {
        (*vnode).v_bufobj.bo_ops = *OPS as *mut sys::buf_ops;
        (*bp).b_bufobj = &raw mut (*vnode).v_bufobj;
        (*bp).b_lblkno = lbn;
        (*bp).b_blkno = lbn;
        (*bp).b_bcount = i64::from(size);
        (*bp).b_flags = if there { sys::B_CACHE as u32 } else { sys::B_INVAL as u32 };
        (*bp).b_lock.lk_lock = pcpu::curthread() as usize;
    }
    bp
}

/// `bqrelse` of a buffer that was there.
pub extern "C" fn bqrelse(bp: *mut sys::buf) {
    quarantine::free(bp);
}

/// `vfs_busy_pages` of a buffer that is to be read.
pub extern "C" fn vfs_busy_pages(bp: *mut sys::buf, clear_modify: c_int) {
    let call = "vfs_busy_pages";
    rule(call, clear_modify == 0, "a read does not make pages clean");
    // SAFETY: the caller's buffer.
    let reads = unsafe { (*bp).b_iocmd } == sys::BIO_READ as u16;
    rule(call, reads, "the buffer is not to be read");
}

/// `bop_strategy` of a file: starts an asynchronous read of an indirect block.
unsafe extern "C" fn read_block(bo: *mut sys::bufobj, bp: *mut sys::buf) {
    let call = "VOP_STRATEGY";
    let vnode = bo as usize - std::mem::offset_of!(sys::vnode, v_bufobj);
    let file = File::of(call, vnode as *mut sys::vnode);
    // SAFETY: the caller's buffer, which is the disk's now.
    let buf = unsafe { &*bp };
    let flags = buf.b_flags as i32;
    rule(call, flags & sys::B_ASYNC != 0 && flags & sys::B_INVAL == 0, "not B_ASYNC, or B_INVAL");
    rule(call, buf::is_disowned(bp), "a thread has the buffer's lock: BUF_KERNPROC()");
    rule(call, buf.b_iooffset == buf.b_blkno * 512, "b_iooffset is not b_blkno's");
    let place = file.inode.indirect.place(buf.b_lblkno);
    rule(call, place == Some(buf.b_blkno), "the block is elsewhere");
    let start = buf.b_iooffset as u64;
    file.maps.begin(buf.b_lblkno);
    let (lbn, end, theirs) = (buf.b_lblkno, start + buf.b_bcount as u64, file.clone());
    quarantine::free(bp);
    file.disk().read(start..end, move |outcome| theirs.maps.end(lbn, outcome.is_ok()));
}

/// `inmem`: no pages without a buffer here.
pub extern "C" fn inmem(vnode: *mut sys::vnode, _: i64) -> bool {
    rule("inmem", vnode::vnode_locked(vnode).is_some(), "the vnode is not locked");
    false
}
