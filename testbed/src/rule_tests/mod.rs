// SPDX-License-Identifier: BSD-2-Clause
//! Rule tests: each breaks one rule of the simulated kernel on purpose, to show that
//! the testbed reports it. They cover the rules that no mutant of the module can
//! break.

mod callouts;
#[cfg(test)]
mod kept;
mod locks;
mod memory;
mod pager;
mod tasks;
mod vnodes;

use anyhow::{Result, anyhow, bail};

use crate::{kernel::proc, kld::boot::boot};

/// A rule's name, words that its violation has to say, and how to break it.
type RuleTest = (&'static str, &'static str, fn());

/// All of them.
pub const ALL: &[RuleTest] = &[
    ("order-reversed", "lock order reversal", locks::order_reversed),
    ("order-reversed-by-way-of-a-third", "lock order reversal", locks::order_by_way_of_a_third),
    (
        "order-of-two-instances",
        "lock order reversal between two of class twins",
        locks::twins_reversed,
    ),
    ("second-of-a-class", "a second lock of class lone", locks::second_of_a_class),
    ("two-objects", "a second lock of class vm object", locks::two_objects),
    ("mutex-recursed", "must not recurse", locks::mutex_recursed),
    ("object-lock-recursed", "must not recurse", locks::object_lock_recursed),
    ("mutex-not-owned", "does not hold", locks::mutex_not_owned),
    ("rlock-released-as-wlock", "the other mode", locks::wrong_mode),
    ("mutex-not-initialized", "not an initialized mutex", locks::mutex_not_initialized),
    ("mutex-initialized-twice", "is initialized already", locks::mutex_initialized_twice),
    ("mutex-used-after-destroy", "not an initialized mutex", locks::mutex_used_after_destroy),
    ("mutex-destroyed-recursed", "the mutex is recursed", locks::mutex_destroyed_recursed),
    (
        "sleeping-with-a-mutex",
        "sleeping with a lone lock held since mtx_lock at here.c:7",
        locks::asleep,
    ),
    (
        "vnode-lock-with-a-mutex",
        "which may sleep, with a lone held",
        locks::vnode_lock_with_a_mutex,
    ),
    ("callout-sleeps", "sleeping in a callout thread", callouts::callout_sleeps),
    ("callout-keeps-a-mutex", "returned with a lone lock held", callouts::callout_keeps_a_mutex),
    ("callout-not-initialized", "not an initialized callout", callouts::callout_not_initialized),
    ("callout-initialized-while-pending", "is pending or running", callouts::callout_reinitialized),
    (
        "callout-without-its-mutex",
        "the callout's mutex is not held",
        callouts::callout_without_its_mutex,
    ),
    (
        "callout-drained-with-a-mutex",
        "sleeping with a lone lock held",
        callouts::callout_drained_locked,
    ),
    ("callout-freed-while-pending", "a callout in it is pending", memory::callout_freed),
    ("callout-drains-itself", "sleeping in a callout thread", callouts::callout_drains_itself),
    ("task-on-a-freed-queue", "not a live taskqueue", tasks::task_on_a_freed_queue),
    ("task-without-a-thread", "has no thread yet", tasks::task_without_a_thread),
    ("task-not-initialized", "not initialized", tasks::task_not_initialized),
    ("task-drains-itself", "draining a task from its own handler", tasks::task_drains_itself),
    ("task-keeps-a-mutex", "returned with a lone lock held", tasks::task_keeps_a_mutex),
    ("task-freed-while-queued", "a task in it is queued", memory::task_freed),
    ("freed-twice", "freed twice", memory::freed_twice),
    ("freed-as-another-type", "is freed as two", memory::freed_as_another_type),
    ("written-behind-the-end", "a write went beyond the 24 bytes", memory::written_behind),
    ("written-after-free", "written to after free", memory::written_after_free),
    ("allocation-left", "1 allocations of type one are left", memory::allocation_left),
    ("waiting-malloc-in-completion", "sleeping in a completion thread", memory::waiting_malloc),
    ("pager-object-locked", "the object is locked", pager::pager_object_locked),
    ("pager-not-paging", "paging_in_progress is not raised", pager::pager_not_paging),
    ("pager-first-page-bogus", "page 0 of 2 is bogus_page", pager::pager_first_page_bogus),
    ("pager-last-page-bogus", "page 1 of 2 is bogus_page", pager::pager_last_page_bogus),
    ("pager-page-not-busied", "page 0 is not exclusive-busied", pager::pager_page_not_busied),
    ("pager-page-valid", "page 1 is valid already", pager::pager_page_valid),
    ("pager-page-dirty", "page 0 is dirty", pager::pager_page_dirty),
    ("pager-pages-apart", "page 1 does not follow", pager::pager_pages_apart),
    ("pager-page-of-another", "page 1 is another object's", pager::pager_page_of_another),
    ("pager-vnode-unlocked", "the vnode is not locked", pager::pager_vnode_unlocked),
    ("pager-without-the-vop", "has no getpages_async", pager::pager_without_the_vop),
    ("pager-dead-object", "the object is dead", pager::pager_dead_object),
    ("stock-forgets-a-hole", "no thread is left to call iodone", pager::stock_forgets_a_hole),
    ("stock-forgets-a-small-block", "no thread is left to call iodone", pager::stock_forgets_small),
    ("stock-drops-the-last-page", "count 1 for a request of 2", pager::stock_drops_the_last_page),
    ("vnode-used-after-free", "the vnode", vnodes::vnode_used_after_free),
    ("mount-used-after-free", "was freed, and byte", vnodes::mount_used_after_free),
    ("unmapped-buf-touched", "touching unmapped_buf", vnodes::unmapped_buf_touched),
    ("hold-dropped-twice", "the hold belonged to a reference", vnodes::hold_dropped_twice),
    ("reference-left", "a reference is left", vnodes::reference_left),
    ("locked-without-a-hold", "the vnode is not held", vnodes::locked_without_a_hold),
    ("malloc-without-a-mode", "neither M_WAITOK nor M_NOWAIT", memory::malloc_without_a_mode),
];

/// Not a rule of the KPI: memory of the host's own is used after free, to test the
/// sanitizer that watches the testbed itself. It ends without a violation.
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
    let (.., break_rule) = ALL
        .iter()
        .find(|(known, ..)| *known == name)
        .ok_or_else(|| anyhow!("no rule {name}: `rules --list` names them"))?;
    proc::attach();
    boot(true, 1);
    break_rule();
    bail!("{name}: no violation was reported")
}
