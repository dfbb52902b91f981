// SPDX-License-Identifier: BSD-2-Clause
//! A disk of our own: md(4), gnop(8)'s latency on it, a filesystem, and its mount.
//!
//! The kernel is asked directly (mdctl, geom.ctl, nmount), so that of FreeBSD's
//! programs only newfs(8) is needed.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_ulong, c_void},
    fs::File,
    io,
    os::fd::AsRawFd,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

const IOC_OUT: c_ulong = 0x4000_0000;
const IOC_IN: c_ulong = 0x8000_0000;

const fn ioctl(direction: c_ulong, group: u8, number: u8, len: usize) -> c_ulong {
    direction | ((len as c_ulong & 0x1fff) << 16) | ((group as c_ulong) << 8) | number as c_ulong
}

/// struct md_ioctl of sys/mdioctl.h.
#[repr(C)]
struct MdIoctl {
    version: c_uint,
    unit: c_uint,
    kind: c_int,
    file: *mut c_char,
    mediasize: i64,
    sectorsize: c_uint,
    options: c_uint,
    base: u64,
    fwheads: c_int,
    fwsectors: c_int,
    label: *mut c_char,
    pad: [c_int; 96],
}

const MD_SWAP: c_int = 3;
const MD_AUTOUNIT: c_uint = 0x04;
const MD_FORCE: c_uint = 0x20;

impl MdIoctl {
    fn new() -> Self {
        // SAFETY: integers and null pointers.
        unsafe { std::mem::zeroed() }
    }

    fn call(&mut self, number: u8) -> io::Result<()> {
        let control = File::options().read(true).write(true).open("/dev/mdctl")?;
        let request = ioctl(IOC_IN | IOC_OUT, b'm', number, size_of::<Self>());
        // SAFETY: the structure that the request is for.
        match unsafe { libc::ioctl(control.as_raw_fd(), request, &raw mut *self) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Make a disk of at least so many bytes in memory that may go to swap; its name, `md0`.
pub fn md_create(bytes: u64) -> Result<String> {
    load("g_md", "geom_md")?;
    let mut md = MdIoctl::new();
    md.kind = MD_SWAP;
    // Whole sectors and pages, or md(4) refuses.
    md.mediasize = bytes.next_multiple_of(1 << 20) as i64;
    md.sectorsize = 512;
    md.options = MD_AUTOUNIT;
    md.call(0).context("cannot make a memory disk (md(4))")?;
    Ok(format!("md{}", md.unit))
}

/// Take it away.
pub fn md_destroy(name: &str) -> Result<()> {
    let mut md = MdIoctl::new();
    md.unit = name.trim_start_matches("md").parse().context("not the name of a memory disk")?;
    patiently(|| match md.call(1) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            md.options = MD_FORCE;
            Err(error)
        }
        other => other,
    })
    .with_context(|| format!("cannot detach {name}"))
}

/// struct gctl_req_arg of geom/geom_ctl.h.
#[repr(C)]
struct GctlArg {
    nlen: c_uint,
    name: *const c_char,
    offset: i64,
    flag: c_int,
    len: c_int,
    value: *mut c_void,
    kvalue: *mut c_void,
}

/// struct gctl_req of geom/geom_ctl.h.
#[repr(C)]
struct GctlReq {
    version: c_uint,
    serial: c_uint,
    narg: c_uint,
    arg: *mut GctlArg,
    lerror: c_uint,
    error: *mut c_char,
    table: *mut c_void,
    nerror: c_int,
    serror: *mut c_void,
}

const GCTL_VERSION: u8 = 2;
const GCTL_RD: c_int = 1;
const GCTL_ASCII: c_int = 4;

/// A request to a GEOM class, as gnop(8) sends them.
struct Geom(Vec<(CString, Vec<u8>, c_int)>);

impl Geom {
    fn new(class: &str, verb: &str) -> Self {
        Self(Vec::new()).text("class", class).text("verb", verb)
    }

    fn text(mut self, name: &str, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.0.push((CString::new(name).unwrap_or_default(), bytes, GCTL_RD | GCTL_ASCII));
        self
    }

    fn raw(mut self, name: &str, bytes: &[u8]) -> Self {
        self.0.push((CString::new(name).unwrap_or_default(), bytes.to_vec(), GCTL_RD));
        self
    }

    fn int(self, name: &str, value: c_int) -> Self {
        self.raw(name, &value.to_ne_bytes())
    }

    fn wide(self, name: &str, value: i64) -> Self {
        self.raw(name, &value.to_ne_bytes())
    }

