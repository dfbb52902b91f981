// SPDX-License-Identifier: BSD-2-Clause
//! The linker: an ELF relocatable into memory, as link_elf_obj does it.

use std::{collections::HashMap, path::Path};

use anyhow::{Context, Result, bail, ensure};
use object::{
    Endianness, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget,
    SectionFlags, SectionIndex, elf, read::elf::ElfFile64,
};

use crate::host::low_memory;

/// A module in memory, not yet initialized.
pub struct Loaded {
    sections: HashMap<String, (usize, usize)>,
}

/// Bytes of a stub: `jmp *[rip]`, padding, the address.
const STUB: usize = 16;

impl Loaded {
    /// Load `path`; `kernel` gives the addresses of the kernel's symbols.
    pub fn load(path: &Path, kernel: &HashMap<&'static str, Symbol>) -> Result<Self> {
        let data = std::fs::read(path).with_context(|| {
            format!("cannot read {}: build it with `make kmod`", path.display())
        })?;
        Self::link(&data, kernel)
            .with_context(|| format!("{} is not a loadable module", path.display()))
    }

    fn link(data: &[u8], kernel: &HashMap<&'static str, Symbol>) -> Result<Self> {
        let file = ElfFile64::<Endianness>::parse(data).context("not an ELF file, or cut short")?;
        ensure!(file.kind() == object::ObjectKind::Relocatable, "not an ELF relocatable");
        ensure!(file.architecture() == object::Architecture::X86_64, "not for amd64");

        let allocated: Vec<_> = file
            .sections()
            .filter(|s| matches!(s.flags(), SectionFlags::Elf { sh_flags } if sh_flags & u64::from(elf::SHF_ALLOC) != 0))
            .collect();
        let size: u64 = allocated.iter().map(|s| s.size().next_multiple_of(64) + 64).sum();
        let stubs = file.symbols().filter(|s| s.is_undefined()).count() * STUB;
        ensure!(size < 1 << 26, "{size} bytes of sections are not believable");
        let base = low_memory::map(size as usize + stubs + 4096, true) as usize;
        let mut at = base;
        let mut place: HashMap<SectionIndex, usize> = HashMap::new();
        let mut sections = HashMap::new();
        for section in &allocated {
            at = at.next_multiple_of(section.align().clamp(1, 4096) as usize);
            let bytes = section.data().context("a section lies outside of the file")?;
            ensure!(bytes.len() as u64 <= section.size(), "a section is larger than it says");
            // SAFETY: within the mapping, by the sum above; bss stays zero.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
            place.insert(section.index(), at);
            sections
                .insert(section.name().unwrap_or("").to_string(), (at, section.size() as usize));
            at += section.size() as usize;
        }
        at = at.next_multiple_of(STUB);

        let mut resolved: HashMap<object::SymbolIndex, usize> = HashMap::new();
        let mut missing = Vec::new();
        for symbol in file.symbols() {
            let address = if let Some(index) = symbol.section_index() {
                match place.get(&index) {
                    Some(base) => base + symbol.address() as usize,
                    None => continue,
                }
            } else if symbol.is_undefined() && symbol.index().0 != 0 {
                let name = symbol.name().context("a symbol without a name")?;
                match kernel.get(name) {
                    Some(Symbol::Function(function)) => {
                        // SAFETY: room for a stub for each undefined symbol.
                        unsafe {
                            let stub = at as *mut u8;
                            stub.copy_from_nonoverlapping(
                                [0xff, 0x25, 2, 0, 0, 0, 0xcc, 0xcc].as_ptr(),
                                8,
                            );
                            stub.add(8).cast::<usize>().write(*function);
                        }
                        at += STUB;
                        at - STUB
                    }
                    Some(Symbol::Data(address)) => *address,
                    None if symbol.is_weak() => 0,
                    None => {
                        missing.push(name.to_string());
                        continue;
                    }
                }
            } else {
                continue;
            };
            resolved.insert(symbol.index(), address);
        }
        if !missing.is_empty() {
            bail!("symbols undefined in this kernel: {}", missing.join(", "));
        }
        for section in &allocated {
            let base = place[&section.index()];
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else {
                    bail!("a relocation without a symbol");
                };
                let symbol =
                    *resolved.get(&index).context("a relocation to a symbol that is not there")?;
                let RelocationFlags::Elf { r_type } = relocation.flags() else {
                    bail!("a relocation that is not ELF's");
                };
                let width = if r_type == elf::R_X86_64_64 { 8 } else { 4 };
                ensure!(offset + width <= section.size(), "a relocation outside of its section");
                let place = base + offset as usize;
                let value = symbol as i64 + relocation.addend();
                // SAFETY: `place` and its width lie within the section.
                unsafe {
                    match r_type {
                        elf::R_X86_64_64 => (place as *mut i64).write_unaligned(value),
                        elf::R_X86_64_32S | elf::R_X86_64_32 => (place as *mut i32)
                            .write_unaligned(
                                i32::try_from(value).context("a symbol is out of reach")?,
                            ),
                        elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 => (place as *mut i32)
                            .write_unaligned(
                                i32::try_from(value - place as i64)
                                    .context("a symbol is out of reach")?,
                            ),
                        other => bail!("relocation type {other} is unknown to the kernel's linker"),
                    }
                }
            }
        }
        Ok(Self { sections })
    }

    /// The pointers in a linker set.
    pub fn set<T>(&self, name: &str) -> Vec<*mut T> {
        let Some((at, len)) = self.sections.get(name) else { return Vec::new() };
        // SAFETY: a linker set is an array of relocated pointers.
        unsafe { std::slice::from_raw_parts(*at as *const *mut T, len / size_of::<usize>()) }
            .to_vec()
    }
}

/// The function behind an address: the module knows the host's functions by their
/// stubs.
pub fn behind_stub(address: usize) -> usize {
    const JUMP: [u8; 8] = [0xff, 0x25, 2, 0, 0, 0, 0xcc, 0xcc];
    // SAFETY: a function's address, where there are instructions to read.
    unsafe {
        let code = (address as *const [u8; 8]).read_unaligned();
        if code == JUMP { ((address + 8) as *const usize).read() } else { address }
    }
}

/// Where the kernel's symbol is: code is reached through a stub, data must be low.
#[derive(Clone, Copy)]
pub enum Symbol {
    /// A function of the host.
    Function(usize),
    /// A variable in the low 2 GiB.
    Data(usize),
}
