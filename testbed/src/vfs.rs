// SPDX-License-Identifier: BSD-2-Clause
//! Vnodes, their mount, VOP_BMAP(9), and the original getpages of FFS that the
//! module replaces.

use std::{
    collections::HashMap,
    ffi::{c_char, c_int, c_void},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use asyncpager::kpi::sys;

use crate::{
    bufcache,
    clock::Patience,
    disk::Disk,
    graves,
    indirect::Cache,
    locks::{self, VnodeLocked},
    low,
    mount::fill_ufsmount,
    pager::Iodone,
    rules::{may_sleep, rule},
    schedule, stock,
    ufs::Inode,
    vm::{self, Page},
    vnode,
};

/// What VOP_BMAP does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bmap {
    /// Answers from the inode.
    Good,
    /// The filesystem has none.
    Unsupported,
    /// The indirect block cannot be read.
    Fails,
}

/// How a filesystem is mounted.
#[derive(Clone, Copy, Debug)]
pub struct Mount {
    /// f_iosize.
    pub block: u64,
    /// MNTK_UNMAPPED_BUFS.
    pub unmapped: bool,
    /// `mnt_flag`, such as MNT_ASYNC.
    pub flags: u64,
    /// What VOP_BMAP does.
    pub bmap: Bmap,
}

/// An open file.
pub struct File {
    /// Its inode.
    pub inode: Inode,
    /// Its vnode, and the vnode's object.
    pub vnode: *mut sys::vnode,
    /// See `vnode`.
    pub object: *mut sys::vm_object,
    /// Where it is.
    pub mount: Mount,
    /// Which of its indirect blocks are in the buffer cache.
    pub maps: Cache,
    size: AtomicU64,
    disk: Arc<Disk>,
}

// SAFETY: the pointers are to leaked memory whose fields follow the kernel's locking.
unsafe impl Send for File {}
// SAFETY: as above.
unsafe impl Sync for File {}

static FILES: LazyLock<Mutex<HashMap<usize, Arc<File>>>> = LazyLock::new(Mutex::default);

/// Calls of the original VOPs: sync, async.
pub static ORIGINAL: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// `ffs_vnodeops1` and `ffs_vnodeops2`.
pub fn vectors() -> [*mut sys::vop_vector; 2] {
    static PLACES: LazyLock<[usize; 2]> = LazyLock::new(|| {
        [0, 1].map(|_| {
            let vector: *mut sys::vop_vector = low::zeroed();
            // SAFETY: fresh memory.
            unsafe {
                (*vector).vop_getpages = Some(original_getpages);
                (*vector).vop_getpages_async = Some(original_getpages_async);
                (*vector).vop_bmap = Some(original_bmap);
            }
            vector as usize
        })
    });
    PLACES.map(|place| place as *mut sys::vop_vector)
}

/// Whether both vectors have their original entries.
pub fn restored() -> bool {
    vectors().iter().all(|vector| {
        // SAFETY: live for ever.
        unsafe {
            (**vector).vop_getpages.map(|f| f as usize)
                == Some(original_getpages as *const () as usize)
                && (**vector).vop_getpages_async.map(|f| f as usize)
                    == Some(original_getpages_async as *const () as usize)
                && (**vector).vop_bmap.map(|f| f as usize)
                    == Some(original_bmap as *const () as usize)
        }
    })
}

/// Whether no entry of both vectors but that of getpages is the original.
pub fn taken() -> bool {
    vectors().iter().all(|vector| {
        // SAFETY: live for ever.
        unsafe {
            (**vector).vop_getpages_async.map(|f| f as usize)
                != Some(original_getpages_async as *const () as usize)
                && (**vector).vop_bmap.map(|f| f as usize)
                    != Some(original_bmap as *const () as usize)
        }
    })
}

