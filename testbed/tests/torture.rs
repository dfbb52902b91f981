// SPDX-License-Identifier: BSD-2-Clause
//! The torture with a fixed set of seeds: a million calls, ten thousand faults.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

fn ko() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kmod/14-amd64/asyncpager.ko");
    std::env::var_os("ASYNCPAGER_KO").map_or(built, PathBuf::from)
}

/// The same seed gives the same run, to the last count.
#[test]
fn one_thread_repeats_itself() {
    let run = || {
        let output = Command::new(env!("CARGO_BIN_EXE_asyncpager-testbed"))
            .args(["torture", "--json", "--deterministic", "--seeds", "2", "--calls", "20000"])
            .args(["--minutes", "20", "--seed", "100", "--ko"])
            .arg(ko())
            .output()
            .expect("the testbed starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(run(), run());
}

#[test]
fn a_million_calls_without_a_violation() {
    let output = Command::new(env!("CARGO_BIN_EXE_asyncpager-testbed"))
        .args(["torture", "--json", "--seeds", "21", "--calls", "50000", "--minutes", "20", "--ko"])
        .arg(ko())
        .output()
        .expect("the testbed starts");
    let last = String::from_utf8_lossy(&output.stderr);
    let last: Vec<_> = last.lines().rev().take(5).collect();
    assert!(output.status.success(), "{}: {last:?}", output.status);
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    println!("{result:#}");
    let faults: u64 = result["faults_injected"]
        .as_object()
        .expect("faults by kind")
        .values()
        .filter_map(serde_json::Value::as_u64)
        .sum();
    assert_eq!(result["seeds"], 21, "{result:#}");
    assert!(result["vop_calls"].as_u64() >= Some(1_000_000), "{result:#}");
    assert!(faults >= 10_000, "{result:#}");
}

/// The same requests in three ways: only the emulation waits, and the module reads
/// no more than 14.2 does.
#[test]
fn the_module_against_what_it_replaces() {
    for seed in ["1", "2", "3"] {
        let output = Command::new(env!("CARGO_BIN_EXE_asyncpager-testbed"))
            .args(["compare", "--json", "--requests", "600", "--seed", seed, "--ko"])
            .arg(ko())
            .output()
            .expect("the testbed starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let figure = |way: &str, name: &str| result[way][name].as_u64().expect("a figure");
        assert_eq!(figure("module", "calls_waiting"), 0, "{result:#}");
        assert_eq!(figure("stock", "calls_waiting"), 0, "{result:#}");
        assert_eq!(
            figure("emulation", "calls_waiting"),
            figure("emulation", "calls"),
            "{result:#}"
        );
        for name in ["calls", "transfers", "pages_read"] {
            assert!(figure("module", name) <= figure("stock", name), "{name}: {result:#}");
        }
        assert!(figure("stock", "transfers") < figure("emulation", "transfers"), "{result:#}");
    }
}

/// Neither the testbed nor the module reads uninitialized or freed memory.
#[test]
fn one_thread_under_valgrind() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lib/sanitize");
    let output = Command::new(script)
        .arg(env!("CARGO_BIN_EXE_asyncpager-testbed"))
        .arg(ko())
        .output()
        .expect("scripts/lib/sanitize starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(result["vop_calls"].as_u64() >= Some(2000), "{result:#}");
}
