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