impl File {
    /// Open a file: a vnode with its object, no pages yet.
    pub fn open(inode: Inode, mount: Mount, disk: &Arc<Disk>, ufs2: bool) -> Arc<Self> {
        let vnode: *mut sys::vnode = graves::born("vnode");
        let mp: *mut sys::mount = graves::born("mount");
        let ip: *mut sys::inode = graves::born("inode");
        let ump: *mut sys::ufsmount = graves::born("ufsmount");
        let object = vm::new_object(inode.size);
        // SAFETY: fresh memory of the right types.
        unsafe {
            (*mp).mnt_stat.f_iosize = mount.block;
            (*mp).mnt_flag = mount.flags;
            (*mp).mnt_kern_flag = if mount.unmapped { sys::MNTK_UNMAPPED_BUFS } else { 0 };
            // Each file has a mount of its own here, but a disk is mounted
            // once: what tells mountings apart is the same for all of its.
            (*mp).mnt_gen = (disk.bufobj as i32).wrapping_sub(mp as i32);
            for (to, from) in (*mp).mnt_stat.f_mntonname.iter_mut().zip(b"/testbed\0") {
                *to = *from as c_char;
            }
            (*ip).i_vnode = vnode;
            (*ip).i_number = inode.number;
            (*ip).i_flag = if inode.indirect.wide { IN_UFS2 } else { 0 };
            if inode.indirect.wide {
                (*ip).dinode_u.din2 = graves::born("dinode");
            } else {
                (*ip).dinode_u.din1 = graves::born("dinode");
            }
            set_dinode_size(ip, inode.size);
            let fragment = inode.indirect.fragment.max(512);
            let fs = graves::born("superblock");
            fill_ufsmount(mp, ump, fs, mount.block, inode.indirect.wide);
            (*ump).um_bptrtodb = u64::from((fragment / 512).trailing_zeros());
            (*ump).um_seqinc = mount.block / fragment;
            (*fs).fs_fsbtodb = (fragment / 512).trailing_zeros() as i32;
            (*fs).fs_size = (disk.image().len() as u64 / fragment) as i64;
            (*vnode).v_type = sys::VREG;
            (*vnode).v_holdcnt = 1;
            (*vnode).v_usecount = 1;
            (*vnode).v_op = vectors()[usize::from(ufs2)];
            (*vnode).v_mount = mp;
            (*vnode).v_data = ip.cast();
            (*vnode).v_bufobj.bo_object = object;
            (*object).handle = vnode.cast();
            (*object).type_ = sys::OBJT_VNODE as u8;
        }
        let size = AtomicU64::new(inode.size);
        let file = Arc::new(Self {
            inode,
            vnode,
            object,
            mount,
            maps: Cache::default(),
            size,
            disk: disk.clone(),
        });
        FILES.lock().unwrap().insert(vnode as usize, file.clone());
        file
    }

    /// The file's size now.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Truncate or extend to `size` bytes, at most what the inode says:
    /// vnode_pager_setsize() under the exclusive vnode lock.
    pub fn set_size(&self, size: u64) {
        let _exclusive = VnodeLocked::new(self.vnode, true, "ffs_truncate");
        let size = size.min(self.inode.size);
        with_vnode("ffs_truncate", self.vnode, |fields| {
            // SAFETY: an inode that lives as long as its vnode is not doomed.
            unsafe { set_dinode_size(fields.v_data.cast(), size) }
        });
        vm::set_size(self.object, size);
        self.size.store(size, Ordering::Release);
    }

    /// softdep_setup_freeblocks(): a truncation to length 0 sets the inode's
    /// size and frees the blocks, before it waits for busied pages. Without the
    /// vnode's lock, which a reader of the block map has while the disk hangs.
    pub fn free_blocks(&self) {
        with_vnode("ffs_truncate", self.vnode, |fields| {
            // SAFETY: an inode that lives as long as its vnode is not doomed.
            unsafe { set_dinode_size(fields.v_data.cast(), 0) }
        });
    }

