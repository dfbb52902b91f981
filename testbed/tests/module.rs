// SPDX-License-Identifier: BSD-2-Clause
//! The very .ko that kldload takes, in the testbed: one process for each test.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn ko() -> PathBuf {
    let path = std::env::var_os("ASYNCPAGER_KO").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kmod/14-amd64/asyncpager.ko"),
        PathBuf::from,
    );
    assert!(path.exists(), "{} is not there: run `make kmod` first", path.display());
    path
}

fn testbed(args: &[&str], ko: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_asyncpager-testbed"))
        .arg(args[0])
        .arg("--ko")
        .arg(ko)
        .args(&args[1..])
        .output()
        .expect("the testbed starts")
}

fn text(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{err}")
}

fn passes(args: &[&str]) -> String {
    let output = testbed(args, &ko());
    assert!(output.status.success(), "{args:?}: {}\n{}", output.status, text(&output));
    text(&output)
}

/// The run ends with exit code 1 and one line that says `what`.
fn refused(args: &[&str], ko: &Path, what: &str) {
    let output = testbed(args, ko);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    let lines: Vec<_> =
        said.lines().filter(|line| line.starts_with("asyncpager-testbed:")).collect();
    assert!(lines.len() == 1 && lines[0].contains(what), "{args:?}: {said}");
}

macro_rules! checks {
    ($($test:ident: $name:literal,)*) => {
        $(#[test]
        fn $test() {
            passes(&["check", $name]);
        })*

        #[test]
        fn every_scenario_is_tested() {
            let listed = passes(&["check", "--list"]);
            let listed: Vec<_> = listed.lines().collect();
            assert_eq!(listed, [$($name),*]);
        }
    };
}

checks! {
    bogus_inside: "bogus-inside",
    last_partly_valid: "last-partly-valid",
    holes: "holes",
    several_runs: "several-runs",
    behind_and_ahead: "behind-and-ahead",
    maxphys: "maxphys",
    end_of_file: "end-of-file",
    small_blocks: "small-blocks",
    no_iodone: "no-iodone",
    sync: "sync",
    mapped: "mapped",
    never_waits: "never-waits",
    error: "error",
    error_only_ahead: "error-only-ahead",
    device_gone: "device-gone",
    short_transfer: "short-transfer",
    no_memory: "no-memory",
    no_bmap: "no-bmap",
    bmap_fails: "bmap-fails",
    doomed: "doomed",
    large_sector: "large-sector",
    disabled: "disabled",
    tunables: "tunables",
    replaced_since: "replaced-since",
    swap_pager: "swap-pager",
    stock_model: "stock-model",
    unload_under_load: "unload-under-load",
    parallel: "parallel",
    forced_unmount: "forced-unmount",
    stream: "stream",
    stream_seen: "stream-seen",
    stream_far: "stream-far",
    stream_burst: "stream-burst",
    stream_gap: "stream-gap",
    stream_random: "stream-random",
    stream_lost: "stream-lost",
    stream_over: "stream-over",
    stream_grows: "stream-grows",
    stream_error: "stream-error",
    stream_memory: "stream-memory",
    stream_cut: "stream-cut",
    stream_unmount: "stream-unmount",
    stream_switches: "stream-switches",
    stream_devices: "stream-devices",
    stream_many: "stream-many",
    stream_hung: "stream-hung",
    stream_users: "stream-users",
    map: "map",
    map_levels: "map-levels",
    map_holes: "map-holes",
    map_error: "map-error",
    map_fast: "map-fast",
    map_others: "map-others",
    map_untrusted: "map-untrusted",
    map_async_mount: "map-async-mount",
    map_gone_on: "map-gone-on",
    guess: "guess",
    guess_late: "guess-late",
    guess_wrong: "guess-wrong",
    guess_luck: "guess-luck",
    guess_error: "guess-error",
    guess_barred: "guess-barred",
    guess_hung: "guess-hung",
    guess_verified: "guess-verified",
    guess_end: "guess-end",
    guess_off: "guess-off",
    bufs_none: "bufs-none",
    bufs_none_no_memory: "bufs-none-no-memory",
    bufs_readahead: "bufs-readahead",
    bufs_map_starved: "bufs-map-starved",
    promise_not_kept: "promise-not-kept",
    map_truncated: "map-truncated",
    use_buf_pager_off: "use-buf-pager-off",
    bufs_hung: "bufs-hung",
    retry_truncated: "retry-truncated",
    loaded_at_boot: "loaded-at-boot",
    structures_at_use: "structures-at-use",
    unload_idle_entering: "unload-idle-entering",
    unload_idle_leaving: "unload-idle-leaving",
    unload_idle_runs: "unload-idle-runs",
    unload_cpu_hog: "unload-cpu-hog",
}

