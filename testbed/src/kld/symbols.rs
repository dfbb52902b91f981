// SPDX-License-Identifier: BSD-2-Clause
//! The kernel's symbols, which a module is linked with.

use std::{collections::HashMap, ffi::c_int, mem::offset_of};

use asyncpager::kpi::sys;

use crate::{
    disk::request,
    ffs::{buffers, ufsmount, vnodeops},
    host::{clock, elf::Symbol, low_memory},
    kernel::{
        buf, callout, condvar, counter, kva, malloc, module, mount, mutex, pmap, proc, resident,
        rwlock, sched, sx, sysctl, systm, taskqueue, ucred, uma, vm_object, vm_page, vnode,
        vnode_if,
    },
    kld::options::Options,
};

/// The kernel's symbols, by name.
pub fn symbols(options: &Options) -> HashMap<&'static str, Symbol> {
    macro_rules! functions {
        ($($name:literal => $function:expr),* $(,)?) => {
            [$(($name, Symbol::Function($function as *const () as usize))),*]
        };
    }
    let mut all = HashMap::from(functions! {
        "PHYS_TO_VM_PAGE" => vm_page::phys_to_vm_page,
        "VOP_BMAP_APV" => vnode_if::vop_bmap_apv,
        "VOP_UNLOCK_APV" => vnode::vop_unlock_apv,
        "__mtx_lock_flags" => mutex::mtx_lock,
        "__mtx_unlock_flags" => mutex::mtx_unlock,
        "__mtx_unlock_spin_flags" => sched::thread_unlock,
        "__rw_rlock" => rwlock::rw_rlock,
        "__rw_try_rlock" => rwlock::rw_try_rlock,
        "_callout_init_lock" => callout::callout_init_lock,
        "_callout_stop_safe" => callout::callout_stop,
        "__lockmgr_args" => buf::lockmgr,
        "_cv_wait" => condvar::cv_wait,
        "_lockmgr_disown" => buf::lockmgr_disown,
        "_mtx_destroy" => mutex::mtx_destroy,
        "_mtx_init" => mutex::mtx_init,
        "_mtx_trylock_flags_" => mutex::mtx_trylock,
        "_rw_runlock_cookie" => rwlock::rw_runlock,
        "_rw_wlock_cookie" => rwlock::rw_wlock,
        "_rw_wunlock_cookie" => rwlock::rw_wunlock,
        "_sx_slock" => sx::sx_slock,
        "_sx_sunlock" => sx::sx_sunlock,
        "_sx_xunlock" => sx::sx_xunlock,
        "_vn_lock" => vnode::vn_lock,
        "bdone" => buf::bdone,
        "binuptime" => clock::binuptime,
        "bqrelse" => buffers::bqrelse,
        "bwait" => buf::bwait,
        "callout_init" => callout::callout_init,
        "callout_reset_sbt_on" => callout::callout_reset,
        "counter_u64_alloc" => counter::counter_u64_alloc,
        "counter_u64_fetch" => counter::counter_u64_fetch,
        "counter_u64_free" => counter::counter_u64_free,
        "crfree" => ucred::crfree,
        "crhold" => ucred::crhold,
        "cv_destroy" => condvar::cv_destroy,
        "cv_init" => condvar::cv_init,
        "cv_signal" => condvar::cv_signal,
        "critical_enter_KBI" => sched::critical_enter,
        "critical_exit_KBI" => sched::critical_exit,
        "eventratecheck" => systm::eventratecheck,
        "free" => malloc::free,
        "gbincore_unlocked" => buffers::gbincore_unlocked,
        "getbinuptime" => clock::getbinuptime,
        "getblk" => buffers::getblk,
        "inmem" => buffers::inmem,
        "kern_yield" => sched::kern_yield,
        "kernel_sysctlbyname" => sysctl::kernel_sysctlbyname,
        "kva_alloc" => kva::kva_alloc,
        "kva_free" => kva::kva_free,
        "lockdestroy" => buf::lockdestroy,
        "lockinit" => buf::lockinit,
        "malloc" => malloc::malloc,
        "malloc_init" => malloc::malloc_init,
        "malloc_uninit" => malloc::malloc_uninit,
        "memcpy" => libc::memcpy,
        "memmove" => libc::memmove,
        "memset" => libc::memset,
        "module_register_init" => module::module_register_init,
        "panic" => systm::panic,
        "pause_sbt" => systm::pause_sbt,
        "pbgetbo" => buf::pbgetbo,
        "pbrelbo" => buf::pbrelbo,
        "pmap_qenter" => pmap::pmap_qenter,
        "pmap_qremove" => pmap::pmap_qremove,
        "pmap_zero_page_area" => pmap::pmap_zero_page_area,
        "printf" => systm::printf,
        "sched_bind" => sched::sched_bind,
        "sched_unbind" => sched::sched_unbind,
        "strcmp" => libc::strcmp,
        "strlcpy" => systm::strlcpy,
        "sx_try_xlock_" => sx::sx_try_xlock,
        "sysctl_add_oid" => sysctl::sysctl_add_oid,
        "sysctl_ctx_free" => sysctl::sysctl_ctx_free,
        "sysctl_ctx_init" => sysctl::sysctl_ctx_init,
        "sysctl_handle_bool" => sysctl::sysctl_handle_bool,
        "sysctl_handle_int" => sysctl::sysctl_handle_int,
        "sysctl_handle_counter_u64" => sysctl::sysctl_handle_counter_u64,
        "taskqueue_cancel" => taskqueue::taskqueue_cancel,
        "taskqueue_create" => taskqueue::taskqueue_create,
        "taskqueue_drain" => taskqueue::taskqueue_drain,
        "taskqueue_drain_all" => taskqueue::taskqueue_drain_all,
        "taskqueue_enqueue" => taskqueue::taskqueue_enqueue,
        "taskqueue_free" => taskqueue::taskqueue_free,
        "taskqueue_start_threads" => taskqueue::taskqueue_start_threads,
        "taskqueue_thread_enqueue" => taskqueue::taskqueue_thread_enqueue,
        "tdfind" => proc::tdfind,
        "thread_lock_flags_" => sched::thread_lock,
        "uma_zalloc_arg" => uma::uma_zalloc_arg,
        "uma_zcreate" => uma::uma_zcreate,
        "uma_zdestroy" => uma::uma_zdestroy,
        "uma_zfree_arg" => uma::uma_zfree_arg,
        "vdrop" => vnode::vdrop,
        "vget" => vnode::vget,
        "vhold" => vnode::vhold,
        "vholdnz" => vnode::vholdnz,
        "vfs_busy" => mount::vfs_busy,
        "vfs_unbusy" => mount::vfs_unbusy,
        "vfs_busy_pages" => buffers::vfs_busy_pages,
        "vm_free_count" => vm_page::vm_free_count,
        "vm_object_reference" => vm_object::vm_object_reference,
        "vm_object_deallocate" => vm_object::vm_object_deallocate,
        "vm_object_pip_add" => vm_object::vm_object_pip_add,
        "vm_object_pip_wakeup" => vm_object::vm_object_pip_wakeup,
        "vm_object_pip_wakeupn" => vm_object::vm_object_pip_wakeupn,
        "vm_page_alloc" => vm_page::vm_page_alloc,
        "vm_page_alloc_noobj" => vm_page::vm_page_alloc_noobj,
        "vm_page_free" => vm_page::vm_page_free,
        "vm_page_free_invalid" => vm_page::vm_page_free_invalid,
        "vm_page_lookup" => vm_page::vm_page_lookup,
        "vm_page_readahead_finish" => vm_page::vm_page_readahead_finish,
        "vm_page_set_valid_range" => vm_page::vm_page_set_valid_range,
        "vm_page_unwire_noq" => vm_page::vm_page_unwire_noq,
        "vm_page_valid" => vm_page::vm_page_valid,
        "vm_page_zero_invalid" => vm_page::vm_page_zero_invalid,
        "vput" => vnode::vput,
        "vref" => vnode::vref,
        "vrele" => vnode::vrele,
    });
    let mut data = |name, at: *mut u8| all.insert(name, Symbol::Data(at as usize));
    let [one, two] = vnodeops::vectors();
    data("ffs_vnodeops1", one.cast());
    data("ffs_vnodeops2", two.cast());
    data("sysctl___vfs", sysctl::vfs().cast());
    data("topology_lock", low_memory::zeroed::<[u64; 16]>().cast());
    for (name, value) in [
        ("maxphys", buf::MAXPHYS as u64),
        ("bogus_page", resident::Page::bogus().0 as u64),
        ("unmapped_buf", request::unmapped() as u64),
        ("unmapped_buf_allowed", 1),
        ("osreldate", options.osreldate as u64),
        ("mp_maxid", 1),
        ("all_cpus", 3),
        ("nswbuf", 32),
        ("tick_sbt", (clock::SECOND / 1000) as u64),
        ("hz", 1000),
    ] {
        data(name, variable(value));
    }
    for name in ["M_DEVBUF", "M_TEMP"] {
        let kind: *mut sys::malloc_type = low_memory::zeroed();
        // SAFETY: fresh memory.
        unsafe { (*kind).ks_shortdesc = c"kernel".as_ptr() };
        data(name, kind.cast());
    }
    let (mountlist, rootvnode) = ufsmount::boot(!options.boot);
    data("mountlist", mountlist);
    data("mountlist_mtx", mount::mountlist_mtx());
    data("rootvnode", rootvnode);
    data("ffs_rdonly", ufsmount::ffs_rdonly());
    data("allproc", proc::allproc());
    data("allproc_lock", low_memory::zeroed::<sys::sx>().cast());
    data("proc0", proc::proc0().cast());
    data("vm_cnt", vm_cnt().cast());
    for (name, at) in [
        ("vop_getpages_desc", offset_of!(sys::vop_vector, vop_getpages)),
        ("vop_getpages_async_desc", offset_of!(sys::vop_vector, vop_getpages_async)),
        ("vop_bmap_desc", offset_of!(sys::vop_vector, vop_bmap)),
        ("vop_unlock_desc", offset_of!(sys::vop_vector, vop_unlock)),
    ] {
        let desc: *mut sys::vnodeop_desc = low_memory::zeroed();
        // SAFETY: fresh memory.
        unsafe { (*desc).vdesc_vop_offset = at as c_int };
        data(name, desc.cast());
    }
    all
}

fn variable(value: u64) -> *mut u8 {
    let at = low_memory::zeroed::<[u64; 16]>();
    // SAFETY: fresh memory.
    unsafe { (*at)[0] = value };
    at.cast()
}

/// The system's counters; those that the module touches go nowhere.
fn vm_cnt() -> *mut sys::vmmeter {
    let vmmeter: *mut sys::vmmeter = low_memory::zeroed();
    // SAFETY: fresh memory.
    unsafe {
        (*vmmeter).v_vnodein = counter::spare();
        (*vmmeter).v_vnodepgsin = counter::spare();
        (*vmmeter).v_free_target = vm_page::FREE_TARGET;
        (*vmmeter).v_free_min = vm_page::FREE_TARGET / 4;
    }
    vmmeter
}
