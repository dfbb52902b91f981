// SPDX-License-Identifier: BSD-2-Clause
//! Each rule of the KPI that no mutant of the module can break is broken here
//! once, to show that it is watched.

use std::{
    ffi::{c_int, c_void},
    ptr,
    sync::{Arc, atomic::Ordering},
};

use anyhow::{Result, anyhow, bail};
use asyncpager::kpi::sys;

use crate::{
    callout, cpu,
    disk::{self, Disk},
    indirect::Indirect,
    locks, low, malloc, pager,
    rules::{self, Context},
    schedule, sendfile, stock, taskqueue,
    ufs::Inode,
    vfs::{Bmap, File, Mount},
    vm::{self, Page},
    vnode, witness,
};

/// A rule's name, words that its violation has to say, and how to break it.
type Breach = (&'static str, &'static str, fn());

/// All of them.
pub const ALL: &[Breach] = &[
    ("order-reversed", "lock order reversal", order_reversed),
    ("order-reversed-by-way-of-a-third", "lock order reversal", order_by_way_of_a_third),
    ("order-of-two-instances", "lock order reversal between two of class twins", twins_reversed),
    ("second-of-a-class", "a second lock of class lone", second_of_a_class),
    ("two-objects", "a second lock of class vm object", two_objects),
    ("mutex-recursed", "must not recurse", mutex_recursed),
    ("object-lock-recursed", "must not recurse", object_lock_recursed),
    ("mutex-not-owned", "does not hold", mutex_not_owned),
    ("rlock-released-as-wlock", "the other mode", wrong_mode),
    ("mutex-not-initialized", "not an initialized mutex", mutex_not_initialized),
    ("mutex-initialized-twice", "is initialized already", mutex_initialized_twice),
    ("mutex-used-after-destroy", "not an initialized mutex", mutex_used_after_destroy),
    ("mutex-destroyed-recursed", "the mutex is recursed", mutex_destroyed_recursed),
    ("sleeping-with-a-mutex", "sleeping with a lone lock held since mtx_lock at here.c:7", asleep),
    ("vnode-lock-with-a-mutex", "which may sleep, with a lone held", vnode_lock_with_a_mutex),
    ("callout-sleeps", "sleeping in a callout thread", callout_sleeps),
    ("callout-keeps-a-mutex", "returned with a lone lock held", callout_keeps_a_mutex),
    ("callout-not-initialized", "not an initialized callout", callout_not_initialized),
    ("callout-initialized-while-pending", "is pending or running", callout_reinitialized),
    ("callout-without-its-mutex", "the callout's mutex is not held", callout_without_its_mutex),
    ("callout-drained-with-a-mutex", "sleeping with a lone lock held", callout_drained_locked),
    ("callout-freed-while-pending", "a callout in it is pending", callout_freed),
    ("callout-drains-itself", "sleeping in a callout thread", callout_drains_itself),
    ("task-on-a-freed-queue", "not a live taskqueue", task_on_a_freed_queue),
    ("task-without-a-thread", "has no thread yet", task_without_a_thread),
    ("task-not-initialized", "not initialized", task_not_initialized),
    ("task-drains-itself", "draining a task from its own handler", task_drains_itself),
    ("task-keeps-a-mutex", "returned with a lone lock held", task_keeps_a_mutex),
    ("task-freed-while-queued", "a task in it is queued", task_freed),
    ("freed-twice", "freed twice", freed_twice),
    ("freed-as-another-type", "is freed as two", freed_as_another_type),
    ("written-behind-the-end", "wrote behind the 24 bytes", written_behind),
    ("written-after-free", "written to after free", written_after_free),
    ("allocation-left", "1 allocations of type one are left", allocation_left),
    ("waiting-malloc-in-completion", "sleeping in a completion thread", waiting_malloc),
    ("pager-object-locked", "the object is locked", pager_object_locked),
    ("pager-not-paging", "paging_in_progress is not raised", pager_not_paging),
    ("pager-first-page-bogus", "page 0 of 2 is bogus_page", pager_first_page_bogus),
    ("pager-last-page-bogus", "page 1 of 2 is bogus_page", pager_last_page_bogus),
    ("pager-page-not-busied", "page 0 is not exclusive-busied", pager_page_not_busied),
    ("pager-page-valid", "page 1 is valid already", pager_page_valid),
    ("pager-page-dirty", "page 0 is dirty", pager_page_dirty),
    ("pager-pages-apart", "page 1 does not follow", pager_pages_apart),
    ("pager-page-of-another", "page 1 is another object's", pager_page_of_another),
    ("pager-vnode-unlocked", "the vnode is not locked", pager_vnode_unlocked),
    ("pager-without-the-vop", "has no getpages_async", pager_without_the_vop),
    ("pager-dead-object", "the object is dead", pager_dead_object),
    ("stock-forgets-a-hole", "nobody is left to call iodone", stock_forgets_a_hole),
    ("stock-forgets-a-small-block", "nobody is left to call iodone", stock_forgets_small),
    ("stock-drops-the-last-page", "count 1 for a request of 2", stock_drops_the_last_page),
    ("vnode-used-after-free", "the vnode", vnode_used_after_free),
    ("mount-used-after-free", "was freed, and byte", mount_used_after_free),
    ("unmapped-buf-touched", "touching unmapped_buf", unmapped_buf_touched),
    ("hold-dropped-twice", "the hold belonged to a reference", hold_dropped_twice),
    ("reference-left", "a reference is left", reference_left),
    ("locked-without-a-hold", "the vnode is not held", locked_without_a_hold),
    ("malloc-without-a-mode", "neither M_WAITOK nor M_NOWAIT", malloc_without_a_mode),
];

