// SPDX-License-Identifier: BSD-2-Clause
//! kldload(2) and kldunload(2).

use std::{
    ffi::{CStr, c_int},
    path::Path,
};

use anyhow::{Result, bail, ensure};
use asyncpager::kpi::sys;

use crate::{
    checks::rules::record,
    host::elf::Loaded,
    kernel::{
        differences::{self, Difference},
        module::{forget_registered, registered},
        proc, sched, sysctl,
        systm::messages,
    },
    kld::{
        left::{check_balance, check_left},
        options::Options,
        symbols::symbols,
    },
};

/// A loaded module.
pub struct Module {
    data: *const sys::moduledata,
    /// Its name, by its moduledata.
    pub name: String,
    /// Its SYSUNINITs, in the order in which they run.
    uninits: Vec<*const sys::sysinit>,
}

// SAFETY: the module's data stays mapped for ever; its events are called
// through one owner at a time.
unsafe impl Send for Module {}

// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// kldload: link, check dependencies, run the module's SYSINITs, MOD_LOAD.
    pub fn load(path: &Path, options: &Options) -> Result<Self> {
        proc::attach();
        differences::set(options.differs);
        sysctl::tunables(options.tunables.iter().cloned());
        let loaded = Loaded::load(path, &symbols(options))?;
        for metadata in loaded.set::<sys::mod_metadata>("set_modmetadata_set") {
            // SAFETY: relocated structures of the module.
            unsafe {
                let metadata = &*metadata;
                let on = CStr::from_ptr(metadata.md_cval).to_string_lossy();
                if metadata.md_type == sys::MDT_DEPEND && on == "kernel" {
                    let depend = &*metadata.md_data.cast::<sys::mod_depend>();
                    let range = depend.md_ver_minimum..=depend.md_ver_maximum;
                    ensure!(
                        range.contains(&options.osreldate),
                        "the module depends on a kernel of {range:?}, and this is {}",
                        options.osreldate
                    );
                }
            }
        }
        forget_registered();
        let mut inits = loaded.set::<sys::sysinit>("set_sysinit_set");
        ensure!(!inits.is_empty(), "{} has no SYSINIT: it would do nothing", path.display());
        // SAFETY: relocated structures of the module, run once, in order.
        unsafe {
            inits.sort_by_key(|init| ((**init).subsystem, (**init).order));
            for init in inits {
                if let Some(func) = (*init).func {
                    func((*init).udata);
                }
            }
        }
        let Some(data) = registered() else {
            bail!("{} registers no module", path.display());
        };
        // SAFETY: what the module registered; its name is a C string.
        let name = unsafe { CStr::from_ptr((*data).name) }.to_string_lossy().into_owned();
        let mut uninits: Vec<_> = loaded
            .set::<sys::sysinit>("set_sysuninit_set")
            .into_iter()
            .map(|init| init.cast_const())
            .collect();
        // SAFETY: relocated structures of the module.
        uninits
            .sort_by_key(|init| unsafe { std::cmp::Reverse(((**init).subsystem, (**init).order)) });
        let module = Self { data, name, uninits };
        let code = if differences::is(Difference::TdSa) { 0 } else { sys::SYS_kldload as u32 };
        let loaded = if options.boot {
            proc::in_proc0(|| module.event(sys::MOD_LOAD))
        } else {
            proc::in_syscall(code, || module.event(sys::MOD_LOAD))
        };
        match loaded {
            0 => Ok(module),
            errno => {
                // As module_register_init() does, though nothing was loaded.
                module.event(sys::MOD_UNLOAD);
                module.uninit();
                check_balance();
                bail!(
                    "{} refused to load, errno {errno}: {}",
                    module.name,
                    messages().last().map_or("", String::as_str)
                )
            }
        }
    }

    fn event(&self, what: u32) -> c_int {
        // SAFETY: the module's own event handler, serialized as the kernel does.
        let errno = unsafe {
            (*self.data).evhand.map_or(0, |handler| {
                handler(std::ptr::null_mut(), what as c_int, (*self.data).priv_)
            })
        };
        sched::unbound("module event");
        errno
    }

    /// kldunload: MOD_QUIESCE, then MOD_UNLOAD. The errno of a refusal.
    pub fn unload(&self) -> Result<(), c_int> {
        record("kldunload", format_args!("{}", self.name));
        for what in [sys::MOD_QUIESCE, sys::MOD_UNLOAD] {
            match self.event(what) {
                0 => {}
                errno => return Err(errno),
            }
        }
        self.uninit();
        check_left();
        Ok(())
    }

    fn uninit(&self) {
        // SAFETY: relocated structures of the module, run once, in order.
        unsafe {
            for init in &self.uninits {
                if let Some(func) = (**init).func {
                    func((**init).udata);
                }
            }
        }
    }
}
