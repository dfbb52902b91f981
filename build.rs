// SPDX-License-Identifier: BSD-2-Clause
//! Bindings and shim for one release and architecture.
//!
//! The headers come from `ASYNCPAGER_HEADERS`, a directory that `scripts/lib/headers`
//! fills, or `/usr/src/sys` on FreeBSD. `ASYNCPAGER_REL` and `ASYNCPAGER_ARCH`
//! choose what the module is for; the defaults are 14 and amd64.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// What a release and an architecture mean to the compiler.
struct Platform {
    rel: String,
    version: &'static str,
    triple: &'static str,
    machine: &'static [&'static str],
    codegen: &'static [&'static str],
}

impl Platform {
    fn from_env() -> Result<Self> {
        let rel = env::var("ASYNCPAGER_REL").unwrap_or_else(|_| "14".into());
        let arch = env::var("ASYNCPAGER_ARCH").unwrap_or_else(|_| "amd64".into());
        let (version, triple) = match (rel.as_str(), arch.as_str()) {
            ("14", "amd64") => ("1402000", "x86_64-unknown-freebsd14.2"),
            ("15", "amd64") => ("1500068", "x86_64-unknown-freebsd15.0"),
            ("14", "arm64") => ("1402000", "aarch64-unknown-freebsd14.2"),
            ("15", "arm64") => ("1500068", "aarch64-unknown-freebsd15.0"),
            _ => bail!(
                "REL={rel} ARCH={arch} is not a platform of asyncpager: \
                 use REL=14 or REL=15, ARCH=amd64 or ARCH=arm64"
            ),
        };
        let amd64 = arch == "amd64";
        Ok(Self {
            rel,
            version,
            triple,
            machine: if amd64 {
                &["x86_64-freebsd-none", "x86-freebsd-none"]
            } else {
                &["aarch64-freebsd-none"]
            },
            // As sys/conf/kern.mk has it: no floating point, no red zone.
            codegen: if amd64 {
                &["-mcmodel=kernel", "-mno-red-zone", "-mno-mmx", "-mno-sse", "-msoft-float"]
            } else {
                // x18 is the kernel's pcpu pointer.
                &["-mgeneral-regs-only", "-ffixed-x18"]
            },
        })
    }

    /// The include path, most particular first.
    fn includes(&self, manifest: &Path) -> Result<Vec<PathBuf>> {
        let ours = manifest.join("sys-headers");
        let mut dirs = vec![ours.clone(), ours.join(&self.rel)];
        println!("cargo::rerun-if-env-changed=ASYNCPAGER_HEADERS");
        let headers = match env::var_os("ASYNCPAGER_HEADERS") {
            Some(dir) => PathBuf::from(dir),
            None => manifest.join("target/headers").join(&self.rel),
        };
        if headers.join("sys/vnode.h").exists() {
            // A FreeBSD source tree: machine/ and x86/ as the kernel build links them.
            dirs.push(
                env::var_os("ASYNCPAGER_MACHINE")
                    .map_or_else(|| headers.join("machine-links"), PathBuf::from),
            );
            dirs.push(headers);
            return Ok(dirs);
        }
        if !headers.join("generic-freebsd/sys/vnode.h").exists() {
            bail!(
                "no FreeBSD {} kernel headers in {}: run `scripts/lib/headers {}` \
                 or set ASYNCPAGER_HEADERS to a FreeBSD sys directory",
                self.rel,
                headers.display(),
                self.rel
            );
        }
        dirs.extend(self.machine.iter().map(|m| headers.join(m)));
        dirs.push(headers.join("generic-freebsd"));
        Ok(dirs)
    }

    fn flags(&self) -> Vec<String> {
        let mut flags: Vec<String> =
            ["-nostdinc", "-ffreestanding", "-D_KERNEL", "-DKLD_MODULE", "-std=gnu99"]
                .map(String::from)
                .to_vec();
        flags.push(format!("--target={}", self.triple));
        flags.push(format!("-D__FreeBSD_version={}", self.version));
        flags.extend(self.codegen.iter().map(|f| f.to_string()));
        flags
    }
}

fn main() {
    if let Err(error) = build() {
        println!("cargo::error={error:#}");
        std::process::exit(1);
    }
}

fn build() -> Result<()> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("no manifest dir")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").context("no OUT_DIR")?);
    for name in ["ASYNCPAGER_REL", "ASYNCPAGER_ARCH", "ASYNCPAGER_MACHINE"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    println!("cargo::rerun-if-changed=sys-headers");
    println!("cargo::rerun-if-changed=build.rs");

    let platform = Platform::from_env()?;
    let includes = platform.includes(&manifest)?;
    bindings(&platform, &includes, &out)?;
    // The host's tests and the testbed want the layouts only.
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        shim(&platform, &includes)?;
    }
    Ok(())
}