/// Not a rule of the KPI: memory of the host's own is used after its end, for
/// whoever watches the testbed itself. It ends without a violation.
const HOST: &str = "host-memory";

fn host_memory() {
    let memory = Box::into_raw(Box::new([1u64; 8]));
    // SAFETY: on purpose.
    unsafe {
        drop(Box::from_raw(memory));
        println!("freed memory holds {}", memory.cast::<u64>().add(4).read_volatile());
    }
}

/// Break the rule `name`; this does not return when the rule is watched.
pub fn run(name: &str) -> Result<()> {
    if name == HOST {
        host_memory();
        return Ok(());
    }
    let (.., breach) = ALL
        .iter()
        .find(|(known, ..)| *known == name)
        .ok_or_else(|| anyhow!("no breach {name}: `breach --list` names them"))?;
    cpu::attach();
    schedule::begin(true, 1);
    breach();
    bail!("{name}: nobody noticed")
}

fn mutex(class: &std::ffi::CStr, opts: c_int) -> *mut usize {
    let mutex = low::zeroed();
    // SAFETY: fresh memory, and a C string.
    unsafe { locks::mtx_init(mutex, class.as_ptr(), ptr::null(), opts) };
    mutex
}

fn lock(mutex: *mut usize) {
    // SAFETY: a mutex of `mutex`, or an address that is only looked up.
    unsafe { locks::mtx_lock(mutex, 0, c"here.c".as_ptr(), 7) };
}

fn unlock(mutex: *mut usize) {
    // SAFETY: as above.
    unsafe { locks::mtx_unlock(mutex, 0, c"here.c".as_ptr(), 8) };
}

fn both(first: *mut usize, second: *mut usize) {
    lock(first);
    lock(second);
    unlock(second);
    unlock(first);
}

fn order_reversed() {
    let (a, b) = (mutex(c"a", 0), mutex(c"b", 0));
    both(a, b);
    both(b, a);
}

fn order_by_way_of_a_third() {
    let (a, b, c) = (mutex(c"a", 0), mutex(c"b", 0), mutex(c"c", 0));
    both(a, b);
    both(b, c);
    both(c, a);
}

fn twins_reversed() {
    let (a, b) = (mutex(c"twins", sys::MTX_DUPOK), mutex(c"twins", sys::MTX_DUPOK));
    both(a, b);
    both(b, a);
}

fn second_of_a_class() {
    both(mutex(c"lone", 0), mutex(c"lone", 0));
}

fn two_objects() {
    let (a, b) = (vm::new_object(1), vm::new_object(1));
    locks::with_object(a, || locks::with_object(b, || ()));
}

fn mutex_recursed() {
    let a = mutex(c"lone", 0);
    both(a, a);
}

fn object_lock_recursed() {
    let object = vm::new_object(1);
    locks::with_object(object, || locks::with_object(object, || ()));
}

fn mutex_not_owned() {
    unlock(mutex(c"lone", 0));
}

fn wrong_mode() {
    let cookie = locks::object_cookie(vm::new_object(1)) as *mut usize;
    locks::rw_rlock(cookie, ptr::null(), 0);
    locks::rw_wunlock(cookie, ptr::null(), 0);
}

fn mutex_not_initialized() {
    lock(low::zeroed());
}

