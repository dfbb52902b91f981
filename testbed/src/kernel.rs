// SPDX-License-Identifier: BSD-2-Clause
//! The kernel around the module: its symbols, and kldload and kldunload.

use std::{
    collections::HashMap,
    ffi::{CStr, c_char, c_int, c_void},
    mem::offset_of,
    path::Path,
    sync::{Mutex, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use asyncpager::kpi::sys;

use crate::{
    buf, callout, clock, condvar, cpu,
    differs::{self, Difference},
    disk,
    elf::{Loaded, Symbol},
    graves, locks, low, malloc, mount,
    rules::{may_sleep, record, rule, violation},
    schedule, sysctl, taskqueue, uma, vfs, vm, vnode,
};

/// What kldload is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The kernel's `osreldate`.
    pub osreldate: c_int,
    /// In what the kernel differs from the headers.
    pub differs: Option<Difference>,
    /// It is the loader that loads the module, and no filesystem is mounted yet.
    pub boot: bool,
    /// Loader tunables.
    pub tunables: Vec<(String, String)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { osreldate: 1_402_000, differs: None, boot: false, tunables: Vec::new() }
    }
}

static REGISTERED: Mutex<Vec<usize>> = Mutex::new(Vec::new());
static MESSAGES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Lines that the module has printed.
pub fn messages() -> Vec<String> {
    MESSAGES.lock().unwrap().clone()
}

/// A loaded module.
pub struct Module {
    data: *const sys::moduledata,
    /// Its name, by its moduledata.
    pub name: String,
    /// Its SYSUNINITs, in the order in which they run.
    uninits: Vec<*const sys::sysinit>,
}

// SAFETY: the module's data stays mapped for ever; its events are called
// through one owner at a time.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// kldload: link, check dependencies, run the module's SYSINITs, MOD_LOAD.
    pub fn load(path: &Path, options: &Options) -> Result<Self> {
        cpu::attach();
        differs::set(options.differs);
        sysctl::tunables(options.tunables.iter().cloned());
        let loaded = Loaded::load(path, &symbols(options))?;
        for metadata in loaded.set::<sys::mod_metadata>("set_modmetadata_set") {
            // SAFETY: relocated structures of the module.
            unsafe {
                let metadata = &*metadata;
                let on = CStr::from_ptr(metadata.md_cval).to_string_lossy();
                if metadata.md_type == sys::MDT_DEPEND && on == "kernel" {
                    let depend = &*metadata.md_data.cast::<sys::mod_depend>();
                    let range = depend.md_ver_minimum..=depend.md_ver_maximum;
                    ensure!(
                        range.contains(&options.osreldate),
                        "the module depends on a kernel of {range:?}, and this is {}",
                        options.osreldate
                    );
                }
            }
        }
        REGISTERED.lock().unwrap().clear();
        let mut inits = loaded.set::<sys::sysinit>("set_sysinit_set");
        ensure!(!inits.is_empty(), "{} has no SYSINIT: it would do nothing", path.display());
        // SAFETY: relocated structures of the module, run once, in order.
        unsafe {
            inits.sort_by_key(|init| ((**init).subsystem, (**init).order));
            for init in inits {
                if let Some(func) = (*init).func {
                    func((*init).udata);
                }
            }
        }
        let Some(data) =
            REGISTERED.lock().unwrap().first().map(|data| *data as *const sys::moduledata)
        else {
            bail!("{} registers no module", path.display());
        };
        // SAFETY: what the module registered; its name is a C string.
        let name = unsafe { CStr::from_ptr((*data).name) }.to_string_lossy().into_owned();
        let mut uninits: Vec<_> = loaded
            .set::<sys::sysinit>("set_sysuninit_set")
            .into_iter()
            .map(|init| init.cast_const())
            .collect();
        // SAFETY: relocated structures of the module.
        uninits
            .sort_by_key(|init| unsafe { std::cmp::Reverse(((**init).subsystem, (**init).order)) });
        let module = Self { data, name, uninits };
        let code = if differs::is(Difference::TdSa) { 0 } else { sys::SYS_kldload as u32 };
        let loaded = if options.boot {
            cpu::in_proc0(|| module.event(sys::MOD_LOAD))
        } else {
            cpu::in_syscall(code, || module.event(sys::MOD_LOAD))
        };
        match loaded {
            0 => Ok(module),
            errno => {
                // As module_register_init() does, though nothing was loaded.
                module.event(sys::MOD_UNLOAD);
                module.uninit();
                check_balance();
                bail!(
                    "{} refused to load, errno {errno}: {}",
                    module.name,
                    messages().last().map_or("", String::as_str)
                )
            }
        }
    }

    fn event(&self, what: u32) -> c_int {
        // SAFETY: the module's own event handler, serialized as the kernel does.
        let errno = unsafe {
            (*self.data).evhand.map_or(0, |handler| {
                handler(std::ptr::null_mut(), what as c_int, (*self.data).priv_)
            })
        };
        cpu::unbound("module event");
        errno
    }

    /// kldunload: MOD_QUIESCE, then MOD_UNLOAD. The errno of a refusal.
    pub fn unload(&self) -> Result<(), c_int> {
        record("kldunload", format_args!("{}", self.name));
        for what in [sys::MOD_QUIESCE, sys::MOD_UNLOAD] {
            match self.event(what) {
                0 => {}
                errno => return Err(errno),
            }
        }
        self.uninit();
        check_left();
        Ok(())
    }

    fn uninit(&self) {
        // SAFETY: relocated structures of the module, run once, in order.
        unsafe {
            for init in &self.uninits {
                if let Some(func) = (**init).func {
                    func((**init).udata);
                }
            }
        }
    }
}

