// SPDX-License-Identifier: BSD-2-Clause
//! The testbed can fail: each test breaks the module in one way, builds it,
//! and wants a check of the testbed to notice.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Copies of the project to build mutants in, one at a time in each: the
/// compiler keeps only one CPU busy.
static COPIES: [Mutex<()>; 2] = [const { Mutex::new(()) }; 2];
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A broken module must show within this time; a hung check counts as noticed.
const PATIENCE: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(5);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the project's folder")
}

fn copy_all(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-rpT").args([from, to]).status().expect("cp runs");
    assert!(copied.success(), "cannot copy {}", from.display());
}

/// Build the module with `find` replaced in `file`; where it is.
fn build(name: &str, file: &str, find: &str, replace: &str) -> PathBuf {
    let turn = NEXT.fetch_add(1, Ordering::Relaxed) % COPIES.len();
    let _one = COPIES[turn].lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let (root, copy) = (root(), root().join(format!("target/mutants/{turn}")));
    std::fs::create_dir_all(copy.join("target/kmod")).unwrap();
    // What `make kmod` has built of others' crates is good here too.
    let (built, cargo) = (root.join("target/kmod/cargo-14"), copy.join("target/kmod/cargo-14"));
    if built.exists() && !cargo.exists() {
        copy_all(&built, &cargo);
    }
    for part in [
        "Cargo.toml",
        "Cargo.lock",
        "build.rs",
        ".cargo",
        "src",
        "sys-headers",
        "scripts",
        "testbed/Cargo.toml",
        "testbed/src",
        "testbed/benches",
        "sendbench/Cargo.toml",
        "sendbench/src",
    ] {
        let to = copy.join(part);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        copy_all(&root.join(part), &to);
    }
    let _ = std::os::unix::fs::symlink(root.join("target/headers"), copy.join("target/headers"));
    // The last mutant's file is back, with its old date: make that count as a change.
    let mark = copy.join("mutated");
    if let Ok(last) = std::fs::read_to_string(&mark) {
        let restored = std::fs::read(copy.join(&last)).unwrap();
        std::fs::remove_file(copy.join(&last)).unwrap();
        std::fs::write(copy.join(&last), restored).unwrap();
    }
    std::fs::write(&mark, file).unwrap();
    let path = copy.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text.matches(find).count(), 1, "{name}: `{find}` is not in {file} exactly once");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, text.replace(find, replace)).unwrap();
    let built =
        Command::new("scripts/kmod").current_dir(&copy).output().expect("scripts/kmod runs");
    assert!(built.status.success(), "{name}: {}", String::from_utf8_lossy(&built.stderr));
    let ko = copy.join(format!("{name}.ko"));
    std::fs::rename(copy.join("target/kmod/14-amd64/asyncpager.ko"), &ko).unwrap();
    ko
}

/// Whether the check passes; a hang is a failure.
fn passes(ko: &Path, check: &str) -> bool {
    runs(ko, &["check", check])
}

/// Whether the testbed's command succeeds.
fn runs(ko: &Path, command: &[&str]) -> bool {
    let mut child = Command::new(env!("CARGO_BIN_EXE_asyncpager-testbed"))
        .args(command)
        .arg("--ko")
        .arg(ko)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the testbed starts");
    // A host that stands still for a while has not used it up.
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        if let Some(status) = child.try_wait().unwrap() {
            return status.success();
        }
        std::thread::sleep(STEP);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    false
}