    fn send(mut self) -> Result<()> {
        let control = File::options().read(true).open("/dev/geom.ctl").context("/dev/geom.ctl")?;
        let mut args: Vec<GctlArg> = self
            .0
            .iter_mut()
            .map(|(name, value, flag)| GctlArg {
                nlen: name.as_bytes_with_nul().len() as c_uint,
                name: name.as_ptr(),
                offset: 0,
                flag: *flag,
                len: value.len() as c_int,
                value: value.as_mut_ptr().cast(),
                kvalue: std::ptr::null_mut(),
            })
            .collect();
        let mut error = [0; 1024];
        let mut request = GctlReq {
            version: c_uint::from(GCTL_VERSION),
            serial: 0,
            narg: args.len() as c_uint,
            arg: args.as_mut_ptr(),
            lerror: error.len() as c_uint,
            error: error.as_mut_ptr(),
            table: std::ptr::null_mut(),
            nerror: 0,
            serror: std::ptr::null_mut(),
        };
        let number = ioctl(IOC_IN, b'G', GCTL_VERSION, size_of::<GctlReq>());
        // SAFETY: the structure that the request is for; all it points at outlives the call.
        let done = unsafe { libc::ioctl(control.as_raw_fd(), number, &raw mut request) };
        let os = io::Error::last_os_error();
        // SAFETY: zeroed, and the kernel writes a C string of at most `lerror` bytes.
        let text = unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned();
        match (done, text.is_empty()) {
            (0, true) => Ok(()),
            (_, false) => bail!("{text}"),
            (_, true) => Err(os.into()),
        }
    }
}

/// Version of gnop's requests (geom/nop/g_nop.h).
const NOP_VERSION: c_uint = 4;

/// A gnop(8) disk.
#[derive(Clone)]
pub struct Nop {
    provider: String,
}

impl Nop {
    /// On top of `below`, without latency at first.
    pub fn create(below: &str) -> Result<Self> {
        load("g_nop", "geom_nop")?;
        let request = Geom::new("NOP", "create")
            .raw("version", &NOP_VERSION.to_ne_bytes())
            .int("nargs", 1)
            .text("arg0", below);
        // The kernel wants every number, as gnop(8) gives them: -1 is its default.
        let request = ["error", "rfailprob", "wfailprob", "delaymsec", "rdelayprob", "wdelayprob"]
            .iter()
            .chain(&["count_until_fail"])
            .fold(request, |request, name| request.wide(name, -1));
        ["offset", "size", "secsize", "stripesize", "stripeoffset"]
            .iter()
            .fold(request, |request, name| request.wide(name, 0))
            .send()
            .with_context(|| format!("cannot put a gnop(8) disk on {below}"))?;
        Ok(Self { provider: format!("{below}.nop") })
    }

    /// Its name, without /dev.
    pub fn name(&self) -> &str {
        &self.provider
    }

    /// Let every read take so long. Writes are not delayed.
    pub fn latency(&self, milliseconds: u64) -> Result<()> {
        let request = Geom::new("NOP", "configure")
            .raw("version", &NOP_VERSION.to_ne_bytes())
            .int("nargs", 1)
            .text("arg0", &self.provider)
            .wide("delaymsec", milliseconds.max(1) as i64)
            .wide("rdelayprob", if milliseconds > 0 { 100 } else { 0 })
            .wide("wdelayprob", 0);
        ["error", "rfailprob", "wfailprob", "count_until_fail"]
            .iter()
            .fold(request, |request, name| request.wide(name, -1))
            .send()
            .with_context(|| format!("cannot set the latency of {}", self.provider))
    }

    /// Take it away.
    pub fn destroy(&self) -> Result<()> {
        patiently(|| {
            Geom::new("NOP", "destroy")
                .raw("version", &NOP_VERSION.to_ne_bytes())
                .int("nargs", 1)
                .int("force", 0)
                .text("arg0", &self.provider)
                .send()
        })
        .with_context(|| format!("cannot destroy {}", self.provider))
    }
}

/// Load a kernel module unless it is there, in the kernel itself or loaded.
fn load(module: &str, file: &str) -> Result<()> {
    let (name, path) = (CString::new(module)?, CString::new(file)?);
    // SAFETY: C strings.
    unsafe {
        if modfind(name.as_ptr()) >= 0 || kldload(path.as_ptr()) >= 0 {
            return Ok(());
        }
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EEXIST) => Ok(()),
        _ => Err(error).with_context(|| format!("cannot load {file}: is it in /boot/kernel?")),
    }
}