    /// Close a file that nobody uses: nothing may be left of anybody's use.
    pub fn close(&self) {
        let call = "vgone";
        let references = || with_vnode(call, self.vnode, |v| (v.v_holdcnt, v.v_usecount));
        // Threads of the module hold a vnode for as long as they look at it.
        let mut patience = Patience::seconds(10);
        let mut step = Instant::now();
        while references() != (1, 1) {
            if !schedule::pump() {
                std::thread::sleep(Duration::from_micros(200));
            }
            if step.elapsed() >= Patience::STEP {
                step = Instant::now();
                if !patience.spend() {
                    break;
                }
            }
        }
        let (hold, used) = references();
        rule(
            call,
            (hold, used) == (1, 1),
            format_args!("v_holdcnt is {hold} and v_usecount {used}, not 1: a reference is left"),
        );
        self.sync();
        vm::drop_pages(self.object);
        self.gone();
    }

    /// A forced unmount, or reclaim: vgone() under the exclusive vnode lock,
    /// and the mount and the inode are no more. The vnode and the object stay
    /// for as long as somebody holds them.
    pub fn gone(&self) {
        let locked = VnodeLocked::new(self.vnode, true, "vgone");
        with_vnode("vgone", self.vnode, |fields| {
            fields.v_irflag |= sys::VIRF_DOOMED as i16;
        });
        // vinvalbuf() with V_SAVE.
        self.sync();
        vm::invalidate(self.object);
        vm::destroy(self.object);
        let (mount, inode) = with_vnode("vgone", self.vnode, |fields| {
            fields.v_bufobj.bo_object = std::ptr::null_mut();
            fields.v_op = dead_vector();
            fields.v_type = sys::VBAD;
            (
                std::mem::replace(&mut fields.v_mount, std::ptr::null_mut()),
                std::mem::replace(&mut fields.v_data, std::ptr::null_mut()),
            )
        });
        // SAFETY: alive until they are buried.
        unsafe {
            let inode = inode.cast::<sys::inode>();
            if (*inode).i_flag & IN_UFS2 != 0 {
                graves::bury((*inode).dinode_u.din2);
            } else {
                graves::bury((*inode).dinode_u.din1);
            }
            graves::bury(inode);
        }
        drop(locked);
        // SAFETY: alive until it is buried.
        let ump = unsafe { (*mount).mnt_data }.cast::<sys::ufsmount>();
        // SAFETY: as above.
        graves::bury(unsafe { (*ump).um_fs });
        graves::bury(ump);
        graves::bury(mount);
        vnode::vrele(self.vnode);
    }

    /// Write everything that is dirty to the disk.
    fn sync(&self) {
        bufcache::flush(self, 1, &mut fastrand::Rng::with_seed(0));
    }

    /// Open it for a use that may come too late: a reference on the vnode and
    /// its shared lock, unless it is gone.
    pub fn enter(&self, call: &'static str) -> Option<Entered> {
        self.enter_as(call, false)
    }

    /// The same with the exclusive lock.
    pub fn enter_exclusive(&self, call: &'static str) -> Option<Entered> {
        self.enter_as(call, true)
    }

    fn enter_as(&self, call: &'static str, exclusive: bool) -> Option<Entered> {
        {
            let files = FILES.lock().unwrap();
            files.get(&(self.vnode as usize))?;
            // SAFETY: a live vnode, whose interlock is held.
            let fields = unsafe { &mut *self.vnode };
            if fields.v_usecount == 0 {
                return None;
            }
            fields.v_usecount += 1;
        }
        let locked = VnodeLocked::new(self.vnode, exclusive, call);
        let doomed = is_doomed(call, self.vnode);
        let entered = Entered { locked: Some(locked), vnode: self.vnode };
        (!doomed).then_some(entered)
    }