/// A violation is saved, comes again the same, and is explained.
#[test]
fn violation_is_saved_replayed_and_explained() {
    let ko = build(
        "replayed",
        "src/pager/plan.rs",
        "blkno: blkno.saturating_add((inside / DEV_BSIZE) as i64),",
        "blkno,",
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("violation.json");
    let testbed = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_asyncpager-testbed"))
            .args(args)
            .output()
            .expect("the testbed starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = text.lines().find(|line| line.starts_with("violation:")).map(str::to_string);
        (output.status.code(), line, String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (ko_arg, file_arg) = (ko.to_str().unwrap(), file.to_str().unwrap());
    let (code, first, _) = testbed(&[
        "torture",
        "--deterministic",
        "--calls",
        "20000",
        "--ko",
        ko_arg,
        "--save",
        file_arg,
    ]);
    assert_eq!(code, Some(2), "{first:?}");
    assert!(first.is_some());
    let (code, again, _) = testbed(&["replay", "--ko", ko_arg, file_arg]);
    assert_eq!((code, again), (Some(2), first), "the replay differs");
    let (code, _, story) = testbed(&["explain", file_arg]);
    assert_eq!(code, Some(0));
    assert!(story.contains("VOP_GETPAGES_ASYNC") && story.contains("bufdone"), "{story}");
    let (code, ..) = testbed(&["explain", ko_arg]);
    assert_eq!(code, Some(1), "an ELF file is explained");
    std::fs::remove_file(&ko).unwrap();
}

/// What the mutants are compared with: the same build, unbroken.
#[test]
fn unbroken() {
    let ko = build("unbroken", "src/lib.rs", "#![cfg_attr", "#![cfg_attr");
    for check in ["bogus-inside", "behind-and-ahead", "error", "sync", "disabled", "mapped"] {
        assert!(passes(&ko, check), "{check} fails without a mutation");
    }
    std::fs::remove_file(&ko).unwrap();
}

macro_rules! mutations {
    ($($name:ident: $check:literal, $file:literal, $find:literal => $replace:literal;)*) => {
        $(#[test]
        fn $name() {
            let ko = build(stringify!($name), $file, $find, $replace);
            let noticed = !passes(&ko, $check);
            std::fs::remove_file(&ko).unwrap();
            assert!(noticed, "nobody noticed");
        })*
    };
}

mutations! {
    iodone_twice: "bogus-inside", "src/kpi/getpages.rs",
        "self.call(outcome);" => "self.call(outcome); self.call(outcome);";
    iodone_never: "bogus-inside", "src/kpi/getpages.rs",
        "self.call(outcome);" => "let _ = outcome;";
    iodone_and_the_original_too: "large-sector", "src/kpi/vnode_if.rs",
        "call.reply.pass_on();" => "drop(call.reply);";
    iodone_without_the_last_page: "last-partly-valid", "src/kpi/getpages.rs",
        "pages, count: reply.count };" => "pages, count: reply.count - 1 };";
    ahead_page_left_busy: "behind-and-ahead", "src/kpi/vm_page.rs",
        "unsafe { sys::vm_page_readahead_finish(self.0.as_ptr()) };" => "";
    ahead_page_not_freed_on_error: "error", "src/kpi/vm_page.rs",
        "unsafe { sys::vm_page_free_invalid(self.0.as_ptr()) };" => "";
    freed_without_the_object_lock: "error", "src/kpi/buf.rs",
        "locked.get_or_insert_with(|| object.write());" => "let _ = locked.get_or_insert(&object);";
    allocated_over_a_page_that_exists: "behind-and-ahead", "src/kpi/vm_object.rs",
        "if !sys::vm_page_lookup(object, pindex).is_null()" => "if false";
    pbuf_leaked: "bufs-none", "src/kpi/buf.rs",
        "(*tail).pool.put(bp);" => "let _ = (*tail).pool;";
    bufobj_not_released: "end-of-file", "src/kpi/buf.rs",
        "sys::pbrelbo(bp);" => "";
    cred_leaked: "end-of-file", "sys-headers/shim.c",
        "bp->b_rcred = crhold(curthread->td_ucred);" => "bp->b_rcred = crhold(crhold(curthread->td_ucred));";
    creds_not_held: "end-of-file", "src/kpi/buf.rs",
        "sys::shim_hold_creds(bp);" => "";
    not_given_to_the_kernel: "end-of-file", "sys-headers/shim.c",
        "	BUF_KERNPROC(bp);\n	return (true);\n}\n\nvoid\nshim_buf_fini" => "	return (true);\n}\n\nvoid\nshim_buf_fini";
    reads_charged_to_runningbufspace: "end-of-file", "sys-headers/shim.c",
        "	bp->b_resid = 0;\n" => "	bp->b_resid = 0;\n	bp->b_runningbufspace = bp->b_bcount;\n";
    mapping_leaked: "mapped", "src/kpi/buf.rs",
        "sys::pmap_qremove(buf.b_kvabase as u64, npages);" => "let _ = npages;";
    tail_not_zeroed: "end-of-file", "src/pager/complete.rs",
        "let below = good.saturating_sub(i.saturating_mul(PAGE)).min(PAGE) as u32;\n                page.zero(below, PAGE as u32 - below);" => "let _ = (i, page);";
    hole_not_zeroed: "holes", "src/pager/submit.rs",
        "page.zero(offset as u32, n as u32);" => "";
    behind_the_end_marked_valid: "end-of-file", "src/kpi/vm_page.rs",
        "if below >= u64::from(sys::PAGE)" => "if below > 0";
    wrong_offset_in_the_block: "bogus-inside", "src/pager/plan.rs",
        "blkno: blkno.saturating_add((inside / DEV_BSIZE) as i64)," => "blkno,";
    wrong_offset_with_read_behind: "behind-and-ahead", "src/pager/plan.rs",
        "let blkno = self.blkno.saturating_sub((before / DEV_BSIZE) as i64);" => "let blkno = self.blkno;";
    partial_sectors: "end-of-file", "src/pager/plan.rs",
        "bytes.next_multiple_of(device.sector.max(1)) as u32" => "bytes as u32";
    more_than_maxphys: "maxphys", "src/pager/plan.rs",
        "if extra <= spare" => "if extra <= 100_000";
    lock_held_across_strategy: "end-of-file", "src/pager/submit.rs",
        "                    bufs::send(buf);" => "                    let _locked = target.place.object.read(); bufs::send(buf);";
    sleep_in_completion: "end-of-file", "src/pager/complete.rs",
        "pub fn part(mut buf: Buf) {" => "pub fn part(mut buf: Buf) { crate::kpi::systm::pause(1);";
    short_transfer_believed: "short-transfer", "src/kpi/buf.rs",
        "if self.buf().b_resid != 0 { Err(Errno::EIO) }" => "if false { Err(Errno::EIO) }";
    success_taken_for_an_error: "bogus-inside", "sys-headers/shim.c",
        "(bp->b_ioflags & BIO_ERROR) == 0" => "(bp->b_ioflags & BIO_ERROR) != 0";
    bad_sector_ahead_fails_the_request: "error-only-ahead", "src/pager/complete.rs",
        "around > 0 && error != Errno::ENXIO" => "around > 1000 && error != Errno::ENXIO";
    asked_again_after_enxio: "device-gone", "src/pager/complete.rs",
        "around > 0 && error != Errno::ENXIO" => "around > 0 && error != Errno::EINVAL";
    no_bmap_is_an_error: "no-bmap", "src/pager/request.rs",
        "Err(Errno::EOPNOTSUPP) => return Err(Answer::Emulate(vop))," => "";
    doomed_vnode_served: "doomed", "src/pager/request.rs",
        "(!vop.vnode.is_doomed())" => "(true)";
    off_by_default: "tunables", "src/vop.rs",
        "pub static ENABLED: AtomicBool = AtomicBool::new(true);" =>
        "pub static ENABLED: AtomicBool = AtomicBool::new(false);";
    original_not_restored: "sync", "src/vop.rs",
        "put_back(Slot::Async)?;" => "";
    unload_with_a_buf_in_flight: "unload-under-load", "src/vop.rs",
        "drain::outlast(\"bufs\", || stats::IN_FLIGHT.now() as u64)?;" => "";
    refused_unload_leaves_it_off: "replaced-since", "src/vop.rs",
        "            take_again();\n            readahead::resume();" => "            readahead::resume();";
    counters_leaked: "sync", "src/tunables.rs",
        "    stats::release();" => "";
    sysctls_leaked: "sync", "src/tunables.rs",
        "    CONTEXT.end();" => "";
    zone_leaked: "sync", "src/pager/mod.rs",
        "    bufs::destroy();\n    REQUESTS.destroy();" => "    bufs::destroy();";
    object_used_after_the_reply: "forced-unmount", "src/kpi/getpages.rs",
        "Some(outcome) => reply.send(outcome)," => "Some(outcome) => { reply.send(outcome); core::hint::black_box(Vnode::new(self.item().vnode).object().map(|o| o.vnp_size())); }";
    object_lock_recursed: "end-of-file", "src/pager/complete.rs",
        "    for (i, page) in pages.iter().enumerate() {\n        if i < read {" => "    let _again = object.read();\n    for (i, page) in pages.iter().enumerate() {\n        if i < read {";
    mount_used_after_the_reply: "forced-unmount", "src/kpi/getpages.rs",
        "Some(outcome) => reply.send(outcome)," => "Some(outcome) => { reply.send(outcome); core::hint::black_box(Vnode::new(self.item().vnode).takes_unmapped()); }";
    object_lock_kept_after_completion: "end-of-file", "src/pager/complete.rs",
        "    let locked = object.read();\n    for (i, page)" =>
        "    let locked = core::mem::ManuallyDrop::new(object.read());\n    for (i, page)";
    waits_for_the_disk: "never-waits", "src/pager/submit.rs",
        "                    bufs::send(buf);" => "                    let _ = complete::sync(bufs::read(buf));";
    waits_before_the_disk: "never-waits", "src/pager/submit.rs",
        "let (mut walk, mut around, mut sent) =" => "crate::kpi::systm::pause(1);\n    let (mut walk, mut around, mut sent) =";
    yields_with_the_thread_lock: "sync", "sys-headers/shim.c",
        "	thread_unlock(curthread);\n	kern_yield" => "	kern_yield";
    unbinds_without_the_thread_lock: "sync", "sys-headers/shim.c",
        "	thread_lock(curthread);\n	sched_unbind" => "	sched_unbind";
    promise_to_anybody: "map-others", "src/pager/deferred.rs",
        "if !(first..first.saturating_add(per_block)).any(|pindex| locked.is_wanted(pindex))" => "if false";
    promise_beyond_the_indirect_block: "map-levels", "src/pager/deferred.rs",
        "Some(end.saturating_sub(at.saturating_add(1)).min(most) as u32)" => "Some(most as u32)";
    promise_not_kept: "map", "src/vop.rs",
        "let promised = PROMISED.forget();" => "let promised = PROMISED.forget() && false;";
    map_waited_for: "map", "src/vop.rs",
        "|| !proc::in_sendfile()" => "|| proc::in_sendfile()";
    wrong_pointer: "map", "src/fs/ffs/blockmap.rs",
        "let index = rest.checked_div(below)?;" => "let index = rest.checked_div(below)? / 2 * 2;";
    pointer_to_another_level: "map-holes", "src/fs/ffs/mod.rs",
        "pointer(stage.index)" => "pointer(stage.index ^ 1)";
    hole_in_the_map_read: "map-holes", "src/fs/ffs/blockmap.rs",
        "sane.then_some((blkno > 0).then_some(blkno))" => "sane.then_some(Some(blkno.max(1)))";
    neighbour_s_block_zeroed: "small-blocks", "src/pager/complete.rs",
        "if small { u64::MAX } else" => "if small && buf.bytes() == 0 { u64::MAX } else";
    map_read_apart_for_nothing: "map-fast", "src/pager/deferred.rs",
        "if !latency::may_be_long(place.device.id())" => "if false";
    slowness_never_forgotten: "map-fast", "src/pager/latency.rs",
        "longest - longest / 16" => "longest";
    mounted_anew_and_known: "map-fast", "src/pager/latency.rs",
        "if self.mounting.load(Ordering::Relaxed) != mounting {" => "if false && mounting > 0 {";
    slowness_not_remembered: "map-fast", "src/pager/latency.rs",
        "longest - longest / 16" => "0 * longest";
    map_error_believed: "map-error", "src/pager/deferred.rs",
        "match buf.outcome() {" => "let _ = buf.outcome(); match Ok::<(), Errno>(()) {";
    io_from_a_completion: "map", "src/pager/deferred.rs",
        "Ok(()) => worker::push(buf)," => "Ok(()) => drop(go_on(buf)),";
    retry_from_a_completion: "error-only-ahead", "src/pager/complete.rs",
        "            worker::push(buf);" => "            bufs::send(buf);";
    map_request_lost_without_bufs: "bufs-map-starved", "src/pager/deferred.rs",
        "return Ok(Next::Starved);" => "return Ok(Next::Done);";
    pointers_leaked: "map", "src/kpi/buf.rs",
        "sys::vm_page_free(page);" => "";
    window_keeps_no_object: "stream-unmount", "src/kpi/vm_object.rs",
        "unsafe { sys::vm_object_pip_add(self.0.as_ptr(), 1) };" => "";
    window_keeps_its_object: "stream", "src/kpi/vm_object.rs",
        "unsafe { sys::vm_object_pip_wakeup(self.0.as_ptr()) };" => "";
    window_from_where_pages_exist: "stream-over", "src/readahead/load.rs",
        "blkno: run.blkno.saturating_add(skipped as i64)," => "blkno: run.blkno,";
    window_stops_where_pages_exist: "stream-over", "src/readahead/load.rs",
        "let start = run.start.saturating_add(u64::from(there) * PAGE);" => "let start = run.start;";
    window_without_memory: "stream-memory", "src/readahead/load.rs",
        "let floor = free.min / 2 + free.target / 2;" => "let floor = 0;";
    window_for_random_access: "stream-random", "src/readahead/stream.rs",
        "let begins = self.origin == 0 && self.wanted >= WHOLE;" => "let begins = true;";
    window_never: "stream", "src/readahead/stream.rs",
        "self.sure) = (true, true, true);" => "self.sure) = (true, false, false);";
    consumer_not_seen: "stream-seen", "src/readahead/mod.rs",
        "self.stream.seen(front, now.us, now.pace(self.profile, self.device), now.limits);" =>
        "self.stream.seen(0, now.us, now.pace(self.profile, self.device), now.limits);";
    consumer_only_looked_for_nearby: "stream-far", "src/readahead/mod.rs",
        "stream::places(front, end).filter(" => "stream::places(front, end.min(front + NEAR)).filter(";
    consumer_stepped_over: "stream-far", "src/readahead/stream.rs",
        "STEP.max(far / SPREAD)" => "STEP.max(far)";
    pause_made_up_for_at_once: "stream-burst", "src/readahead/stream.rs",
        "let idle_us = idle_us.min(u64::from(" => "let idle_us = idle_us.max(u64::from(";
    growth_not_noticed: "stream-grows", "src/readahead/mod.rs",
        "slot.file = miss.file;" => "";
    not_read_and_valid_after_growth: "stream-grows", "src/pager/complete.rs",
        "plan::below_eof(start, reached, eof);" => "plan::below_eof(start, u64::MAX, eof);";
    no_gap_for_the_consumer: "stream-gap", "src/readahead/stream.rs",
        "let gap = if late { u64::from(self.reach).saturating_mul(2) } else { 0 };" => "let gap = u64::from(late) * 0;";
    guess_not_judged: "guess-wrong", "src/readahead/speculative.rs",
        "Ok(Step::Read(run)) if run.blkno == blkno =>" => "Ok(Step::Read(run)) if run.len > 0 =>";
    guess_kept_when_wrong: "guess-wrong", "src/readahead/speculative.rs",
        "wrong.into_iter().flatten().for_each(discard);" => "wrong.into_iter().flatten().filter_map(Claim::leave).for_each(|buf| finish(bufs::claimed(buf)));";
    gone_on_and_not_noticed: "map-gone-on", "src/readahead/window.rs",
        "if missing.is_some() && !patient {" => "if missing.is_some() && !patient && in_flight == 0 {";
    right_and_waited_for: "guess-late", "src/readahead/speculative.rs",
        "if let Some(back) = buf.leave() {" => "if let Some(back) = Some(buf.wait()) {";
    accepted_and_left: "guess", "src/kpi/sync.rs",
        "self.0.swap(LEFT, Ordering::AcqRel) == BACK" => "self.0.swap(LEFT, Ordering::AcqRel) > WANTED";
    rejected_in_flight: "guess-wrong", "src/kpi/sync.rs",
        "self.0.swap(WANTED, Ordering::AcqRel) == BACK" => "self.0.swap(WANTED, Ordering::AcqRel) <= WANTED";
    back_before_it_is_judged: "guess", "src/kpi/sync.rs",
        "            LEFT => Back::Left," => "            LEFT | SENT => Back::Left,";
    guess_tried_again_at_once: "guess-wrong", "src/readahead/speculative.rs",
        "(false, _) => 0," => "(false, _) => 3,";
    guess_never_tried_again: "guess-luck", "src/readahead/speculative.rs",
        "before.saturating_add(1).min(ACCURATE)" => "before.saturating_add(1).min(1)";
    guess_tried_after_a_failure: "guess-barred", "src/pager/latency.rs",
        "entry.speculation_failed.store(true, Ordering::Relaxed);" => "let _ = entry;";
    guess_barred_for_ever: "guess-barred", "src/pager/latency.rs",
        "self.speculation_failed.store(false, Ordering::Relaxed);" => "";
    guess_failure_printed: "guess-barred", "src/pager/complete.rs",
        "Some(_) => {}" => "Some(_) => log(buf, Errno::EIO),";
    guess_behind_the_end: "guess-end", "src/readahead/speculative.rs",
        "> place.fs.blocks(place.vnode)" => "> i64::MAX - 1";
    guess_waits_for_the_map: "guess", "src/readahead/speculative.rs",
        "if !place.vnode.read_block(map.lbn, map.blkno) {" => "if place.vnode.bmap(place.lbn(read.pages.start)).is_err() {";
    guess_switched_off_tried: "guess-off", "src/readahead/speculative.rs",
        "            && ENABLED.load(Ordering::Relaxed)\n" => "";
    map_buffer_keeps_its_owner: "guess", "sys-headers/shim.c",
        "vfs_busy_pages(bp, 0);\n\tBUF_KERNPROC(bp);" => "vfs_busy_pages(bp, 0);";
    map_of_an_untrusted_mount: "map-untrusted", "sys-headers/shim.c",
        "ump->um_check_blkno == NULL &&" => "";
    map_of_an_async_mount: "map-async-mount", "sys-headers/shim.c",
        "(MNT_ASYNC | MNT_GJOURNAL)" => "(0 * MNT_ASYNC | MNT_GJOURNAL)";
    map_of_a_journaled_mount: "map-async-mount", "sys-headers/shim.c",
        "(MNT_ASYNC | MNT_GJOURNAL)" => "(MNT_ASYNC | 0 * MNT_GJOURNAL)";
    waste_not_counted: "stream-lost", "src/readahead/mod.rs",
        "Fit::Lost => &stats::PAGES_WASTED" => "Fit::Lost => &stats::RESETS";
    timer_without_a_budget: "stream-many", "src/readahead/mod.rs",
        "const BUDGET: u32 = 256;" => "const BUDGET: u32 = 1 << 30;";
    streams_starved: "stream-many", "src/readahead/mod.rs",
        "HAND.store(stopped.unwrap_or(0) as u32, Ordering::Relaxed);" => "HAND.store(0 * stopped.unwrap_or(0) as u32, Ordering::Relaxed);";
    hung_disk_has_all_threads: "stream-hung", "src/fair.rs",
        "at(device) < at(0)" => "at(device) < at(0) + N";
    unload_waits_for_a_hung_disk: "guess-hung", "src/readahead/mod.rs",
        "    STOPPED.store(true, Ordering::SeqCst);\n    TIMER.drain();" => "    STOPPED.store(true, Ordering::SeqCst);\n    drain();";
    refused_unload_leaves_read_ahead_off: "guess-hung", "src/readahead/mod.rs",
        "    STOPPED.store(false, Ordering::Release);\n    if LIVE" => "    if LIVE";
    profile_of_all_users: "stream-users", "src/readahead/profile.rs",
        "^ u64::from(uid)" => "^ u64::from(uid & 0)";
    fast_disks_followed: "stream-switches", "src/pager/latency.rs",
        "self.latency_us() >= MIN.get()" => "self.us() > 0";
    any_number_will_do: "stream-switches", "src/kpi/sysctl.rs",
        "if new < limit.min || new > limit.max {" => "if false {";
    unload_leaves_the_timer: "stream-unmount", "src/kpi/callout.rs",
        "unsafe { sys::shim_callout_drain(self.raw()) };" => "";
    unload_leaves_the_threads: "stream-unmount", "src/readahead/mod.rs",
        "    QUEUE.stop();" => "";
    streams_leaked: "sync", "src/readahead/mod.rs",
        "    SETS.destroy(|set| set.slots.destroy());" => "";
    bmap_not_restored: "sync", "src/vop.rs",
        "put_back(Slot::Bmap)?;" => "";
    vnode_not_let_go: "stream", "src/kpi/vnode.rs",
        "unsafe { sys::vdrop(self.0.as_ptr()) };" => "";
    vnode_left_locked: "stream", "src/kpi/vnode.rs",
        "unsafe { sys::shim_VOP_UNLOCK(self.0.as_ptr()) };" => "";
    streams_left_locked: "stream", "src/kpi/mutex.rs",
        "unsafe { sys::shim_mtx_unlock(self.0.raw()) };" => "";
    bufs_leaked: "sync", "src/pager/mod.rs",
        "    bufs::destroy();\n    REQUESTS.destroy();" => "    REQUESTS.destroy();";
    starved_and_never_woken: "bufs-map-starved", "src/pager/bufs.rs",
        "            worker::buf_is_back();\n" => "            let _ = worker::buf_is_back;\n";
    promised_call_passed_on: "promise-not-kept", "src/pager/mod.rs",
        "Err(again) => call = again," => "Err(again) => return Answer::Emulate(again.vop),";
    readahead_takes_all_bufs: "bufs-readahead", "src/pager/bufs.rs",
        "fn readahead_most() -> usize {\n    POOL.len() / 2" => "fn readahead_most() -> usize {\n    POOL.len()";
    loaded_bufs_kept_while_waiting: "bufs-none", "src/pager/submit.rs",
        "                    bufs::send(buf);" => "                    core::mem::forget(buf);";
    truncated_and_sent: "map-truncated", "src/pager/complete.rs",
        "if request.was_unlocked() {" => "if false {";
    truncated_and_aborted: "map-truncated", "src/pager/complete.rs",
        "if size <= start { Ok(()) } else { outcome }" => "outcome";
    overlong_call_passed_on: "use-buf-pager-off", "src/pager/request.rs",
        "return Err(failed(vop, PagerError::Fail, Errno::EINVAL));\n    }\n    if !place" => "return Err(Answer::Original(vop));\n    }\n    if !place";
    idle_class_overtaken: "unload-idle-entering", "src/drain.rs",
        "outlast_idle_class([before, IdleClass::awake()])" => "drop(before); Ok(())";
    entering_not_waited_for: "unload-idle-entering", "src/vop.rs",
        "drain::outlast_threads()?;" => "";
    leaving_not_waited_for: "unload-idle-leaving", "src/vop.rs",
        "code now.\n    drain::outlast_threads()" => "code now.\n    Ok(())";
    idle_class_waited_for_for_ever: "unload-idle-entering", "src/drain.rs",
        "wait_until(IDLE_MS, ||" => "wait_until(u32::MAX, ||";
    idle_class_waited_for_to_its_end: "unload-idle-runs", "src/kpi/proc.rs",
        "&& switches < times" => "&& times > 0";
    sleepers_waited_for: "unload-idle-leaving", "sys-headers/shim.c",
        "return (TD_IS_RUNNING(td) || TD_ON_RUNQ(td) || TD_CAN_RUN(td));" => "return (td != NULL);";
    other_class_looked_for: "unload-idle-entering", "sys-headers/shim.c",
        "PRI_BASE(td->td_pri_class) == PRI_IDLE" => "PRI_BASE(td->td_pri_class) == PRI_REALTIME";
    pass_made_by_kldunload: "unload-cpu-hog", "src/drain.rs",
        "QUEUE.enqueue(&PASS);" => "PASS.work();";
    pass_waited_for_for_ever: "unload-cpu-hog", "src/drain.rs",
        "wait_until(PASS_MS, ||" => "wait_until(u32::MAX, ||";
    pass_started_twice: "unload-cpu-hog", "src/vop.rs",
        "drain::outlast_pass()?;" => "";
    drain_thread_left: "unload-idle-runs", "src/drain.rs",
        "    QUEUE.stop();" => "";
    refused_and_not_at_work: "unload-cpu-hog", "src/vop.rs",
        "            take_again();" => "";
    trusted_at_boot: "loaded-at-boot", "src/kpi/proc.rs",
        "bool {\n    TD_SA_IS_KNOWN.load(Ordering::Relaxed) &&" => "bool {\n   ";
    never_trusted_after_boot: "loaded-at-boot", "src/kpi/proc.rs",
        "if !TD_SA_IS_KNOWN.load(Ordering::Relaxed) && syscall" => "if false && syscall";
    refused_at_boot: "loaded-at-boot", "src/kpi/proc.rs",
        "if unsafe { sys::shim_in_proc0() } {" => "if false {";
    mount_not_checked_at_use: "structures-at-use", "sys-headers/shim.c",
        "ip == NULL || ufsmount_mismatch(vp->v_mount) != NULL" => "ip == NULL";
    inode_not_checked_at_use: "structures-at-use", "sys-headers/shim.c",
        "return (ip != NULL && ip->i_vnode == vp ? ip : NULL);" => "return (ip);";
    leaving_mount_looked_at: "bogus-inside", "sys-headers/shim.c",
        "vfs_busy(mp, MBF_NOWAIT | MBF_MNTLSTLOCK) == 0)" => "(vfs_busy(mp, MBF_NOWAIT | MBF_MNTLSTLOCK), 1))";
    mount_left_busy: "bogus-inside", "sys-headers/shim.c",
        "	vfs_unbusy(mp);\n" => "";
    lock_named_like_one_of_another_kind: "sync", "sys-headers/shim.c",
        "BUF_LOCKINIT(bp, \"asyncpager buf\");" => "BUF_LOCKINIT(bp, \"asyncpager\");";
    hung_disk_has_all_bufs: "bufs-hung", "src/pager/bufs.rs",
        "free > requests || free > 0 && requests == 0" => "free > 0 || requests > free";
    retry_and_the_old_size: "retry-truncated", "src/pager/complete.rs",
        "part.request().inspect(|request| request.value().unlocked());" => "let _ = &part;";
    thread_that_is_not_finished_locked: "unload-idle-runs", "sys-headers/shim.c",
        "if (p->p_state != PRS_NORMAL) {" => "if (p == NULL) {";
    guess_below_geli: "guess-verified", "sys-headers/shim.c",
        "strcmp(pp->geom->class->name, \"ELI\") == 0" => "pp->geom->class == NULL";
    waiting_thread_not_woken: "bufs-none", "src/kpi/buf/pool.rs",
        "            self.available.signal();" => "";
}

macro_rules! unchecked {
    ($($name:ident: $difference:literal, $file:literal, $find:literal => $replace:literal;)*) => {
        $(/// Without its check, a kernel that differs is not refused.
        #[test]
        fn $name() {
            let ko = build(stringify!($name), $file, $find, $replace);
            let refused = !runs(&ko, &["load", "--differs", $difference]);
            std::fs::remove_file(&ko).unwrap();
            assert!(!refused, "another check refuses {}", $difference);
        })*
    };
}

unchecked! {
    zone_not_found_and_passed: "no-mount-zone", "src/kpi/module.rs",
        "        if found == 0 {" => "        if found == 0 {\n            continue;\n        }\n        if found == 0 {";
    size_not_compared: "mount", "src/kpi/module.rs",
        "if found.next_multiple_of(8) != expected.next_multiple_of(8) {" => "if expected == 0 {";
    um_mountp_not_checked: "um-mountp", "sys-headers/shim.c",
        "ump == NULL || ump->um_mountp != mp" => "ump == NULL";
    um_nindir_not_checked: "um-nindir", "sys-headers/shim.c",
        "!= (u_long)fs->fs_bsize)" => "== 0)";
    um_rdonly_not_checked: "um-rdonly", "sys-headers/shim.c",
        "ump->um_rdonly != ffs_rdonly" => "ump == NULL";
    i_vnode_not_checked: "i-vnode", "sys-headers/shim.c",
        "ip == NULL || ip->i_vnode != rootvnode" => "ip == NULL";
    i_number_not_checked: "i-number", "sys-headers/shim.c",
        "ip->i_number == UFS_ROOTINO" => "true";
    td_sa_not_checked: "td-sa", "src/kpi/proc.rs",
        "    if number != sys::SYS_kldload as u32 {" => "    if false {";
    nothing_of_ffs_checked: "fs-magic", "src/kpi/module.rs",
        "vnode::ffs_mismatch()" => "vnode::ffs_mismatch().filter(|_| false)";
}
