// SPDX-License-Identifier: BSD-2-Clause
//! The command, with the module in the testbed: one process for each test.
#![cfg(target_os = "linux")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;

fn ko() -> PathBuf {
    let path = std::env::var_os("ASYNCPAGER_KO").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kmod/14-amd64/asyncpager.ko"),
        PathBuf::from,
    );
    assert!(path.exists(), "{} is not there: run `make kmod` first", path.display());
    path
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendbench"));
    command.args(args);
    command
}

fn testbed(args: &[&str]) -> Output {
    command(args).args(["--testbed", "--quiet", "--ko"]).arg(ko()).output().expect("it starts")
}

/// It ends with this code and says `what`.
fn refused(output: &Output, code: i32, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(said.contains(what), "'{what}': {said}");
}

#[test]
fn all_workloads_with_both_variants() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    let output = testbed(&[
        "compare",
        "--size=1M",
        "--rounds=2",
        "--latency=0,2ms",
        "--json",
        "--report",
        page.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    let runs = results["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 9 * 2 * 2 * 2);
    // The variants change their order.
    let order: Vec<&str> = runs[..4].iter().map(|run| run["variant"].as_str().unwrap()).collect();
    assert_eq!(order, ["stock", "asyncpager", "asyncpager", "stock"]);
    for run in runs {
        let served = |when: &str| run[when]["vfs.asyncpager.stats.calls_async"].as_u64().unwrap();
        let served = served("counters_after") - served("counters_before");
        let module = run["variant"] == "asyncpager";
        assert!(module || served == 0, "the module served {served} calls of stock's: {run}");
        let warm = run["workload"] == "warm";
        assert!(!module || warm || served > 0, "the module served nothing: {run}");
        let bytes: u64 = run["timeline"].as_array().unwrap().iter().filter_map(Value::as_u64).sum();
        assert_eq!(run["bytes"], bytes);
        let (inside, asleep) = (&run["inside_share"], &run["asleep_share"]);
        let (inside, asleep) = (inside.as_f64().unwrap(), asleep.as_f64().unwrap());
        assert!((0.0..=inside).contains(&asleep) && inside <= 1.0, "{run}");
        assert_eq!(run["asleep"]["count"], run["call"]["count"]);
        let longest = |what: &str| run[what]["max"].as_u64().unwrap();
        assert!(longest("asleep") <= longest("call"), "{run}");
        assert_eq!(run["cut"], false);
    }
    // A cold stream from a disk of 2 ms cannot begin any sooner.
    let cold = |run: &&Value| {
        run["variant"] == "asyncpager" && run["latency_ms"] == 2 && run["workload"] == "cold-stream"
    };
    let run = runs.iter().find(cold).unwrap();
    assert!(run["first_byte"]["p50"].as_u64().unwrap() >= 1_980_000, "{}", run["first_byte"]);
    // The kernel's own reads the block map inside of the call, and sleeps for it.
    let deep = |run: &&Value| {
        run["variant"] == "stock" && run["latency_ms"] == 2 && run["workload"] == "deep"
    };
    let run = runs.iter().find(deep).unwrap();
    assert!(run["asleep"]["max"].as_u64().unwrap() >= 1_000_000, "{}", run["asleep"]);
    assert!(run["asleep_share"].as_f64().unwrap() > 0.0, "{run}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && page.contains("many-files"));
}

#[test]
fn run_report_and_saved_json_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (json, page) = (dir.path().join("r.json"), dir.path().join("r.html"));
    let output = testbed(&[
        "run",
        "-w=shared,random",
        "--size=1M",
        "--rounds=1",
        "--save",
        json.to_str().unwrap(),
    ]);
    assert!(output.status.success());
    let report = |more: &[&str]| {
        command(&["report", "--from", json.to_str().unwrap()]).args(more).output().unwrap()
    };
    assert_eq!(report(&[]).stdout, output.stdout);
    assert!(report(&[page.to_str().unwrap()]).status.success());
    assert!(std::fs::read_to_string(page).unwrap().contains("asyncpager"));
}

#[test]
fn a_file_of_an_older_sendbench_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (json, page) = (dir.path().join("old.json"), dir.path().join("old.html"));
    let output = testbed(&["run", "-w=deep", "--size=1M", "--rounds=1", "--json"]);
    let mut results: Value = serde_json::from_slice(&output.stdout).unwrap();
    for new in ["rate", "stagger_ms"] {
        assert!(results["send"].as_object_mut().unwrap().remove(new).is_some(), "{new}");
    }
    for new in ["asleep", "asleep_share"] {
        let run = results["runs"][0].as_object_mut().unwrap();
        assert!(run.remove(new).is_some(), "{new}");
    }
    std::fs::write(&json, results.to_string()).unwrap();
    let report = |more: &[&str]| {
        let output =
            command(&["report", "--from", json.to_str().unwrap()]).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(report(&[]).contains("deep"));
    report(&[page.to_str().unwrap()]);
    assert!(std::fs::read_to_string(page).unwrap().contains("asleep"));
}

#[test]
fn a_run_is_cut_after_its_time() {
    // Two waits at least: one for the first blocks, one for what the block map leads to.
    let output = testbed(&[
        "run",
        "-w=cold-stream",
        "--size=32M",
        "--chunk=4K",
        "--sndbuf=4K",
        "--latency=600ms",
        "--seconds=1",
        "--rounds=1",
        "--json",
    ]);
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    let run = &results["runs"][0];
    assert_eq!(run["cut"], true);
    assert!(run["bytes"].as_u64().unwrap() < 32 << 20);
    assert!((1.0..1.5).contains(&run["seconds"].as_f64().unwrap()), "{}", run["seconds"]);
}

#[test]
fn clients_take_no_more_than_their_rate() {
    // Four clients, of 4 MiB each.
    let args = ["run", "-w=shared", "--size=4M", "--rounds=1", "--rate=16M", "--json"];
    let output = testbed(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(results["send"]["rate"], 16 << 20);
    let run = &results["runs"][0];
    assert_eq!(run["bytes"], 16 << 20);
    // A quarter of a second, but for the last wait, which may be too short to be slept.
    assert!(run["seconds"].as_f64().unwrap() >= 0.249, "{}", run["seconds"]);
    // Their sockets' buffers are full at times.
    assert!(run["calls_full"].as_u64().unwrap() > 0, "{run}");
}

#[test]
fn clients_begin_one_after_another() {
    let shared = |more: &[&str]| {
        let args = ["run", "-w=shared", "--size=1M", "--rounds=1", "--json"];
        let output = testbed(&[&args[..], more].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let results: Value = serde_json::from_slice(&output.stdout).unwrap();
        results["runs"][0].clone()
    };
    let run = shared(&["--stagger=100"]);
    assert_eq!((&run["bytes"], &run["cut"]), (&(4 << 20).into(), &false.into()));
    // The fourth one begins then.
    assert!(run["seconds"].as_f64().unwrap() >= 0.3, "{}", run["seconds"]);
    // Nobody waits for the two whose turn would come when the time is over.
    let run = shared(&["--stagger=600ms", "--seconds=1"]);
    assert!(run["cut"] == true && run["bytes"].as_u64().unwrap() <= 2 << 20, "{run}");
}

#[test]
fn a_signal_ends_it_in_good_order() {
    let mut child = command(&["run", "-w=random", "--size=8M", "--latency=20ms", "--rounds=1000"])
        .args(["--testbed", "--quiet", "--ko"])
        .arg(ko())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Once it catches SIGINT, whenever it comes.
    let pid = child.id();
    let caught = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
        u64::from_str_radix(mask, 16).unwrap() & 1 << (libc::SIGINT - 1) != 0
    };
    while !caught() {
        assert!(child.try_wait().unwrap().is_none(), "it has ended by itself");
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: our own child, which has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let output = child.wait_with_output().unwrap();
    refused(&output, 130, "interrupted");
    assert!(output.stdout.is_empty());
}

#[test]
fn bad_input_has_one_clear_line() {
    let said = |args: &[&str]| command(args).output().unwrap();
    refused(&said(&["compare", "--size", "7X"]), 2, "'7X' is not a size");
    refused(&said(&["compare"]), 4, "--testbed");
    refused(&said(&["run", "--testbed", "--ko", "/nonexistent.ko"]), 4, "make kmod");
    refused(&testbed(&["run", "--size=1G"]), 4, "256 MiB");
    refused(&said(&["report", "--from", "/nonexistent.json"]), 1, "cannot read /nonexistent.json");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.json");
    std::fs::write(&file, "{}").unwrap();
    refused(&said(&["report", "--from", file.to_str().unwrap()]), 1, "is not what --json writes");
}