    /// VOP_BMAP(9) without the VOP: place, run after, run before.
    pub fn bmap(&self, lbn: u64) -> (i64, c_int, c_int) {
        let unit = (self.mount.block / 512) as i64;
        let at = |lbn: u64| self.inode.map.get(lbn as usize).copied().flatten();
        let Some(place) = at(lbn) else { return (-1, 0, 0) };
        // As ufs_bmaparray() limits it by mnt_iosize_max.
        let most = crate::buf::MAXPHYS as i64 / self.mount.block as i64 - 1;
        let after =
            (1..=most).take_while(|i| at(lbn + *i as u64) == Some(place + i * unit)).count();
        let before = (1..=most)
            .take_while(|i| lbn.checked_sub(*i as u64).and_then(at) == Some(place - i * unit))
            .count();
        (place, after as c_int, before as c_int)
    }

    /// The disk that it is on.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }
}

/// A use of a file: see [`File::enter`].
pub struct Entered {
    locked: Option<VnodeLocked>,
    vnode: *mut sys::vnode,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.locked = None;
        vnode::vrele(self.vnode);
    }
}

/// `dead_vnodeops`, which serve nothing.
fn dead_vector() -> *mut sys::vop_vector {
    static PLACE: LazyLock<usize> = LazyLock::new(|| low::zeroed::<sys::vop_vector>() as usize);
    *PLACE as *mut sys::vop_vector
}

/// Look at a vnode's fields with its interlock held.
pub fn with_vnode<T>(
    call: &str,
    vnode: *mut sys::vnode,
    f: impl FnOnce(&mut sys::vnode) -> T,
) -> T {
    let files = FILES.lock().unwrap();
    rule(call, files.contains_key(&(vnode as usize)), "not a live vnode");
    // SAFETY: a live vnode; FILES is the interlock of all.
    f(unsafe { &mut *vnode })
}

/// VN_IS_DOOMED().
pub fn is_doomed(call: &str, vnode: *mut sys::vnode) -> bool {
    with_vnode(call, vnode, |fields| i32::from(fields.v_irflag) & sys::VIRF_DOOMED != 0)
}

/// Nobody holds the vnode any more.
pub fn let_go(vnode: *mut sys::vnode) {
    FILES.lock().unwrap().remove(&(vnode as usize));
    locks::forget("vdrop", vnode as usize);
    graves::bury(vnode);
}

fn file(call: &str, vnode: *mut sys::vnode) -> Arc<File> {
    let file = FILES.lock().unwrap().get(&(vnode as usize)).cloned();
    file.unwrap_or_else(|| crate::rules::violation(call, "not a live vnode"))
}

/// Of `i_flag`: the inode is UFS2's.
const IN_UFS2: u32 = 0x0400;

/// Write a file's size into its dinode.
unsafe fn set_dinode_size(inode: *mut sys::inode, size: u64) {
    // SAFETY: an inode with its dinode, which its flag tells the type of.
    unsafe {
        if (*inode).i_flag & IN_UFS2 != 0 {
            (*(*inode).dinode_u.din2).di_size = size;
        } else {
            (*(*inode).dinode_u.din1).di_size = size;
        }
    }
}

/// `VOP_BMAP_APV`: the vnode's own VOP.
pub extern "C" fn vop_bmap_apv(_: *mut sys::vop_vector, ap: *mut sys::vop_bmap_args) -> c_int {
    // SAFETY: the caller's argument block.
    unsafe {
        let vnode = (*ap).a_vp;
        let _ = file("VOP_BMAP", vnode);
        rule("VOP_BMAP", locks::vnode_locked(vnode).is_some(), "the vnode is not locked");
        (*(*vnode).v_op).vop_bmap.map_or(sys::EOPNOTSUPP, |vop| vop(ap))
    }
}