fn mutex_initialized_twice() {
    let a = mutex(c"lone", 0);
    // SAFETY: memory of a mutex.
    unsafe { locks::mtx_init(a, c"again".as_ptr(), ptr::null(), 0) };
}

fn mutex_used_after_destroy() {
    let a = mutex(c"lone", 0);
    // SAFETY: a live mutex.
    unsafe { locks::mtx_destroy(a) };
    lock(a);
}

fn mutex_destroyed_recursed() {
    let a = mutex(c"lone", sys::MTX_RECURSE);
    lock(a);
    lock(a);
    // SAFETY: a live mutex.
    unsafe { locks::mtx_destroy(a) };
}

fn asleep() {
    lock(mutex(c"lone", 0));
    rules::may_sleep("pause_sbt");
}

fn vnode_lock_with_a_mutex() {
    lock(mutex(c"lone", 0));
    let place = witness::Place::new("vn_lock", ptr::null(), 0);
    // The address of a vnode is all that its lock needs.
    let lock = locks::vnode_lock(low::zeroed());
    witness::check(&lock, &place);
}

unsafe extern "C" fn sleeps(_: *mut c_void) {
    rules::may_sleep("pause_sbt");
}

unsafe extern "C" fn takes(arg: *mut c_void) {
    lock(arg.cast());
}

unsafe extern "C" fn drains(arg: *mut c_void) {
    // SAFETY: a callout of `armed`.
    unsafe { callout::callout_stop(arg.cast(), sys::CS_DRAIN, None) };
}

type Handler = unsafe extern "C" fn(*mut c_void);

fn arm(callout: *mut sys::callout, handler: Handler, arg: *mut c_void) {
    // SAFETY: the caller's callout.
    unsafe { callout::callout_reset(callout, 1 << 20, 0, Some(handler), arg, 0, 0) };
}

fn armed(handler: Handler, arg: *mut c_void) -> *mut sys::callout {
    let callout = low::zeroed();
    callout::callout_init(callout, 1);
    arm(callout, handler, arg);
    callout
}

fn callout_sleeps() {
    armed(sleeps, ptr::null_mut());
    schedule::pump();
}

fn callout_keeps_a_mutex() {
    armed(takes, mutex(c"lone", 0).cast());
    schedule::pump();
}

fn callout_not_initialized() {
    arm(low::zeroed(), sleeps, ptr::null_mut());
}

fn callout_reinitialized() {
    callout::callout_init(armed(sleeps, ptr::null_mut()), 1);
}

fn guarded() -> (*mut sys::callout, *mut usize) {
    let mtx: *mut sys::mtx = low::zeroed();
    let callout = low::zeroed();
    // SAFETY: fresh memory.
    unsafe {
        let word = (&raw mut (*mtx).mtx_lock).cast();
        locks::mtx_init(word, c"lone".as_ptr(), ptr::null(), 0);
        callout::callout_init_lock(callout, &raw mut (*mtx).lock_object, 0);
        (callout, word)
    }
}

fn callout_without_its_mutex() {
    arm(guarded().0, sleeps, ptr::null_mut());
}

fn callout_drained_locked() {
    let (callout, mutex) = guarded();
    lock(mutex);
    // SAFETY: a live callout.
    unsafe { callout::callout_stop(callout, sys::CS_DRAIN, None) };
}

fn kind(name: &'static std::ffi::CStr) -> *mut sys::malloc_type {
    let kind: *mut sys::malloc_type = low::zeroed();
    // SAFETY: fresh memory.
    unsafe { (*kind).ks_shortdesc = name.as_ptr() };
    kind
}

fn callout_freed() {
    let kind = kind(c"one");
    let at = malloc::malloc(size_of::<sys::callout>(), kind, sys::M_WAITOK);
    callout::callout_init(at.cast(), 1);
    arm(at.cast(), sleeps, ptr::null_mut());
    malloc::free(at, kind);
}

fn callout_drains_itself() {
    let callout = low::zeroed();
    callout::callout_init(callout, 1);
    arm(callout, drains, callout.cast());
    schedule::pump();
}

fn queue(threads: c_int) -> *mut c_void {
    let place: *mut *mut c_void = low::zeroed();
    // SAFETY: fresh memory, and C strings.
    unsafe {
        *place = taskqueue::taskqueue_create(
            c"tasks".as_ptr(),
            sys::M_WAITOK,
            taskqueue::taskqueue_thread_enqueue as *const c_void,
            place.cast(),
        );
        if threads > 0 {
            taskqueue::taskqueue_start_threads(place, threads, 0, c"tasks".as_ptr());
        }
        *place
    }
}