/// A module is gone, and none of its own things may outlive its code.
fn check_left() {
    for (what, n) in [
        ("mutexes", locks::mutexes()),
        ("callouts pending or running", callout::active()),
        ("taskqueues", taskqueue::queues()),
        ("allocations of malloc(9)", malloc::allocations()),
    ] {
        rule("after kldunload", n == 0, format_args!("{n} {what} are left"));
    }
    malloc::check_freed();
    callout::forget();
}

/// Everything that a module may hold has been given back.
pub fn check_balance() {
    let call = "after kldunload";
    rule(call, vfs::restored(), "an original VOP is not restored");
    for (what, n) in [
        ("bufs", buf::bufs()),
        ("bytes of address space", buf::address_space()),
        ("zones", uma::zones()),
        ("condition variables", condvar::condvars()),
        ("counters", cpu::counters()),
        ("sysctl nodes", sysctl::registered()),
        ("mounts busy", mount::BUSY.load(Ordering::Relaxed)),
        ("mapped pages", vm::MAPPED.load(Ordering::Relaxed)),
        ("pages in use", vm::used()),
        ("references on creds", buf::CREDS.load(Ordering::Relaxed) as usize),
    ] {
        rule(call, n == 0, format_args!("{n} {what} are left"));
    }
    let alive = graves::alive();
    rule(call, alive.is_empty(), format_args!("still alive: {}", alive.join(", ")));
    check_left();
}