unsafe extern "C" {
    /// modfind(2).
    fn modfind(name: *const c_char) -> c_int;
    /// kldload(2).
    fn kldload(file: *const c_char) -> c_int;
}

/// Try for two seconds: the last user of a disk may be on its way out.
fn patiently<E>(
    mut step: impl FnMut() -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    for _ in 0..20 {
        if step().is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    step()
}

/// newfs(8): UFS2 with soft updates.
pub fn newfs(device: &str) -> Result<()> {
    let output = Command::new("/sbin/newfs")
        .args(["-U", device])
        .output()
        .context("cannot run /sbin/newfs (--no-newfs takes the filesystem that is there)")?;
    ensure!(
        output.status.success(),
        "newfs {device}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// mount(8) of FFS.
pub fn mount(device: &str, on: &Path) -> Result<()> {
    let mut error = vec![0u8; 256];
    let mut strings = Vec::new();
    for (name, value) in
        [("fstype", "ufs"), ("fspath", &on.to_string_lossy()), ("from", device), ("noatime", "")]
    {
        strings.push(CString::new(name)?.into_bytes_with_nul());
        strings.push(if value.is_empty() {
            Vec::new()
        } else {
            CString::new(value)?.into_bytes_with_nul()
        });
    }
    strings.push(CString::new("errmsg")?.into_bytes_with_nul());
    let mut iov: Vec<libc::iovec> = strings
        .iter_mut()
        .chain([&mut error])
        .map(|bytes| libc::iovec {
            iov_base: if bytes.is_empty() {
                std::ptr::null_mut()
            } else {
                bytes.as_mut_ptr().cast()
            },
            iov_len: bytes.len(),
        })
        .collect();
    // SAFETY: pairs of names and values that outlive the call.
    if unsafe { libc::nmount(iov.as_mut_ptr(), iov.len() as c_uint, 0) } != 0 {
        let os = io::Error::last_os_error();
        let text = CStr::from_bytes_until_nul(&error).unwrap_or_default().to_string_lossy();
        bail!("cannot mount {device} on {}: {os} {text}", on.display());
    }
    Ok(())
}

/// umount(8); not being mounted is no error.
pub fn unmount(at: &Path, force: bool) -> Result<()> {
    let path = CString::new(at.as_os_str().as_encoded_bytes())?;
    patiently(|| {
        // SAFETY: a C string.
        if unsafe { libc::unmount(path.as_ptr(), 0) } == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            error => Err(error),
        }
    })
    .or_else(|error| {
        // SAFETY: a C string.
        match force && unsafe { libc::unmount(path.as_ptr(), libc::MNT_FORCE) } == 0 {
            true => Ok(()),
            false => Err(error),
        }
    })
    .with_context(|| format!("cannot unmount {}", at.display()))
}

/// Where a filesystem lies: its device, type, and block size.
pub fn filesystem(at: &Path) -> Result<(String, String, u64)> {
    let path = CString::new(at.as_os_str().as_encoded_bytes())?;
    // SAFETY: a C string, and a place that the call fills.
    let stat = unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        ensure!(
            libc::statfs(path.as_ptr(), &mut stat) == 0,
            "{}: {}",
            at.display(),
            io::Error::last_os_error()
        );
        stat
    };
    let text = |chars: &[c_char]| -> String {
        chars.iter().take_while(|c| **c != 0).map(|c| char::from(*c as u8)).collect()
    };
    Ok((text(&stat.f_mntfromname), text(&stat.f_fstypename), stat.f_iosize))
}

/// struct fiobmap2_arg of sys/filio.h.
#[repr(C)]
struct Bmap {
    block: i64,
    after: c_int,
    before: c_int,
}

/// In how many extents a file's bytes from `begin` to `end` lie; none when the filesystem does not tell.
pub fn extents(file: &File, begin: u64, end: u64, block: u64) -> Option<u64> {
    let sectors = block / 512;
    let (mut count, mut next) = (0, -1);
    for logical in begin / block..end.div_ceil(block) {
        let mut arg = Bmap { block: logical as i64, after: 0, before: 0 };
        let request = ioctl(IOC_IN | IOC_OUT, b'f', 99, size_of::<Bmap>());
        // SAFETY: the structure that the request is for.
        if unsafe { libc::ioctl(file.as_raw_fd(), request, &raw mut arg) } != 0 {
            return None;
        }
        if arg.block != next {
            count += 1;
        }
        next = arg.block + sectors as i64;
    }
    Some(count)
}
