// SPDX-License-Identifier: BSD-2-Clause
//! A file's life: opened, closed, and taken away by a forced unmount.

use std::{
    ffi::c_char,
    ptr,
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use asyncpager::kpi::sys;

use crate::{
    checks::{quarantine, rules::rule},
    disk::{device::Disk, ufs::Inode},
    ffs::{
        dinode,
        file::{File, Mount},
        ufsmount::fill_ufsmount,
        vnodeops::vectors,
        writeback,
    },
    host::{clock::Patience, low_memory, schedule},
    kernel::{
        vm_object,
        vnode::{self, VnodeLocked, with_vnode},
    },
};

impl File {
    /// Opens a file: a vnode with its object, and no pages yet.
    pub fn open(inode: Inode, mount: Mount, disk: &Arc<Disk>, ufs2: bool) -> Arc<Self> {
        let vnode: *mut sys::vnode = quarantine::allocate("vnode");
        let mp: *mut sys::mount = quarantine::allocate("mount");
        let ip: *mut sys::inode = quarantine::allocate("inode");
        let ump: *mut sys::ufsmount = quarantine::allocate("ufsmount");
        let object = vm_object::new_object(inode.size);
        // SAFETY: fresh memory of the right types.
        unsafe {
            (*mp).mnt_stat.f_iosize = mount.block;
            (*mp).mnt_flag = mount.flags;
            (*mp).mnt_kern_flag = if mount.unmapped { sys::MNTK_UNMAPPED_BUFS } else { 0 };
            // Each file has a mount of its own here, but a disk is mounted
            // once: the fields that tell mounts apart are equal for all its files.
            (*mp).mnt_gen = (disk.bufobj as i32).wrapping_sub(mp as i32);
            for (to, from) in (*mp).mnt_stat.f_mntonname.iter_mut().zip(b"/testbed\0") {
                *to = *from as c_char;
            }
            (*ip).i_vnode = vnode;
            (*ip).i_number = inode.number;
            dinode::allocate(ip, inode.indirect.wide);
            dinode::set_size(ip, inode.size);
            let fragment = inode.indirect.fragment.max(512);
            let fs = quarantine::allocate("superblock");
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
        let file = Arc::new(Self::new(inode, vnode, object, mount, disk));
        vnode::register(vnode, file.clone());
        file
    }

    /// Closes a file that is not in use: no reference and no page may be left busied.
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
        writeback::sync(self);
        vm_object::drop_pages(self.object);
        self.gone();
    }

    /// A forced unmount, or reclaim: vgone() under the exclusive vnode lock frees the
    /// mount and the inode. The vnode and the object stay while they are held.
    pub fn gone(&self) {
        let locked = VnodeLocked::new(self.vnode, true, "vgone");
        with_vnode("vgone", self.vnode, |fields| {
            fields.v_irflag |= sys::VIRF_DOOMED as i16;
        });
        // vinvalbuf() with V_SAVE.
        writeback::sync(self);
        vm_object::invalidate(self.object);
        vm_object::destroy(self.object);
        let (mount, inode) = with_vnode("vgone", self.vnode, |fields| {
            fields.v_bufobj.bo_object = ptr::null_mut();
            fields.v_op = dead_vector();
            fields.v_type = sys::VBAD;
            (
                std::mem::replace(&mut fields.v_mount, ptr::null_mut()),
                std::mem::replace(&mut fields.v_data, ptr::null_mut()),
            )
        });
        // SAFETY: live until here.
        unsafe { dinode::free(inode.cast()) };
        drop(locked);
        // SAFETY: live until it is freed.
        let ump = unsafe { (*mount).mnt_data }.cast::<sys::ufsmount>();
        // SAFETY: as above.
        quarantine::free(unsafe { (*ump).um_fs });
        quarantine::free(ump);
        quarantine::free(mount);
        vnode::vrele(self.vnode);
    }
}

/// `dead_vnodeops`, which serve nothing.
fn dead_vector() -> *mut sys::vop_vector {
    static PLACE: LazyLock<usize> =
        LazyLock::new(|| low_memory::zeroed::<sys::vop_vector>() as usize);
    *PLACE as *mut sys::vop_vector
}
