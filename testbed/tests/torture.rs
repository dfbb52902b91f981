// SPDX-License-Identifier: BSD-2-Clause
//! The torture with a fixed set of seeds: a million calls, ten thousand faults.

use std::{path::Path, process::Command};

#[test]
fn a_million_calls_without_a_violation() {
    let ko = std::env::var_os("ASYNCPAGER_KO").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kmod/14-amd64/asyncpager.ko"),
        Into::into,
    );
    let output = Command::new(env!("CARGO_BIN_EXE_asyncpager-testbed"))
        .args(["torture", "--json", "--seeds", "21", "--calls", "50000", "--minutes", "20", "--ko"])
        .arg(&ko)
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