/// ufs_bmap().
unsafe extern "C" fn original_bmap(ap: *mut sys::vop_bmap_args) -> c_int {
    // SAFETY: the caller's argument block, whose pointers are its own or NULL.
    unsafe {
        let file = file("VOP_BMAP", (*ap).a_vp);
        if file.mount.bmap == Bmap::Unsupported {
            return sys::EOPNOTSUPP;
        }
        if let Some(bo) = (*ap).a_bop.as_mut() {
            *bo = file.disk.bufobj;
        }
        let Some(bn) = (*ap).a_bnp.as_mut() else { return 0 };
        may_sleep("VOP_BMAP");
        if file.mount.bmap == Bmap::Fails {
            return sys::EIO;
        }
        let indirect = &file.inode.indirect;
        if (*ap).a_bn < 0 {
            *bn = indirect.place((*ap).a_bn).unwrap_or(-1);
            return 0;
        }
        let lbn = (*ap).a_bn as u64;
        if let Err(errno) = file.maps.bring(&file.disk, indirect, lbn, file.mount.block) {
            return errno;
        }
        let (place, after, before) = file.bmap(lbn);
        *bn = place;
        if let Some(run) = (*ap).a_runp.as_mut() {
            *run = after;
        }
        if let Some(run) = (*ap).a_runb.as_mut() {
            *run = before;
        }
    }
    0
}

/// `gbincore_unlocked`: a buffer for each block of the file that is in memory.
pub extern "C" fn gbincore_unlocked(bo: *mut sys::bufobj, lbn: i64) -> *mut sys::buf {
    static VALID: LazyLock<usize> = LazyLock::new(|| {
        let bp: *mut sys::buf = low::zeroed();
        // SAFETY: fresh memory.
        unsafe { (*bp).b_flags = sys::B_CACHE as u32 };
        bp as usize
    });
    let vnode = bo as usize - std::mem::offset_of!(sys::vnode, v_bufobj);
    let file = file("gbincore_unlocked", vnode as *mut sys::vnode);
    let there = file.maps.has(&file.inode.indirect, lbn);
    if there { *VALID as *mut sys::buf } else { std::ptr::null_mut() }
}

/// `getblk`, of an indirect block: its buffer, which nobody else has any more.
pub extern "C" fn getblk(
    vnode: *mut sys::vnode,
    lbn: i64,
    size: c_int,
    _: c_int,
    _: c_int,
    _: c_int,
) -> *mut sys::buf {
    static OPS: LazyLock<usize> = LazyLock::new(|| {
        let ops: *mut sys::buf_ops = low::zeroed();
        // SAFETY: fresh memory.
        unsafe { (*ops).bop_strategy = Some(read_block) };
        ops as usize
    });
    let call = "getblk";
    may_sleep(call);
    rule(call, locks::vnode_locked(vnode).is_some(), "the vnode is not locked");
    let file = file(call, vnode);
    rule(call, i64::from(size) == file.mount.block as i64, "not the size of a block");
    let there = file.maps.settle(&file.inode.indirect, lbn);
    let bp: *mut sys::buf = graves::born("buffer");
    // SAFETY: fresh memory; the vnode is locked.
    unsafe {
        (*vnode).v_bufobj.bo_ops = *OPS as *mut sys::buf_ops;
        (*bp).b_bufobj = &raw mut (*vnode).v_bufobj;
        (*bp).b_lblkno = lbn;
        (*bp).b_blkno = lbn;
        (*bp).b_bcount = i64::from(size);
        (*bp).b_flags = if there { sys::B_CACHE as u32 } else { sys::B_INVAL as u32 };
        (*bp).b_lock.lk_lock = crate::cpu::curthread() as usize;
    }
    bp
}

/// `bqrelse` of a buffer that was there.
pub extern "C" fn bqrelse(bp: *mut sys::buf) {
    graves::bury(bp);
}

/// `vfs_busy_pages` of a buffer that is to be read.
pub extern "C" fn vfs_busy_pages(bp: *mut sys::buf, clear_modify: c_int) {
    let call = "vfs_busy_pages";
    rule(call, clear_modify == 0, "a read does not make pages clean");
    // SAFETY: the caller's buffer.
    let reads = unsafe { (*bp).b_iocmd } == sys::BIO_READ as u16;
    rule(call, reads, "the buffer is not to be read");
}