type Work = unsafe extern "C" fn(*mut c_void, c_int);

fn task(work: Work, context: *mut c_void) -> *mut sys::task {
    let task: *mut sys::task = low::zeroed();
    // SAFETY: fresh memory.
    unsafe { ((*task).ta_func, (*task).ta_context) = (Some(work), context) };
    task
}

fn enqueue(queue: *mut c_void, task: *mut sys::task) {
    // SAFETY: the caller's task.
    unsafe { taskqueue::taskqueue_enqueue(queue, task) };
}

unsafe extern "C" fn idles(_: *mut c_void, _: c_int) {}

unsafe extern "C" fn works_locked(context: *mut c_void, _: c_int) {
    lock(context.cast());
}

unsafe extern "C" fn drains_its_task(context: *mut c_void, _: c_int) {
    // SAFETY: a queue and its task, as task_drains_itself() has put them there.
    let [queue, task] = unsafe { context.cast::<[*mut c_void; 2]>().read() };
    taskqueue::taskqueue_drain(queue, task.cast());
}

fn task_on_a_freed_queue() {
    let queue = queue(1);
    taskqueue::taskqueue_free(queue);
    enqueue(queue, task(idles, ptr::null_mut()));
}

fn task_without_a_thread() {
    enqueue(queue(0), task(idles, ptr::null_mut()));
}

fn task_not_initialized() {
    enqueue(queue(1), low::zeroed());
}

fn task_drains_itself() {
    let context: *mut [*mut c_void; 2] = low::zeroed();
    let (queue, task) = (queue(1), task(drains_its_task, context.cast()));
    // SAFETY: fresh memory.
    unsafe { context.write([queue, task.cast()]) };
    enqueue(queue, task);
    schedule::pump();
}

fn task_keeps_a_mutex() {
    enqueue(queue(1), task(works_locked, mutex(c"lone", 0).cast()));
    schedule::pump();
}

fn task_freed() {
    let kind = kind(c"one");
    let at = malloc::malloc(size_of::<sys::task>(), kind, sys::M_WAITOK | sys::M_ZERO);
    // SAFETY: a task's size.
    unsafe { (*at.cast::<sys::task>()).ta_func = Some(idles) };
    enqueue(queue(1), at.cast());
    malloc::free(at, kind);
}

fn freed_twice() {
    let kind = kind(c"one");
    let at = malloc::malloc(24, kind, sys::M_WAITOK);
    malloc::free(at, kind);
    malloc::free(at, kind);
}

fn freed_as_another_type() {
    malloc::free(malloc::malloc(24, kind(c"one"), sys::M_WAITOK), kind(c"two"));
}

fn written_behind() {
    let kind = kind(c"one");
    let at = malloc::malloc(24, kind, sys::M_WAITOK);
    // SAFETY: on purpose; within what the host has given.
    unsafe { at.cast::<u8>().add(24).write(0) };
    malloc::free(at, kind);
}

fn written_after_free() {
    let kind = kind(c"one");
    let at = malloc::malloc(24, kind, sys::M_WAITOK);
    malloc::free(at, kind);
    // SAFETY: on purpose; in quarantine it is still the host's to write.
    unsafe { at.cast::<u8>().write(0) };
    malloc::malloc_uninit(kind.cast());
}

fn allocation_left() {
    let kind = kind(c"one");
    malloc::malloc(24, kind, sys::M_WAITOK);
    malloc::malloc_uninit(kind.cast());
}

fn waiting_malloc() {
    rules::run_as(Context::Completion, "b_iodone", || {
        malloc::malloc(24, kind(c"one"), sys::M_WAITOK)
    });
}

fn malloc_without_a_mode() {
    malloc::malloc(24, kind(c"one"), 0);
}

/// A swap object, and two busied pages of it.
fn swap() -> (*mut sys::vm_object, [Page; 2]) {
    let object = vm::new_swap_object(8);
    vm::vm_object_pip_add(object, 1);
    (object, [2, 3].map(|i| vm::grab(object, i)))
}

unsafe extern "C" fn unheard(_: *mut c_void, _: *mut *mut sys::vm_page, _: c_int, _: c_int) {}

