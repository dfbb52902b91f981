// SPDX-License-Identifier: BSD-2-Clause
//! Every rule of the simulated kernel, broken once: the testbed must report it.

use std::process::Command;

fn rules(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_asyncpager-testbed"))
        .arg("rules")
        .args(args)
        .output()
        .expect("the testbed starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_broken_rule_is_reported() {
    let (code, listed, _) = rules(&["--list"]);
    assert_eq!(code, Some(0));
    assert!(listed.lines().count() >= 30, "{listed}");
    for (name, says) in listed.lines().filter_map(|line| line.split_once(": ")) {
        let (code, _, said) = rules(&[name]);
        assert_eq!(code, Some(2), "{name}: {said}");
        assert!(said.starts_with("violation: ") && said.contains(says), "{name}: {said}");
    }
}

#[test]
fn an_unknown_rule_is_no_violation() {
    assert_eq!(rules(&["nothing-such"]).0, Some(1));
}