fn bindings(platform: &Platform, includes: &[PathBuf], out: &Path) -> Result<()> {
    let mut builder = bindgen::Builder::default()
        .header("sys-headers/wrapper.h")
        .clang_args(platform.flags())
        .use_core()
        .default_macro_constant_type(bindgen::MacroTypeVariation::Signed)
        .derive_default(false)
        .generate_comments(false)
        .prepend_enum_name(false)
        .wrap_unsafe_ops(true)
        .rust_edition(bindgen::RustEdition::Edition2024);
    for dir in includes {
        builder = builder.clang_arg(format!("-isystem{}", dir.display()));
    }
    for name in [
        "vnode",
        "mount",
        "vop_vector",
        "vnodeop_desc",
        "vop_bmap_args",
        "vop_getpages_args",
        "vop_getpages_async_args",
        "vm_page",
        "vm_object",
        "buf",
        "bufobj",
        "buf_ops",
        "bio",
        "ucred",
        "thread",
        "proc",
        "pcpu",
        "sysctl_oid",
        "sysctl_oid_list",
        "sysctl_req",
        "sysctl_ctx_list",
        "sysctl_ctx_entry",
        "moduledata",
        "mod_metadata",
        "mod_depend",
        "mod_version",
        "sysinit",
        "inode",
        "ufsmount",
        "fs",
        "timeval",
        "vmmeter",
        "rwlock",
        "mtx",
        "lock",
        "cv",
        "g_consumer",
        "g_provider",
        "g_geom",
        "g_class",
        "callout",
        "task",
        "taskqueue",
    ] {
        builder = builder.allowlist_type(name);
    }
    builder = builder
        .allowlist_type("modeventtype|obj_type")
        .allowlist_function("shim_.*")
        .allowlist_function(
            "uma_zdestroy|pbgetbo|pbrelbo|bdone|bwait",
        )
        .allowlist_function(
            "vm_page_(alloc|lookup|find_least|valid|set_valid_range|zero_invalid|free_invalid|readahead_finish)",
        )
        .allowlist_function("vm_page_(alloc_noobj|unwire_noq|free)|vm_object_pip_(add|wakeup)|vm_free_count")
        .allowlist_function("vhold|vdrop|taskqueue_(enqueue|drain|free)")
        .allowlist_function("PHYS_TO_VM_PAGE|pmap_qenter|pmap_qremove|pmap_zero_page|pmap_zero_page_area")
        .allowlist_function("sysctl_ctx_init|sysctl_ctx_free|sysctl_add_oid|sysctl_handle_(bool|int|32|counter_u64)")
        .allowlist_function("counter_u64_(alloc|free|fetch)|printf|panic|eventratecheck|pause_sbt|VOP_.*_APV")
        .allowlist_var("shim_.*|ffs_vnodeops[12]|vop_.*_desc|bogus_page|maxphys|nswbuf|unmapped_buf.*")
        .allowlist_var("osreldate|mp_maxid|rootvnode|hz|sysctl__vfs|sysctl___vfs|tick_sbt")
        .allowlist_var("VM_PAGER_.*|VM_ALLOC_.*|B_.*|BIO_(READ|ERROR)|M_(NOWAIT|WAITOK|ZERO)|MNT_(ASYNC|GJOURNAL)|MNTK_(UNMAPPED_BUFS|UNMOUNT)")
        .allowlist_var("EAGAIN|CTL(FLAG|TYPE).*|OID_AUTO|PVM|DEV_BSIZE|DEV_BSHIFT|PAGE_(SIZE|SHIFT)|MDT_.*|EIO|ENXIO|EINVAL|ENOMEM|EBUSY|EOPNOTSUPP|EDOOFUS|ENOEXEC")
        .allowlist_var("VDIR|VREG|OBJT_VNODE|UFS_N[DI]ADDR|VPO_.*|PQ_.*|VPB_.*")
        // What the testbed's mutexes, callouts and tasks are made of.
        .allowlist_type("vfsconf|sx|callout|task|malloc_type|bintime|lock_object")
        .allowlist_var("PRI_IDLE|PRI_TIMESHARE|UFS_ROOTINO|FS_UFS[12]_MAGIC|MTX_.*|LO_(SLEEPABLE|RECURSABLE|DUPOK)|CALLOUT_(ACTIVE|PENDING)|C_(ABSOLUTE|PRECALC)")
        .allowlist_var("SYS_(sendfile|kldload)|CS_DRAIN|LK_.*|TASK_ENQUEUED|ENOENT|VIRF_DOOMED");
    builder
        .generate()
        .context("bindgen could not read the FreeBSD headers")?
        .write_to_file(out.join("bindings.rs"))
        .context("cannot write bindings.rs")
}

fn shim(platform: &Platform, includes: &[PathBuf]) -> Result<()> {
    let clang = env::var("ASYNCPAGER_CC").unwrap_or_else(|_| "clang".into());
    println!("cargo::rerun-if-env-changed=ASYNCPAGER_CC");
    let mut build = cc::Build::new();
    build
        .compiler(clang)
        .no_default_flags(true)
        .warnings(true)
        .warnings_into_errors(true)
        // As sys/conf/kern.pre.mk has it; without the default flags
        // opt_level() says nothing.
        .flag("-O2")
        .flag("-Wno-pointer-sign")
        .flag("-fno-strict-aliasing")
        .flag("-fno-omit-frame-pointer")
        .flag("-fno-asynchronous-unwind-tables")
        .flag("-ffunction-sections")
        .flag("-fdata-sections")
        .flag("-fno-common")
        .file("sys-headers/shim.c");
    for flag in platform.flags() {
        build.flag(flag);
    }
    for dir in includes {
        build.flag("-isystem").flag(dir);
    }
    build.try_compile("shim").context("the shim does not compile")
}