fn symbols(options: &Options) -> HashMap<&'static str, Symbol> {
    macro_rules! functions {
        ($($name:literal => $function:expr),* $(,)?) => {
            [$(($name, Symbol::Function($function as *const () as usize))),*]
        };
    }
    let mut all = HashMap::from(functions! {
        "PHYS_TO_VM_PAGE" => vm::phys_to_vm_page,
        "VOP_BMAP_APV" => vfs::vop_bmap_apv,
        "VOP_UNLOCK_APV" => vnode::vop_unlock_apv,
        "__mtx_lock_flags" => locks::mtx_lock,
        "__mtx_unlock_flags" => locks::mtx_unlock,
        "__mtx_unlock_spin_flags" => cpu::thread_unlock,
        "__rw_rlock" => locks::rw_rlock,
        "__rw_try_rlock" => locks::rw_try_rlock,
        "_callout_init_lock" => callout::callout_init_lock,
        "_callout_stop_safe" => callout::callout_stop,
        "__lockmgr_args" => buf::lockmgr,
        "_cv_wait" => condvar::cv_wait,
        "_lockmgr_disown" => buf::lockmgr_disown,
        "_mtx_destroy" => locks::mtx_destroy,
        "_mtx_init" => locks::mtx_init,
        "_mtx_trylock_flags_" => locks::mtx_trylock,
        "_rw_runlock_cookie" => locks::rw_runlock,
        "_rw_wlock_cookie" => locks::rw_wlock,
        "_rw_wunlock_cookie" => locks::rw_wunlock,
        "_sx_slock" => locks::sx_slock,
        "_sx_sunlock" => locks::sx_sunlock,
        "_sx_xunlock" => locks::sx_xunlock,
        "_vn_lock" => vnode::vn_lock,
        "bdone" => buf::bdone,
        "binuptime" => clock::binuptime,
        "bqrelse" => vfs::bqrelse,
        "bwait" => buf::bwait,
        "callout_init" => callout::callout_init,
        "callout_reset_sbt_on" => callout::callout_reset,
        "counter_u64_alloc" => cpu::counter_u64_alloc,
        "counter_u64_fetch" => cpu::counter_u64_fetch,
        "counter_u64_free" => cpu::counter_u64_free,
        "crfree" => buf::crfree,
        "crhold" => buf::crhold,
        "cv_destroy" => condvar::cv_destroy,
        "cv_init" => condvar::cv_init,
        "cv_signal" => condvar::cv_signal,
        "critical_enter_KBI" => cpu::critical_enter,
        "critical_exit_KBI" => cpu::critical_exit,
        "eventratecheck" => eventratecheck,
        "free" => malloc::free,
        "gbincore_unlocked" => vfs::gbincore_unlocked,
        "getbinuptime" => clock::getbinuptime,
        "getblk" => vfs::getblk,
        "inmem" => vfs::inmem,
        "kern_yield" => kern_yield,
        "kernel_sysctlbyname" => sysctl::kernel_sysctlbyname,
        "kva_alloc" => buf::kva_alloc,
        "kva_free" => buf::kva_free,
        "lockdestroy" => buf::lockdestroy,
        "lockinit" => buf::lockinit,
        "malloc" => malloc::malloc,
        "malloc_init" => malloc::malloc_init,
        "malloc_uninit" => malloc::malloc_uninit,
        "memcpy" => libc::memcpy,
        "memmove" => libc::memmove,
        "memset" => libc::memset,
        "module_register_init" => module_register_init,
        "panic" => panic,
        "pause_sbt" => pause_sbt,
        "pbgetbo" => buf::pbgetbo,
        "pbrelbo" => buf::pbrelbo,
        "pmap_qenter" => vm::pmap_qenter,
        "pmap_qremove" => vm::pmap_qremove,
        "pmap_zero_page_area" => vm::pmap_zero_page_area,
        "printf" => printf,
        "sched_bind" => cpu::sched_bind,
        "sched_unbind" => cpu::sched_unbind,
        "strcmp" => libc::strcmp,
        "strlcpy" => strlcpy,
        "sx_try_xlock_" => locks::sx_try_xlock,
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
        "tdfind" => cpu::tdfind,
        "thread_lock_flags_" => cpu::thread_lock,
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
        "vfs_busy_pages" => vfs::vfs_busy_pages,
        "vm_free_count" => vm::vm_free_count,
        "vm_object_reference" => vm::vm_object_reference,
        "vm_object_deallocate" => vm::vm_object_deallocate,
        "vm_object_pip_add" => vm::vm_object_pip_add,
        "vm_object_pip_wakeup" => vm::vm_object_pip_wakeup,
        "vm_object_pip_wakeupn" => vm::vm_object_pip_wakeupn,
        "vm_page_alloc" => vm::vm_page_alloc,
        "vm_page_alloc_noobj" => vm::vm_page_alloc_noobj,
        "vm_page_free" => vm::vm_page_free,
        "vm_page_free_invalid" => vm::vm_page_free_invalid,
        "vm_page_lookup" => vm::vm_page_lookup,
        "vm_page_readahead_finish" => vm::vm_page_readahead_finish,
        "vm_page_set_valid_range" => vm::vm_page_set_valid_range,
        "vm_page_unwire_noq" => vm::vm_page_unwire_noq,
        "vm_page_valid" => vm::vm_page_valid,
        "vm_page_zero_invalid" => vm::vm_page_zero_invalid,
        "vput" => vnode::vput,
        "vref" => vnode::vref,
        "vrele" => vnode::vrele,
    });
    let mut data = |name, at: *mut u8| all.insert(name, Symbol::Data(at as usize));
    let [one, two] = vfs::vectors();
    data("ffs_vnodeops1", one.cast());
    data("ffs_vnodeops2", two.cast());
    data("sysctl___vfs", sysctl::vfs().cast());
    data("topology_lock", low::zeroed::<[u64; 16]>().cast());
    for (name, value) in [
        ("maxphys", buf::MAXPHYS as u64),
        ("bogus_page", vm::Page::bogus().0 as u64),
        ("unmapped_buf", disk::unmapped() as u64),
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
        let kind: *mut sys::malloc_type = low::zeroed();
        // SAFETY: fresh memory.
        unsafe { (*kind).ks_shortdesc = c"kernel".as_ptr() };
        data(name, kind.cast());
    }
    let (mountlist, rootvnode) = mount::boot(!options.boot);
    data("mountlist", mountlist);
    data("mountlist_mtx", mount::mountlist_mtx());
    data("rootvnode", rootvnode);
    data("ffs_rdonly", mount::ffs_rdonly());
    data("allproc", cpu::allproc());
    data("allproc_lock", low::zeroed::<sys::sx>().cast());
    data("proc0", cpu::proc0().cast());
    data("vm_cnt", vm_cnt().cast());
    for (name, at) in [
        ("vop_getpages_desc", offset_of!(sys::vop_vector, vop_getpages)),
        ("vop_getpages_async_desc", offset_of!(sys::vop_vector, vop_getpages_async)),
        ("vop_bmap_desc", offset_of!(sys::vop_vector, vop_bmap)),
        ("vop_unlock_desc", offset_of!(sys::vop_vector, vop_unlock)),
    ] {
        let desc: *mut sys::vnodeop_desc = low::zeroed();
        // SAFETY: fresh memory.
        unsafe { (*desc).vdesc_vop_offset = at as c_int };
        data(name, desc.cast());
    }
    all
}