fn ask(object: *mut sys::vm_object, pages: &[Page]) {
    let mut pages: Vec<_> = pages.iter().map(|page| page.0).collect();
    pager::get_pages_async(pager::Request {
        object,
        pages: pages.as_mut_ptr(),
        count: pages.len() as c_int,
        behind: ptr::null_mut(),
        ahead: ptr::null_mut(),
        iodone: unheard,
        arg: ptr::null_mut(),
    });
}

fn pager_object_locked() {
    let (object, pages) = swap();
    locks::with_object(object, || ask(object, &pages));
}

fn pager_not_paging() {
    let (object, pages) = swap();
    vm::vm_object_pip_wakeup(object);
    ask(object, &pages);
}

fn pager_first_page_bogus() {
    let (object, [_, second]) = swap();
    ask(object, &[Page::bogus(), second]);
}

fn pager_last_page_bogus() {
    let (object, [first, _]) = swap();
    ask(object, &[first, Page::bogus()]);
}

fn pager_page_not_busied() {
    let (object, pages) = swap();
    pages[0].unbusy("breach");
    ask(object, &pages);
}

fn pager_page_valid() {
    let (object, pages) = swap();
    pages[1].fields().valid = u8::MAX;
    ask(object, &pages);
}

fn pager_page_dirty() {
    let (object, pages) = swap();
    pages[0].fields().dirty = 1;
    ask(object, &pages);
}

fn pager_pages_apart() {
    let (object, [first, _]) = swap();
    ask(object, &[first, vm::grab(object, 5)]);
}

fn pager_page_of_another() {
    let (object, [first, _]) = swap();
    ask(object, &[first, swap().1[1]]);
}

/// A file of 14.2's own, without the module: a block, a hole, a last page.
fn file(block: u64) -> Arc<File> {
    let (disk, _) = Disk::new(vec![7; 1 << 20], 512, 1, false);
    let map = vec![Some(8), None, Some(16)];
    let inode = Inode {
        path: "breach".into(),
        number: 4,
        size: 2 * block + 100,
        map,
        indirect: Indirect::default(),
    };
    File::open(inode, Mount { block, unmapped: true, flags: 0, bmap: Bmap::Good }, &disk, true)
}

fn pager_vnode_unlocked() {
    let file = file(4096);
    vm::vm_object_pip_add(file.object, 1);
    ask(file.object, &[vm::grab(file.object, 0)]);
}

fn pager_without_the_vop() {
    let file = file(4096);
    vm::vm_object_pip_add(file.object, 1);
    let _locked = locks::VnodeLocked::new(file.vnode, false, "breach");
    // SAFETY: the file's own vnode.
    unsafe { (*file.vnode).v_op = low::zeroed() };
    ask(file.object, &[vm::grab(file.object, 0)]);
}

fn pager_dead_object() {
    let (object, pages) = swap();
    vm::vm_object_reference(object);
    pages.iter().for_each(|page| page.unbusy("breach"));
    vm::vm_object_pip_wakeup(object);
    vm::destroy(object);
    vm::vm_object_pip_add(object, 1);
    let pages = [2, 3].map(|i| vm::grab(object, i));
    ask(object, &pages);
}

fn stock_forgets(block: u64, first: u64, count: u64) {
    stock::FAITHFUL.store(true, Ordering::Relaxed);
    let file = file(block);
    let pages: Vec<_> = (first..first + count).map(|i| vm::grab(file.object, i)).collect();
    if first + count == 3 {
        // The file's last page, of which a part is there already.
        pages[count as usize - 1].fields().valid = 1;
    }
    sendfile::getpages_async(&file, &pages, 0, 0);
}

fn stock_forgets_a_hole() {
    stock_forgets(4096, 1, 1);
}

fn stock_forgets_small() {
    stock_forgets(512, 0, 1);
}

fn stock_drops_the_last_page() {
    stock::FAITHFUL.store(true, Ordering::Relaxed);
    let (disk, _) = Disk::new(vec![7; 1 << 20], 512, 1, false);
    let inode = Inode {
        path: "breach".into(),
        number: 4,
        size: 4196,
        map: vec![Some(8), Some(16)],
        indirect: Indirect::default(),
    };
    let mount = Mount { block: 4096, unmapped: true, flags: 0, bmap: Bmap::Good };
    let file = File::open(inode, mount, &disk, true);
    let pages = [0, 1].map(|i| vm::grab(file.object, i));
    pages[1].fields().valid = 1;
    sendfile::getpages_async(&file, &pages, 0, 0);
}

