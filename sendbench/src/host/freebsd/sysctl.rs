// SPDX-License-Identifier: BSD-2-Clause
//! sysctl(3).

use std::{ffi::CString, io};

use anyhow::{Context, Result, ensure};

/// The value's bytes.
fn bytes(name: &str) -> io::Result<Vec<u8>> {
    let path = CString::new(name)?;
    let mut len = 0;
    // SAFETY: a C string; without a place for the value the call tells its length.
    if unsafe {
        libc::sysctlbyname(path.as_ptr(), std::ptr::null_mut(), &mut len, std::ptr::null(), 0)
    } != 0
    {
        return Err(io::Error::last_os_error());
    }
    let mut value = vec![0u8; len];
    // SAFETY: `value` has `len` bytes.
    if unsafe {
        libc::sysctlbyname(path.as_ptr(), value.as_mut_ptr().cast(), &mut len, std::ptr::null(), 0)
    } != 0
    {
        return Err(io::Error::last_os_error());
    }
    value.truncate(len);
    Ok(value)
}

/// Whether there is such a node.
pub fn exists(name: &str) -> bool {
    bytes(name).is_ok()
}

/// An integer of 1, 2, 4 or 8 bytes.
pub fn number(name: &str) -> Result<u64> {
    let value = bytes(name).with_context(|| format!("sysctl {name}"))?;
    ensure!(matches!(value.len(), 1 | 2 | 4 | 8), "sysctl {name} is not an integer");
    let mut wide = [0; 8];
    wide[..value.len()].copy_from_slice(&value);
    Ok(u64::from_le_bytes(wide))
}

/// An array of longs.
pub fn longs(name: &str) -> Result<Vec<i64>> {
    let value = bytes(name).with_context(|| format!("sysctl {name}"))?;
    Ok(value.as_chunks::<8>().0.iter().map(|word| i64::from_le_bytes(*word)).collect())
}

/// An array of ints.
pub fn ints(name: &str) -> Result<Vec<i32>> {
    let value = bytes(name).with_context(|| format!("sysctl {name}"))?;
    Ok(to_ints(&value))
}

/// A string.
pub fn text(name: &str) -> Result<String> {
    let value = bytes(name).with_context(|| format!("sysctl {name}"))?;
    Ok(String::from_utf8_lossy(&value).trim_end_matches('\0').to_string())
}

/// Set an integer of the node's own width.
pub fn set(name: &str, value: u64) -> Result<()> {
    let width = bytes(name).with_context(|| format!("sysctl {name}"))?.len();
    let path = CString::new(name)?;
    let value = value.to_le_bytes();
    // SAFETY: a C string and `width` bytes of the value.
    let done = unsafe {
        libc::sysctlbyname(
            path.as_ptr(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            value.as_ptr().cast(),
            width.min(value.len()),
        )
    };
    ensure!(done == 0, "sysctl {name}: {}", io::Error::last_os_error());
    Ok(())
}

/// All integers below a node, by name.
pub fn below(prefix: &str) -> Result<Vec<(String, u64)>> {
    // sysctl.name_and_next: {0, 2, oid} gives the next oid, {0, 1, oid} its name (sysctl(3)).
    let mut all = Vec::new();
    let mut oid = mib(prefix)?;
    let depth = oid.len();
    let root = oid.clone();
    loop {
        let mut query = vec![0, 2];
        query.extend(&oid);
        let Ok(next) = by_mib(&query) else { break };
        oid = to_ints(&next);
        if oid.len() < depth || oid[..depth] != root[..] {
            break;
        }
        let mut query = vec![0, 1];
        query.extend(&oid);
        let name = by_mib(&query).with_context(|| format!("sysctl below {prefix}"))?;
        let name = String::from_utf8_lossy(&name).trim_end_matches('\0').to_string();
        if let Ok(value) = number(&name) {
            all.push((name, value));
        }
    }
    Ok(all)
}

fn mib(name: &str) -> Result<Vec<i32>> {
    let path = CString::new(name)?;
    let mut oid = vec![0; libc::CTL_MAXNAME as usize];
    let mut len = oid.len();
    // SAFETY: a C string and a place for `len` integers.
    let done = unsafe { libc::sysctlnametomib(path.as_ptr(), oid.as_mut_ptr(), &mut len) };
    ensure!(done == 0, "sysctl {name}: {}", io::Error::last_os_error());
    oid.truncate(len);
    Ok(oid)
}

fn by_mib(oid: &[i32]) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; 1024];
    let mut len = value.len();
    // SAFETY: an oid and a place for `len` bytes.
    let done = unsafe {
        libc::sysctl(
            oid.as_ptr(),
            oid.len() as u32,
            value.as_mut_ptr().cast(),
            &mut len,
            std::ptr::null(),
            0,
        )
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    value.truncate(len);
    Ok(value)
}

fn to_ints(bytes: &[u8]) -> Vec<i32> {
    bytes.as_chunks::<4>().0.iter().map(|int| i32::from_le_bytes(*int)).collect()
}
