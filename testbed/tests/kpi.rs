// SPDX-License-Identifier: BSD-2-Clause
//! A module in C uses the kernel's own macros on the testbed's KPI: each function
//! that they expand to must exist and be called as it is defined, and each rule
//! that the module breaks on purpose must be reported.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the project's folder")
}

/// The LLVM that the module is built with.
fn llvm_dir() -> &'static str {
    static DIR: OnceLock<String> = OnceLock::new();
    DIR.get_or_init(|| {
        let found = Command::new("sh")
            .args(["-euc", ". scripts/lib/toolchain && echo \"$LLVM\"", "scripts/lib/toolchain"])
            .current_dir(root())
            .output()
            .expect("sh runs");
        assert!(found.status.success(), "no LLVM: {}", String::from_utf8_lossy(&found.stderr));
        String::from_utf8_lossy(&found.stdout).trim().to_string()
    })
}

/// Run a command of LLVM's.
fn llvm(command: &str) {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    let done = Command::new(Path::new(llvm_dir()).join("bin").join(program))
        .args(words)
        .current_dir(root())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(done.status.success(), "{command}: {}", String::from_utf8_lossy(&done.stderr));
}

fn build(dir: &Path, rule: u32) -> PathBuf {
    let (object, ko) = (dir.join(format!("{rule}.o")), dir.join(format!("{rule}.ko")));
    let headers = "target/headers/14";
    llvm(&format!(
        "clang --target=x86_64-unknown-freebsd14.2 -nostdinc -ffreestanding -std=gnu99 -O1 \
         -D_KERNEL -DKLD_MODULE -D__FreeBSD_version=1402000 -DBROKEN_RULE={rule} -mcmodel=kernel \
         -mno-red-zone -mno-mmx -mno-sse -msoft-float -fno-common \
         -isystem sys-headers -isystem sys-headers/14 -isystem {headers}/x86_64-freebsd-none \
         -isystem {headers}/x86-freebsd-none -isystem {headers}/generic-freebsd \
         -c testbed/tests/kpi/kpi.c -o {}",
        object.display()
    ));
    llvm(&format!(
        "ld.lld -m elf_x86_64_fbsd -r -T scripts/lib/kmod.ld -o {} {}",
        ko.display(),
        object.display()
    ));
    // Without symbols that the headers name and the module does not use.
    llvm(&format!("llvm-objcopy --strip-unneeded {}", ko.display()));
    ko
}

fn load(ko: &Path, args: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = Command::new(env!("CARGO_BIN_EXE_asyncpager-testbed"))
        .args(["load", "--ko"])
        .arg(ko)
        .args(args)
        .output()
        .expect("the testbed starts");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

/// Threads of the host, and one thread that plays them all.
const WAYS: [&[&str]; 2] = [&[], &["--deterministic"]];

#[test]
fn macros_meet_the_kpi() {
    let dir = tempfile::tempdir().unwrap();
    let ko = build(dir.path(), 0);
    for way in WAYS {
        assert_eq!(load(&ko, way), (Some(0), String::new()), "{way:?}");
    }
}

#[test]
fn broken_rules_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    for (rule, says) in (1..).zip([
        "lock order reversal: kpi two",
        "malloc: sleeping with a kpi one lock held since mtx_lock at testbed/tests/kpi/kpi.c",
        "1 callouts pending or running are left",
        "1 taskqueues are left",
        "1 allocations of type kpi are left",
        "1 mutexes are left",
        "recursing on a kpi one",
        "malloc: sleeping in a callout thread",
        "draining a task from its own handler",
        "freed twice",
        "pause_sbt: sleeping in a critical section",
        "sched_bind: the thread lock is not held",
        "the thread is left bound to a CPU",
    ]) {
        let ko = build(dir.path(), rule);
        for way in WAYS {
            let (code, said) = load(&ko, way);
            assert_eq!(code, Some(2), "{rule} {way:?}: {said}");
            assert!(said.starts_with("violation: ") && said.contains(says), "{rule}: {said}");
        }
    }
}