fn vnode_used_after_free() {
    let file = file(4096);
    file.gone();
    // SAFETY: on purpose: the address of a vnode that is no more.
    unsafe { (&raw const (*file.vnode).v_irflag).read_volatile() };
}

fn mount_used_after_free() {
    let file = file(4096);
    // SAFETY: on purpose: the mount is gone when it is looked at.
    unsafe {
        let mount = (*file.vnode).v_mount;
        vnode::vhold(file.vnode);
        file.gone();
        (&raw const (*mount).mnt_kern_flag).read_volatile();
    }
}

fn unmapped_buf_touched() {
    // Whoever faults is told by the same handler as for the dead.
    file(4096);
    // SAFETY: on purpose.
    unsafe { (disk::unmapped() as *const u8).read_volatile() };
}

fn hold_dropped_twice() {
    // A second reference keeps the vnode itself.
    let file = file(4096);
    vnode::vhold(file.vnode);
    vnode::vdrop(file.vnode);
    vnode::vdrop(file.vnode);
}

fn reference_left() {
    let file = file(4096);
    vnode::vref(file.vnode);
    file.close();
}

fn locked_without_a_hold() {
    let file = file(4096);
    // SAFETY: the file's own vnode; as after a vdrop() too many.
    unsafe { (*file.vnode).v_holdcnt = 0 };
    vnode::vn_lock(file.vnode, sys::LK_SHARED, ptr::null(), 0);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    static RAN: AtomicU32 = AtomicU32::new(0);

    unsafe extern "C" fn counts(_: *mut c_void) {
        RAN.fetch_add(1, Ordering::Relaxed);
    }

    unsafe extern "C" fn works(_: *mut c_void, pending: c_int) {
        RAN.fetch_add(pending as u32 * 100, Ordering::Relaxed);
    }

    /// The good ways through the same KPI: one test, since the clock and the
    /// schedule belong to the process.
    #[test]
    fn rules_that_are_kept() {
        cpu::attach();
        for one_thread in [true, false] {
            schedule::begin(one_thread, 7);
            RAN.store(0, Ordering::Relaxed);
            let (a, b) = (mutex(c"first", sys::MTX_RECURSE), mutex(c"second", 0));
            both(a, b);
            lock(a);
            both(a, b);
            // SAFETY: live mutexes.
            unsafe {
                assert_eq!(*a, cpu::curthread() as usize, "mtx_owned() would say no");
                unlock(a);
                assert_eq!(*a, sys::MTX_UNOWNED as usize);
                assert_eq!(locks::mtx_trylock(b, 0, ptr::null(), 0), 1);
                unlock(b);
                locks::mtx_destroy(a);
                locks::mtx_destroy(b);
            }

            let (callout, mutex) = guarded();
            // SAFETY: a live callout and its mutex.
            unsafe {
                lock(mutex);
                arm(callout, counts, ptr::null_mut());
                assert!((*callout).c_iflags & sys::CALLOUT_PENDING as i16 != 0);
                assert_eq!(callout::callout_stop(callout, 0, None), 1);
                assert_eq!(callout::callout_stop(callout, 0, None), -1);
                arm(callout, counts, ptr::null_mut());
                unlock(mutex);
                while RAN.load(Ordering::Relaxed) == 0 {
                    schedule::pump();
                    std::thread::yield_now();
                }
                callout::callout_stop(callout, sys::CS_DRAIN, None);
                locks::mtx_destroy(mutex);
            }
            assert_eq!(callout::active(), 0);

            let (queue, task) = (queue(2), task(works, ptr::null_mut()));
            enqueue(queue, task);
            taskqueue::taskqueue_drain(queue, task);
            assert_eq!(RAN.load(Ordering::Relaxed), 101);
            enqueue(queue, task);
            // What is queued runs before the queue ends.
            taskqueue::taskqueue_free(queue);
            assert_eq!(RAN.load(Ordering::Relaxed), 201);

            let kind = kind(c"one");
            let at = malloc::malloc(100, kind, sys::M_NOWAIT | sys::M_ZERO);
            // SAFETY: 100 bytes.
            assert!(unsafe { std::slice::from_raw_parts(at.cast::<u8>(), 100) } == [0; 100]);
            malloc::free(at, kind);
            malloc::malloc_uninit(kind.cast());
            vm::NO_MEMORY.store(true, Ordering::Relaxed);
            assert!(malloc::malloc(100, kind, sys::M_NOWAIT).is_null());
            vm::NO_MEMORY.store(false, Ordering::Relaxed);
        }
    }
}