/// Images with 4, 32 and 64 KiB blocks and files of all shapes.
#[test]
fn images_of_all_block_sizes() {
    let said = passes(&["demo"]);
    for name in ["UFS1", "UFS2"] {
        for block in [4096, 32768] {
            assert!(said.contains(&format!("{name} with blocks of {block} bytes")), "{said}");
        }
    }
    assert!(said.contains("blocks of 65536 bytes"), "{said}");
    assert_eq!(said.matches("every byte right").count(), 5, "{said}");
}

#[test]
fn images_without_unmapped_bufs() {
    passes(&["demo", "--mapped", "--seed", "7"]);
}

#[test]
fn failing_disk() {
    let said = passes(&["demo", "--fail", "20", "--json"]);
    for line in said.lines().filter(|line| line.starts_with('{')) {
        let result: serde_json::Value = serde_json::from_str(line).expect("JSON");
        assert!(result["counters"]["vfs.asyncpager.stats.errors"].as_u64() > Some(0), "{result}");
    }
}

#[test]
fn wrong_releases_are_refused_with_what_to_build() {
    refused(&["demo", "--osreldate", "1500068"], &ko(), "make kmod REL=15");
    refused(&["demo", "--osreldate", "1301000"], &ko(), "depends on a kernel of 1400000..=1599999");
}

/// Each check of the kernel's structures, and what its message names.
const DIFFERENCES: &[(&str, &str)] = &[
    ("buf", "struct buf of this kernel differs"),
    ("vnode", "struct vnode of this kernel differs"),
    ("vm-object", "struct vm_object of this kernel differs"),
    ("mount", "struct mount of this kernel differs"),
    ("no-buf-zone", "no sysctl vm.uma.pbuf.size"),
    ("no-vnode-zone", "no sysctl vm.uma.VNODE.size"),
    ("no-vm-object-zone", "no sysctl vm.uma.VM_OBJECT.size"),
    ("no-mount-zone", "struct mount cannot be checked"),
    ("um-mountp", "ufsmount.um_mountp of a mounted FFS differs"),
    ("um-nindir", "ufsmount.um_nindir of a mounted FFS differs"),
    ("um-rdonly", "ufsmount.um_rdonly of a mounted FFS differs"),
    ("fs-magic", "fs.fs_magic of a mounted FFS differs"),
    ("i-vnode", "inode.i_vnode of a mounted FFS differs"),
    ("i-number", "inode.i_number of a mounted FFS differs"),
    ("td-sa", "thread.td_sa of this kernel differs"),
];

#[test]
fn other_structures_are_refused() {
    for (difference, what) in DIFFERENCES {
        refused(&["load", "--differs", difference], &ko(), what);
    }
}

#[test]
fn every_difference_is_tested() {
    let help = passes(&["load", "--help"]);
    let (_, listed) = help.split_once("--differs <DIFFERS>").expect("an option");
    let (listed, _) = listed.split_once("--tunable").expect("the next option");
    let listed = listed.lines().filter_map(|line| line.trim().strip_prefix("- "));
    let listed = listed.filter_map(|line| line.split_once(':')).map(|(name, _)| name);
    assert!(listed.eq(DIFFERENCES.iter().map(|(name, _)| *name)), "{help}");
}

#[test]
fn truncated_modules_are_refused() {
    let whole = std::fs::read(ko()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("asyncpager.ko");
    refused(&["demo"], &path, "make kmod");
    for percent in [0, 1, 10, 50, 90, 99] {
        std::fs::write(&path, &whole[..whole.len() * percent / 100]).unwrap();
        refused(&["demo"], &path, "is not a loadable module");
    }
    std::fs::write(&path, b"#!/bin/sh\n").unwrap();
    refused(&["demo"], &path, "is not a loadable module");
}

#[test]
fn broken_images_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("files");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("big"), vec![1u8; 3 << 20]).unwrap();
    let image = dir.path().join("whole.img");
    let made = Command::new("makefs")
        .args(["-t", "ffs", "-o", "version=1,bsize=4096,fsize=512"])
        .arg(&image)
        .arg(&source)
        .output()
        .expect("makefs is installed: `apt-get install makefs`");
    assert!(made.status.success(), "{}", text(&made));
    let whole = std::fs::read(&image).unwrap();
    let serve = |bytes: &[u8], what: &str| {
        let broken = dir.path().join("broken.img");
        std::fs::write(&broken, bytes).unwrap();
        let (broken, source) = (broken.to_str().unwrap(), source.to_str().unwrap());
        refused(&["serve", "--image", broken, "--source", source], &ko(), what);
    };
    serve(b"", "no UFS superblock");
    serve(&whole[..9000], "no UFS superblock");
    serve(&whole[..20_000], "cut short");
    serve(&whole[..whole.len() / 2], "cut short");
    let mut damaged = whole.clone();
    damaged[8192 + 48..8192 + 52].fill(0xff);
    serve(&damaged, "the superblock makes no sense");
}
