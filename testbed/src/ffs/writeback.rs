// SPDX-License-Identifier: BSD-2-Clause
//! Dirty pages go to the disk, as bufdaemon and fsync(2) write them.

use crate::{
    checks::rules::rule,
    disk::written::SECTOR,
    ffs::file::File,
    host::memory::PAGE,
    kernel::{
        resident::{self, Page},
        vm_object,
    },
};

/// Writes all dirty pages of the file to the disk.
pub fn sync(file: &File) {
    flush(file, 1, &mut fastrand::Rng::with_seed(0));
}

/// Writes one in `one_in` of the file's dirty pages to the disk; how many. The vnode
/// is held, so that the object stays.
pub fn flush(file: &File, one_in: usize, rng: &mut fastrand::Rng) -> usize {
    let mut written = 0;
    for pindex in vm_object::dirty(file.object) {
        if rng.usize(..one_in) != 0 {
            continue;
        }
        let page = resident::grab(file.object, pindex);
        if page.fields().dirty != 0 {
            rule("bufwrite", page.fields().valid == u8::MAX, "a dirty page is not valid");
            put(file, page);
            page.fields().dirty = 0;
            written += 1;
        }
        page.unbusy("bufdone");
        resident::unwire(page, true);
    }
    written
}

/// A busied page's bytes go to the blocks of its file.
fn put(file: &File, page: Page) {
    let start = page.fields().pindex * PAGE as u64;
    let (block, size) = (file.mount.block, file.size());
    for at in (start..(start + PAGE as u64).min(size)).step_by(SECTOR as usize) {
        let (place, ..) = file.bmap(at / block);
        rule("bufwrite", place >= 0, "a hole is written to");
        // SAFETY: within a busied page.
        let bytes = unsafe {
            std::slice::from_raw_parts(page.data().add((at - start) as usize), SECTOR as usize)
        };
        file.disk().write(place as u64 * 512 + at % block, bytes);
    }
}
