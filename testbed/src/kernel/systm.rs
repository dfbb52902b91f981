// SPDX-License-Identifier: BSD-2-Clause
//! printf(9), panic(9), pause(9) and other functions of sys/systm.h.

use std::{
    ffi::{CStr, c_char, c_int},
    sync::Mutex,
    time::{Duration, Instant},
};

use asyncpager::kpi::sys;

use crate::{
    checks::{
        rules::{rule, violation},
        sleep::waits,
    },
    host::{clock, schedule},
};

static MESSAGES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Lines that the module has printed.
pub fn messages() -> Vec<String> {
    MESSAGES.lock().unwrap().clone()
}

/// `strlcpy`.
pub unsafe extern "C" fn strlcpy(to: *mut c_char, from: *const c_char, size: usize) -> usize {
    // SAFETY: strlcpy(3)'s contract.
    unsafe {
        let bytes = CStr::from_ptr(from).to_bytes();
        if size > 0 {
            let n = bytes.len().min(size - 1);
            std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), to, n);
            to.add(n).write(0);
        }
        bytes.len()
    }
}

/// `printf`: the module prints "%s" and one string only.
pub unsafe extern "C" fn printf(format: *const c_char, text: *const c_char) -> c_int {
    // SAFETY: C strings, by the rule checked first.
    unsafe {
        rule("printf", CStr::from_ptr(format) == c"%s", "a format that the testbed does not know");
        let line = CStr::from_ptr(text).to_string_lossy().trim_end().to_string();
        eprintln!("kernel: {line}");
        MESSAGES.lock().unwrap().push(line);
    }
    0
}

/// `panic`.
pub unsafe extern "C" fn panic(_: *const c_char, text: *const c_char) -> ! {
    // SAFETY: a C string.
    violation("panic", unsafe { CStr::from_ptr(text) }.to_string_lossy());
}

/// `pause_sbt`.
pub extern "C" fn pause_sbt(_: *const c_char, sbt: i64, _: i64, _: c_int) -> c_int {
    waits("pause_sbt");
    if schedule::is_one_thread() {
        if !schedule::pump() {
            clock::advance_to(clock::now() + sbt);
        }
    } else {
        clock::sleep(sbt);
    }
    0
}

/// `eventratecheck`: true for the first `most` calls of each second.
pub extern "C" fn eventratecheck(_: *mut sys::timeval, count: *mut c_int, most: c_int) -> c_int {
    static LAST: Mutex<Option<Instant>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap();
    // SAFETY: the caller's counter.
    unsafe {
        if last.is_none_or(|last| last.elapsed() >= Duration::from_secs(1)) {
            *last = Some(Instant::now());
            *count = 0;
        }
        *count += 1;
        c_int::from(*count <= most)
    }
}