/// `bop_strategy` of a file: read an indirect block without anybody waiting.
unsafe extern "C" fn read_block(bo: *mut sys::bufobj, bp: *mut sys::buf) {
    let call = "VOP_STRATEGY";
    let vnode = bo as usize - std::mem::offset_of!(sys::vnode, v_bufobj);
    let file = file(call, vnode as *mut sys::vnode);
    // SAFETY: the caller's buffer, which is the disk's now.
    let buf = unsafe { &*bp };
    let flags = buf.b_flags as i32;
    rule(call, flags & sys::B_ASYNC != 0 && flags & sys::B_INVAL == 0, "not B_ASYNC, or B_INVAL");
    rule(call, crate::buf::is_disowned(bp), "a thread has the buffer's lock: BUF_KERNPROC()");
    rule(call, buf.b_iooffset == buf.b_blkno * 512, "b_iooffset is not b_blkno's");
    let place = file.inode.indirect.place(buf.b_lblkno);
    rule(call, place == Some(buf.b_blkno), "the block is elsewhere");
    let start = buf.b_iooffset as u64;
    file.maps.begin(buf.b_lblkno);
    let (lbn, end, theirs) = (buf.b_lblkno, start + buf.b_bcount as u64, file.clone());
    graves::bury(bp);
    file.disk.read(start..end, move |outcome| theirs.maps.end(lbn, outcome.is_ok()));
}

/// `inmem`: no pages without a buffer here.
pub extern "C" fn inmem(vnode: *mut sys::vnode, _: i64) -> bool {
    rule("inmem", locks::vnode_locked(vnode).is_some(), "the vnode is not locked");
    false
}

/// Calls of the original async VOP are emulated over the sync one.
pub static EMULATED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" fn original_getpages(ap: *mut sys::vop_getpages_args) -> c_int {
    ORIGINAL[0].fetch_add(1, Ordering::Relaxed);
    // SAFETY: the caller's argument block.
    unsafe {
        let ap = &*ap;
        let (behind, ahead) = (ap.a_rbehind, ap.a_rahead);
        original(ap.a_vp, ap.a_m, ap.a_count, behind, ahead, None, stock::getpages)
    }
}

unsafe extern "C" fn original_getpages_async(ap: *mut sys::vop_getpages_async_args) -> c_int {
    ORIGINAL[1].fetch_add(1, Ordering::Relaxed);
    // SAFETY: the caller's argument block.
    unsafe {
        let ap = &*ap;
        let iodone = ap.a_iodone.map(|iodone| (iodone, ap.a_arg));
        let (behind, ahead) = (ap.a_rbehind, ap.a_rahead);
        original(ap.a_vp, ap.a_m, ap.a_count, behind, ahead, iodone, |call| {
            let sector = call.file.disk().sector();
            match call.iodone {
                Some(_) if !EMULATED.load(Ordering::Relaxed) => stock::getpages_async(call, sector),
                _ => stock::emulation(call),
            }
        })
    }
}

/// A call of an original VOP, as its model wants it.
unsafe fn original(
    vnode: *mut sys::vnode,
    array: *mut *mut sys::vm_page,
    count: c_int,
    behind: *mut c_int,
    ahead: *mut c_int,
    iodone: Option<(Iodone, *mut c_void)>,
    serve: impl FnOnce(&mut stock::Call) -> c_int,
) -> c_int {
    let name = "the original VOP";
    may_sleep(name);
    // SAFETY: the caller's array and places.
    unsafe {
        let mut call = stock::Call {
            file: file(name, vnode),
            array,
            pages: (0..count as usize).map(|i| Page(*array.add(i))).collect(),
            behind: behind.as_ref().map_or(0, |n| *n as usize),
            ahead: ahead.as_ref().map_or(0, |n| *n as usize),
            iodone,
        };
        let code = serve(&mut call);
        for (place, n) in [(behind, call.behind), (ahead, call.ahead)] {
            if let Some(place) = place.as_mut() {
                *place = n as c_int;
            }
        }
        code
    }
}
