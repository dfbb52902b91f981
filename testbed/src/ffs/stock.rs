// SPDX-License-Identifier: BSD-2-Clause
//! Models of the code that the module replaces, after FreeBSD 14.2: the asynchronous
//! getpages of FFS (vnode_pager_generic_getpages()), the synchronous ones (the buffer
//! pager), and the emulation of the former over the latter (vop_stdgetpages_async()).

use std::{
    ffi::{c_int, c_void},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use asyncpager::kpi::sys;

use crate::{
    checks::rules::{rule, violation},
    ffs::file::{Bmap, File},
    host::memory::PAGE,
    kernel::{
        buf, pmap,
        resident::{self, Page},
        rwlock, vm_page,
        vm_pager::Iodone,
    },
};

/// Answer as 14.2 does even where it forgets its caller: no iodone for holes, small
/// blocks and filesystems without a block map, and a last page that is partly valid is
/// left out of the count. When off, the models mend that: a consumer that waits for
/// iodone would hang.
pub static FAITHFUL: AtomicBool = AtomicBool::new(false);

/// A call of one of the VOPs.
pub struct Call {
    /// The file.
    pub file: Arc<File>,
    /// The caller's array.
    pub array: *mut *mut sys::vm_page,
    /// Its pages.
    pub pages: Vec<Page>,
    /// Pages wanted behind and ahead, then the pages read.
    pub behind: usize,
    /// See `behind`.
    pub ahead: usize,
    /// The completion callback and its argument; for an async call.
    pub iodone: Option<(Iodone, *mut c_void)>,
}

impl Call {
    fn tell(&self, error: c_int) {
        if let Some((iodone, arg)) = self.iodone {
            // SAFETY: the request's own callback and pages.
            unsafe { iodone(arg, self.array, self.pages.len() as c_int, error) };
        }
    }

    /// Where 14.2 returns without a word.
    fn forget(&self) -> c_int {
        if !FAITHFUL.load(Ordering::Relaxed) {
            self.tell(0);
        }
        sys::VM_PAGER_OK
    }
}

/// ffs_getpages_async(): the generic pager, and iodone for its errors.
pub fn getpages_async(call: &mut Call, sector: u64) -> c_int {
    let code = if sector <= PAGE as u64 {
        match generic(call) {
            sys::VM_PAGER_OK => return sys::VM_PAGER_OK,
            code => code,
        }
    } else {
        getpages(call)
    };
    // As it stands there: the pager's answer for an errno.
    call.tell(code);
    code
}

/// vop_stdgetpages_async(): wait for everything, and then iodone.
pub fn emulation(call: &mut Call) -> c_int {
    let code = getpages(call);
    call.tell(code);
    code
}

/// ffs_getpages() over the buffer pager: every block that is touched is read
/// as a whole, one after the other, and all its pages with it.
pub fn getpages(call: &mut Call) -> c_int {
    (call.behind, call.ahead) = (0, 0);
    fill(&call.file, &call.pages)
}

/// Bring all of a busied page in, as bread() of its blocks does.
pub fn bread(file: &File, page: Page) -> c_int {
    fill(file, &[page])
}

/// Read the blocks that the pages lack, and make the pages valid.
fn fill(file: &File, pages: &[Page]) -> c_int {
    let (block, size) = (file.mount.block, file.size());
    let first = pages[0].fields().pindex;
    let (start, end) = (first * PAGE as u64, (first + pages.len() as u64) * PAGE as u64);
    for page in pages.iter().filter(|page| **page != Page::bogus()) {
        rule("VOP_GETPAGES", page.is_busy(), "a page is not busied");
    }
    for lbn in start / block..end.div_ceil(block) {
        let from = lbn * block;
        let span = from.max(start)..(from + block).min(end);
        // Valid bytes may be newer than the disk.
        let parts: Vec<_> = (span.start / PAGE as u64..span.end.div_ceil(PAGE as u64))
            .map(|pindex| (pages[(pindex - first) as usize], pindex * PAGE as u64))
            .filter(|(page, _)| *page != Page::bogus())
            .map(|(page, at)| (page, span.start.max(at)..span.end.min(at + PAGE as u64), at))
            .filter(|(page, part, at)| {
                !page.is_valid((part.start - at) as usize, (part.end - part.start) as usize)
            })
            .collect();
        if parts.is_empty() {
            continue;
        }
        // A buffer has all pages of its block, and waits for those that are
        // busied (vfs_vmio_extend(), vm_page_grab_pages()).
        let behind = (from + block).min(size.next_multiple_of(PAGE as u64));
        for at in (from..behind).step_by(PAGE).filter(|at| !(start..end).contains(at)) {
            resident::busied_by_another("getblk", file.object, at / PAGE as u64);
        }
        let (place, ..) = file.bmap(lbn);
        let bytes = if place < 0 || from >= size {
            vec![0; block as usize]
        } else {
            let place = place as u64 * 512;
            match file.disk().read_and_wait(place..place + block) {
                Ok(bytes) => bytes,
                Err(_) => return sys::VM_PAGER_ERROR,
            }
        };
        for (page, part, at) in parts {
            let chunk = &bytes[(part.start - from) as usize..(part.end - from) as usize];
            // SAFETY: within a busied page.
            unsafe {
                let to = page.data().add((part.start - at) as usize);
                to.copy_from_nonoverlapping(chunk.as_ptr(), chunk.len());
            }
        }
        if place >= 0 {
            neighbours(file, from, &bytes, start..end);
        }
    }
    for page in pages.iter().filter(|page| **page != Page::bogus()) {
        finish(*page, size);
    }
    sys::VM_PAGER_OK
}

/// A page that holds its file's bytes becomes valid, zero behind the end.
fn finish(page: Page, size: u64) {
    let start = page.fields().pindex * PAGE as u64;
    let below = size.saturating_sub(start).min(PAGE as u64) as usize;
    // SAFETY: a busied page's own memory.
    unsafe { page.data().add(below).write_bytes(0, PAGE - below) };
    page.fields().valid = u8::MAX;
}

/// The buffer has all pages of its block: pages that were not asked for become valid
/// as well.
fn neighbours(file: &File, from: u64, bytes: &[u8], asked: std::ops::Range<u64>) {
    for (i, chunk) in bytes.chunks_exact(PAGE).enumerate() {
        let at = from + (i * PAGE) as u64;
        if asked.contains(&at) || at >= file.size() {
            continue;
        }
        let pindex = at / PAGE as u64;
        let page = rwlock::with_object(file.object, || {
            let exists = resident::resident(file.object, pindex).is_some();
            (!exists).then(|| vm_page::vm_page_alloc(file.object, pindex, 0))
        });
        let Some(page) = page.filter(|page| !page.is_null()).map(Page) else { continue };
        // SAFETY: a busied page's own memory.
        unsafe { page.data().copy_from_nonoverlapping(chunk.as_ptr(), PAGE) };
        finish(page, file.size());
        page.unbusy("brelse");
    }
}

/// vnode_pager_generic_getpages(), the asynchronous form.
fn generic(call: &mut Call) -> c_int {
    let name = "vnode_pager_generic_getpages";
    let file = call.file.clone();
    let (block, object) = (file.mount.block, file.object);
    let mut count = call.pages.len();
    rule(name, count <= buf::MAXPHYS / PAGE, format_args!("{count} pages are asked for"));
    let last = call.pages[count - 1];
    if last.fields().valid != 0 {
        // The rest lies behind the end of the file.
        if count == 1 {
            vm_page::vm_page_zero_invalid(last.0, 1);
            call.tell(0);
            return sys::VM_PAGER_OK;
        }
        count -= 1;
        if !FAITHFUL.load(Ordering::Relaxed) {
            vm_page::vm_page_zero_invalid(last.0, 1);
        }
    }
    match file.mount.bmap {
        Bmap::Fails => return sys::VM_PAGER_ERROR,
        Bmap::Good if block >= PAGE as u64 => {}
        // Through VOP_READ, or block by block: both wait.
        Bmap::Good | Bmap::Unsupported => {
            return match fill(&file, &call.pages[..count]) {
                sys::VM_PAGER_OK => call.forget(),
                code => code,
            };
        }
    }
    let first = call.pages[0].fields().pindex;
    let offset = first * PAGE as u64;
    let (place, after, before) = file.bmap(offset / block);
    if place < 0 {
        rule(name, count == 1, format_args!("{count} pages of a hole"));
        pmap::pmap_zero_page_area(call.pages[0].0, 0, PAGE as c_int);
        call.pages[0].fields().valid = u8::MAX;
        return call.forget();
    }
    let per_block = block as usize / PAGE;
    let inside = (offset % block) as usize / PAGE;
    // SAFETY: a live object.
    let size = unsafe { (*object).size };
    let before = before as usize * per_block + inside;
    let after =
        (after as usize * per_block + per_block - inside - 1).min((size - 1 - first) as usize);
    rule(
        name,
        count <= after + 1,
        format_args!("{count} pages are asked for, and the run has {}", after + 1),
    );
    let after = after - (count - 1);
    let mut behind = call.behind.min(before).min(first as usize);
    let mut ahead = call.ahead.min(after);
    let most = buf::MAXPHYS / PAGE;
    if behind + ahead + count > most {
        // Both sides give in proportion.
        let (trim, sum) = (behind + ahead + count - most + 1, behind + ahead);
        let part = trim * behind / sum;
        let part = if behind == before { part.next_multiple_of(per_block) } else { part };
        ahead -= trim * ahead / sum;
        behind = behind.saturating_sub(part);
    }
    let (behind, ahead) = around(object, first, count, behind, ahead);
    (call.behind, call.ahead) = (behind.len(), ahead.len());
    let start = offset - (behind.len() * PAGE) as u64;
    let all = (behind.len() + count + ahead.len()) * PAGE;
    let sector = file.disk().sector() as usize;
    let bytes = all.min((file.size() - start) as usize).next_multiple_of(sector) as u64;
    let place = place as u64 * 512 + offset % block - (behind.len() * PAGE) as u64;
    let told = if FAITHFUL.load(Ordering::Relaxed) { count } else { call.pages.len() };
    let run = Run {
        object: object as usize,
        behind,
        pages: call.pages[..count].to_vec(),
        ahead,
        told: call.pages[..told].to_vec(),
        iodone: call.iodone.map(|(iodone, arg)| (iodone, arg as usize)),
    };
    file.disk().read(place..place + bytes, move |outcome| run.done(outcome));
    sys::VM_PAGER_OK
}

/// New pages on both sides, up to the first one that exists or cannot be had.
fn around(
    object: *mut sys::vm_object,
    first: u64,
    count: usize,
    behind: usize,
    ahead: usize,
) -> (Vec<Page>, Vec<Page>) {
    rwlock::with_object(object, || {
        let new = |pindex: u64| {
            let exists = resident::resident(object, pindex).is_some();
            let page = if exists {
                std::ptr::null_mut()
            } else {
                vm_page::vm_page_alloc(object, pindex, 0)
            };
            (!page.is_null()).then_some(Page(page))
        };
        let mut before: Vec<Page> = (1..=behind as u64).map_while(|i| new(first - i)).collect();
        before.reverse();
        let end = first + count as u64;
        (before, (0..ahead as u64).map_while(|i| new(end + i)).collect())
    })
}

/// A read on its way.
struct Run {
    object: usize,
    behind: Vec<Page>,
    pages: Vec<Page>,
    ahead: Vec<Page>,
    /// The pages that iodone is told of; the caller's array may be gone.
    told: Vec<Page>,
    iodone: Option<(Iodone, usize)>,
}

impl Run {
    /// vnode_pager_generic_getpages_done_async().
    fn done(self, outcome: Result<Vec<u8>, c_int>) {
        let object = self.object as *mut sys::vm_object;
        let error = outcome.as_ref().err().copied().unwrap_or(0);
        let all = self.behind.iter().chain(&self.pages).chain(&self.ahead);
        if let Ok(bytes) = &outcome {
            for (page, chunk) in all.zip(bytes.chunks(PAGE)) {
                if *page != Page::bogus() {
                    // SAFETY: a busied page's own memory.
                    unsafe {
                        page.data().copy_from_nonoverlapping(chunk.as_ptr(), chunk.len());
                        page.data().add(chunk.len()).write_bytes(0, PAGE - chunk.len());
                    }
                }
            }
        }
        rwlock::with_object(object, || {
            // SAFETY: paging is in progress, so the object is alive.
            let size = unsafe { (*object).un_pager.vnp.vnp_size } as u64;
            let all = self.behind.iter().chain(&self.pages).chain(&self.ahead);
            for page in all.filter(|page| error == 0 && **page != Page::bogus()) {
                let start = page.fields().pindex * PAGE as u64;
                let below = size.saturating_sub(start).min(PAGE as u64) as c_int;
                if below as usize == PAGE {
                    vm_page::vm_page_valid(page.0);
                } else {
                    // Bytes of the disk beyond the end of the file must not stay.
                    pmap::pmap_zero_page_area(page.0, below, PAGE as c_int - below);
                    vm_page::vm_page_set_valid_range(page.0, 0, below);
                }
            }
            for page in self.behind.iter().chain(&self.ahead) {
                if page.fields().valid != 0 {
                    vm_page::vm_page_readahead_finish(page.0);
                } else {
                    vm_page::vm_page_free_invalid(page.0);
                }
            }
        });
        match self.iodone {
            // SAFETY: the request's own callback, once.
            Some((iodone, arg)) => unsafe {
                let mut pages: Vec<_> = self.told.iter().map(|page| page.0).collect();
                let count = pages.len() as c_int;
                iodone(arg as *mut c_void, pages.as_mut_ptr(), count, error);
            },
            None => violation("vnode_pager_generic_getpages", "there is no iodone to call"),
        }
    }
}