fn variable(value: u64) -> *mut u8 {
    let at = low::zeroed::<[u64; 16]>();
    // SAFETY: fresh memory.
    unsafe { (*at)[0] = value };
    at.cast()
}

/// The system's counters; those that the module touches go nowhere.
fn vm_cnt() -> *mut sys::vmmeter {
    let vmmeter: *mut sys::vmmeter = low::zeroed();
    // SAFETY: fresh memory.
    unsafe {
        (*vmmeter).v_vnodein = cpu::spare_counter();
        (*vmmeter).v_vnodepgsin = cpu::spare_counter();
        (*vmmeter).v_free_target = vm::FREE_TARGET;
        (*vmmeter).v_free_min = vm::FREE_TARGET / 4;
    }
    vmmeter
}

extern "C" fn kern_yield(_: c_int) {
    may_sleep("kern_yield");
    cpu::yield_cpu();
}

extern "C" fn module_register_init(data: *const c_void) {
    REGISTERED.lock().unwrap().push(data as usize);
}

unsafe extern "C" fn strlcpy(to: *mut c_char, from: *const c_char, size: usize) -> usize {
    // SAFETY: strlcpy(3)'s contract.
    unsafe {
        let bytes = CStr::from_ptr(from).to_bytes();
        if size > 0 {
            let n = bytes.len().min(size - 1);
            std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), to, n);
            to.add(n).write(0);
        }
        bytes.len()
    }
}

/// printf(9); the module prints "%s" and one string only.
unsafe extern "C" fn printf(format: *const c_char, text: *const c_char) -> c_int {
    // SAFETY: C strings, by the rule checked first.
    unsafe {
        rule("printf", CStr::from_ptr(format) == c"%s", "a format that the testbed does not know");
        let line = CStr::from_ptr(text).to_string_lossy().trim_end().to_string();
        eprintln!("kernel: {line}");
        MESSAGES.lock().unwrap().push(line);
    }
    0
}

unsafe extern "C" fn panic(_: *const c_char, text: *const c_char) -> ! {
    // SAFETY: a C string.
    violation("panic", unsafe { CStr::from_ptr(text) }.to_string_lossy());
}

extern "C" fn pause_sbt(_: *const c_char, sbt: i64, _: i64, _: c_int) -> c_int {
    disk::waits("pause_sbt");
    if schedule::is_one_thread() {
        if !schedule::pump() {
            clock::advance_to(clock::now() + sbt);
        }
    } else {
        clock::sleep(sbt);
    }
    0
}

/// At most so many in a second.
extern "C" fn eventratecheck(_: *mut sys::timeval, count: *mut c_int, most: c_int) -> c_int {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap();
    // SAFETY: the caller's counter.
    unsafe {
        if last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1)) {
            *last = Some(Instant::now());
            *count = 0;
        }
        *count += 1;
        c_int::from(*count <= most)
    }
}
