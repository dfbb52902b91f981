// SPDX-License-Identifier: BSD-2-Clause
//! The disk: serves bufs from an image after a latency, and fails when told to.

use std::{
    cell::Cell,
    collections::HashMap,
    ffi::c_int,
    ops::Range,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use asyncpager::kpi::sys;

use crate::{
    buf,
    bufcache::Written,
    cpu, low,
    rules::{Context, may_sleep, no_lock, record, rule, run_as},
    schedule,
    vm::{self, PAGE, Page},
};

/// How long a transfer takes.
#[derive(Clone, Copy, Debug)]
pub enum Latency {
    /// Always as long.
    Constant(Duration),
    /// Anything up to this, each as likely.
    Uniform(Duration),
    /// Short ones are the most likely, around this mean.
    Exponential(Duration),
    /// As long as this, but one in 32 twenty times as long.
    LongTail(Duration),
}

impl Default for Latency {
    fn default() -> Self {
        Self::Constant(Duration::ZERO)
    }
}

impl From<Duration> for Latency {
    fn from(time: Duration) -> Self {
        Self::Constant(time)
    }
}

impl Latency {
    /// One of the kinds, around a `time`.
    pub fn random(time: Duration, rng: &mut fastrand::Rng) -> Self {
        match rng.u8(..4) {
            0 => Self::Constant(time),
            1 => Self::Uniform(time),
            2 => Self::Exponential(time),
            _ => Self::LongTail(time),
        }
    }

    fn draw(self, rng: &mut fastrand::Rng) -> Duration {
        match self {
            Self::Constant(time) => time,
            Self::Uniform(most) => most.mul_f64(rng.f64()),
            // Never longer than 27 times the mean: f64() has 53 bits.
            Self::Exponential(mean) => mean.mul_f64(-(1.0 - rng.f64()).max(1e-12).ln()),
            Self::LongTail(time) => time * if rng.u8(..32) == 0 { 20 } else { 1 },
        }
    }
}

/// How the disk behaves.
#[derive(Clone, Debug, Default)]
pub struct Manners {
    /// Time from a buf's arrival to its completion.
    pub latency: Latency,
    /// Bytes of the device that take so much longer.
    pub late: Option<(Range<u64>, Duration)>,
    /// Bytes of the device that cannot be read, and the errno to say so.
    pub bad: Vec<(Range<u64>, c_int)>,
    /// Of 100 transfers, how many fail with EIO.
    pub fail_percent: u8,
    /// Transfers stop one sector short, without an error.
    pub short: bool,
    /// Every transfer fails with ENXIO.
    pub gone: bool,
}

/// What becomes of a read: the bytes, or an errno.
pub type Outcome = Result<Vec<u8>, c_int>;

/// What the disk has to do.
enum Work {
    /// A buf of the module's.
    Buf(usize),
    /// A read of the testbed's own: the models of the original VOPs.
    Read(Range<u64>, Box<dyn FnOnce(Outcome) + Send>),
}

impl Work {
    fn range(&self) -> Range<u64> {
        match self {
            Work::Buf(bp) => {
                // SAFETY: the buf is the disk's until b_iodone is called.
                let buf = unsafe { &*(*bp as *const sys::buf) };
                buf.b_iooffset as u64..(buf.b_iooffset + buf.b_bcount) as u64
            }
            Work::Read(range, _) => range.clone(),
        }
    }
}

/// A disk.
pub struct Disk {
    /// The bufobj that bufs name.
    pub bufobj: *mut sys::bufobj,
    image: Vec<u8>,
    /// What was written to it since.
    pub written: Written,
    manners: Mutex<Manners>,
    queue: Mutex<Vec<(Instant, Work)>>,
    arrived: Condvar,
    stop: AtomicBool,
    /// Transfers completed, and how many of them with an error.
    pub transfers: AtomicU64,
    /// See `transfers`.
    pub errors: AtomicU64,
    /// Bytes that were asked for.
    pub bytes: AtomicU64,
    rng: Mutex<fastrand::Rng>,
}

// SAFETY: the bufobj is constant after `new`; all else is guarded.
unsafe impl Send for Disk {}
// SAFETY: as above.
unsafe impl Sync for Disk {}

/// The disk without a thread, if there is one.
static PUMPED: Mutex<Option<Arc<Disk>>> = Mutex::new(None);

/// Bufs that wait at the disk without a thread.
pub fn waiting() -> usize {
    PUMPED.lock().unwrap().as_ref().map_or(0, |disk| disk.queue.lock().unwrap().len())
}

/// Somebody waits: complete one buf of the disk without a thread, whichever
/// its seed picks. False when there is no such disk or it is idle.
pub fn pump() -> bool {
    let Some(disk) = PUMPED.lock().unwrap().clone() else { return false };
    let work = {
        let mut queue = disk.queue.lock().unwrap();
        if queue.is_empty() {
            return false;
        }
        let pick = disk.rng.lock().unwrap().usize(..queue.len());
        queue.swap_remove(pick).1
    };
    disk.finish(work);
    true
}

static DISKS: Mutex<Option<HashMap<usize, Arc<Disk>>>> = Mutex::new(None);

impl Disk {
    /// A disk that holds `image`. A `threaded` one has a thread that completes
    /// its bufs; of another, [`pump`] completes one at a time, without latency.
    pub fn new(
        image: Vec<u8>,
        sector: c_int,
        seed: u64,
        threaded: bool,
    ) -> (Arc<Self>, Option<JoinHandle<()>>) {
        let bufobj: *mut sys::bufobj = low::zeroed();
        let ops: *mut sys::buf_ops = low::zeroed();
        // SAFETY: fresh memory.
        unsafe {
            (*ops).bop_strategy = Some(strategy);
            (*bufobj).bo_ops = ops;
            (*bufobj).bo_bsize = sector;
            (*bufobj).bo_private = consumer().cast();
        }
        let disk = Arc::new(Self {
            bufobj,
            image,
            written: Written::default(),
            manners: Mutex::default(),
            queue: Mutex::default(),
            arrived: Condvar::new(),
            stop: AtomicBool::new(false),
            transfers: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            rng: Mutex::new(fastrand::Rng::with_seed(seed)),
        });
        DISKS.lock().unwrap().get_or_insert_default().insert(bufobj as usize, disk.clone());
        let thread = threaded.then(|| {
            let worker = disk.clone();
            std::thread::spawn(move || {
                cpu::attach();
                worker.work();
            })
        });
        *PUMPED.lock().unwrap() = (!threaded).then(|| disk.clone());
        (disk, thread)
    }

    /// Let the provider two below the filesystem be of this class.
    pub fn set_class(&self, name: &'static std::ffi::CStr) {
        // SAFETY: what `consumer` has made, which lives for ever.
        unsafe {
            let top: *mut sys::g_consumer = (*self.bufobj).bo_private.cast();
            let below = (*(*(*top).provider).geom).consumer.lh_first;
            (*(*(*(*below).provider).geom).class).name = name.as_ptr();
        }
    }

    /// Change how the disk behaves from the next buf on.
    pub fn behave(&self, manners: Manners) {
        *self.manners.lock().unwrap() = manners;
    }

    /// Complete what it has now without its latency.
    pub fn hurry(&self) {
        let now = Instant::now();
        self.queue.lock().unwrap().iter_mut().for_each(|(due, _)| *due = now);
        self.arrived.notify_all();
    }

    /// Complete now what is to be read from this range.
    pub fn hurry_range(&self, range: Range<u64>) {
        let now = Instant::now();
        for (due, work) in self.queue.lock().unwrap().iter_mut() {
            let of = work.range();
            if of.start < range.end && range.start < of.end {
                *due = now;
            }
        }
        self.arrived.notify_all();
    }

    /// Whether it is yet to read from this range.
    pub fn is_asked_for(&self, range: Range<u64>) -> bool {
        let queue = self.queue.lock().unwrap();
        queue
            .iter()
            .map(|(_, work)| work.range())
            .any(|of| of.start < range.end && range.start < of.end)
    }

    /// How many transfers it has yet to begin.
    pub fn waiting(&self) -> usize {
        self.queue.lock().unwrap().len()
    }

    /// End the disk's thread.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.arrived.notify_all();
    }

    /// Bytes of a sector.
    pub fn sector(&self) -> u64 {
        // SAFETY: a live bufobj.
        unsafe { (*self.bufobj).bo_bsize as u64 }
    }

    /// Write before anybody has read there: a filesystem is being made.
    pub fn plant(&self, at: usize, bytes: &[u8]) {
        let to = &self.image[at..at + bytes.len()];
        // SAFETY: within the image, which is never moved; no transfer is
        // under way where nothing has been made yet.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr().cast_mut(), bytes.len())
        };
    }

    /// What the disk holds now.
    fn contents(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = self.image[range.start as usize..range.end as usize].to_vec();
        self.written.apply(range.start, &mut bytes);
        bytes
    }

    /// The bytes of the image, without the disk's manners.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    fn work(&self) {
        let mut queue = self.queue.lock().unwrap();
        loop {
            if self.stop.load(Ordering::Acquire) && queue.is_empty() {
                return;
            }
            let now = Instant::now();
            let due: Vec<usize> = queue
                .iter()
                .enumerate()
                .filter(|(_, (at, _))| *at <= now)
                .map(|(i, _)| i)
                .collect();
            if due.is_empty() {
                let wait = queue
                    .iter()
                    .map(|(at, _)| *at - now)
                    .min()
                    .unwrap_or(Duration::from_millis(50));
                queue = self.arrived.wait_timeout(queue, wait).unwrap().0;
                continue;
            }
            // Disks reorder.
            let pick = due[self.rng.lock().unwrap().usize(..due.len())];
            let (_, work) = queue.swap_remove(pick);
            drop(queue);
            self.finish(work);
            queue = self.queue.lock().unwrap();
        }
    }

    fn enqueue(&self, work: Work) {
        let range = work.range();
        let manners = self.manners.lock().unwrap();
        let latency = manners.latency.draw(&mut self.rng.lock().unwrap());
        let is_there = |late: &Range<u64>| range.start < late.end && late.start < range.end;
        let late = manners.late.iter().find(|(late, _)| is_there(late));
        let due = Instant::now() + latency + late.map_or(Duration::ZERO, |(_, more)| *more);
        drop(manners);
        self.queue.lock().unwrap().push((due, work));
        self.arrived.notify_all();
    }

    /// Read, and call `done` from the completion thread.
    pub fn read(&self, range: Range<u64>, done: impl FnOnce(Outcome) + Send + 'static) {
        no_lock("bstrategy");
        self.enqueue(Work::Read(range, Box::new(done)));
    }

    /// Read, and wait for it.
    pub fn read_and_wait(&self, range: Range<u64>) -> Outcome {
        let done = Arc::new((Mutex::new(None), Condvar::new()));
        let theirs = done.clone();
        self.read(range, move |outcome| {
            *theirs.0.lock().unwrap() = Some(outcome);
            theirs.1.notify_all();
        });
        waits("bwait");
        let mut outcome = done.0.lock().unwrap();
        loop {
            if let Some(outcome) = outcome.take() {
                return outcome;
            }
            if schedule::is_one_thread() {
                drop(outcome);
                schedule::pump();
                outcome = done.0.lock().unwrap();
            } else {
                outcome = done.1.wait(outcome).unwrap();
            }
        }
    }

    /// What the disk's manners make of a transfer: bytes that it is short of, or an errno.
    fn transfer(&self, start: u64, len: u64) -> Result<u64, c_int> {
        let manners = self.manners.lock().unwrap().clone();
        let bad = manners.bad.iter().find(|(r, _)| r.start < start + len && start < r.end);
        let unlucky =
            manners.fail_percent > 0 && self.rng.lock().unwrap().u8(..100) < manners.fail_percent;
        let error = match bad {
            _ if manners.gone => sys::ENXIO,
            Some((_, errno)) => *errno,
            None if unlucky || start + len > self.image.len() as u64 => sys::EIO,
            None => 0,
        };
        self.transfers.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len, Ordering::Relaxed);
        if error != 0 {
            self.errors.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(if manners.short { 512.min(len) } else { 0 })
    }

    fn finish(&self, work: Work) {
        match work {
            Work::Buf(bp) => self.complete(bp as *mut sys::buf),
            Work::Read(range, done) => {
                let outcome = self.transfer(range.start, range.end - range.start);
                let outcome = match outcome {
                    // A short read is an error to whoever looks at b_resid.
                    Ok(short) if short > 0 => Err(sys::EIO),
                    Ok(_) => Ok(self.contents(range)),
                    Err(errno) => Err(errno),
                };
                run_as(Context::Completion, "b_iodone", || done(outcome));
            }
        }
    }

    fn complete(&self, bp: *mut sys::buf) {
        // SAFETY: the buf is the disk's until b_iodone is called.
        let buf = unsafe { &mut *bp };
        let (start, len) = (buf.b_iooffset as u64, buf.b_bcount as u64);
        let mut error = 0;
        match self.transfer(start, len) {
            Err(errno) => {
                error = errno;
                buf.b_error = errno;
                buf.b_ioflags = sys::BIO_ERROR as u16;
                buf.b_resid = buf.b_bcount;
            }
            Ok(short) => {
                buf.b_resid = short as i64;
                deliver(buf, &self.contents(start..start + len - short));
            }
        }
        record("bufdone", format_args!("buf {bp:?} errno {error} resid {}", buf.b_resid));
        let iodone = buf.b_iodone.take();
        rule("bufdone", iodone.is_some(), "no b_iodone");
        // SAFETY: the callback that came with the buf, once.
        run_as(Context::Completion, "b_iodone", || unsafe { iodone.map(|iodone| iodone(bp)) });
    }
}

/// A consumer of a provider of a class that verifies nothing, over another one.
fn consumer() -> *mut sys::g_consumer {
    let below = std::ptr::null_mut();
    [c"DISK", c"LABEL"].into_iter().fold(below, |below: *mut sys::g_consumer, class| {
        let consumer: *mut sys::g_consumer = low::zeroed();
        let provider: *mut sys::g_provider = low::zeroed();
        let geom: *mut sys::g_geom = low::zeroed();
        let g_class: *mut sys::g_class = low::zeroed();
        // SAFETY: fresh memory.
        unsafe {
            (*g_class).name = class.as_ptr();
            (*geom).class = g_class;
            (*geom).consumer.lh_first = below;
            (*provider).geom = geom;
            (*consumer).provider = provider;
        }
        consumer
    })
}

/// Copy data to where the buf wants it: its mapping, or its pages.
fn deliver(buf: &sys::buf, data: &[u8]) {
    if buf.b_data as usize != unmapped() {
        // SAFETY: a mapped buf: strategy() has checked that b_data lies in
        // the buf's own range; what is not mapped there faults.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), buf.b_data.cast(), data.len()) };
        return;
    }
    let pages: *const *mut sys::vm_page = (&raw const buf.b_pages).cast();
    let mut at = buf.b_offset as usize % PAGE;
    let mut rest = data;
    let mut index = 0;
    while !rest.is_empty() {
        let n = rest.len().min(PAGE - at);
        // SAFETY: strategy() has checked that b_npages covers the transfer.
        unsafe {
            Page(*pages.add(index)).data().add(at).copy_from_nonoverlapping(rest.as_ptr(), n)
        };
        rest = &rest[n..];
        at = 0;
        index += 1;
    }
}

/// The address that stands for "not mapped"; nothing is there.
pub fn unmapped() -> usize {
    static PLACE: std::sync::LazyLock<usize> =
        std::sync::LazyLock::new(|| vm::reserve(257, "unmapped_buf") as usize);
    *PLACE
}

/// `bop_strategy`: checks what a driver relies on, then queues the buf.
unsafe extern "C" fn strategy(bo: *mut sys::bufobj, bp: *mut sys::buf) {
    let call = "bstrategy";
    // SAFETY: the caller gives the buf up.
    let buf = unsafe { &mut *bp };
    no_lock(call);
    // g_alloc_bio() waits for memory.
    may_sleep(call);
    rule(call, buf.b_bufobj == bo, "b_bufobj is another one");
    if buf.b_flags & sys::B_ASYNC as u32 != 0 {
        rule(call, buf::is_disowned(bp), "an async buf's lock still belongs to this thread");
    }
    rule(call, buf.b_iocmd == sys::BIO_READ as u16, "not a read");
    rule(call, !buf.b_rcred.is_null() && !buf.b_wcred.is_null(), "no creds are held");
    rule(call, buf.b_iodone.is_some(), "no b_iodone");
    rule(
        call,
        buf.b_runningbufspace == 0,
        "a read is charged to runningbufspace, which is writers'",
    );
    rule(call, buf.b_iooffset == buf.b_blkno * 512, "b_iooffset is not b_blkno's");
    rule(
        call,
        buf.b_ioflags == 0 && buf.b_flags & sys::B_DONE as u32 == 0,
        "flags of an earlier I/O are set",
    );
    // SAFETY: a live bufobj.
    let sector = i64::from(unsafe { (*bo).bo_bsize });
    rule(
        call,
        buf.b_bcount > 0 && buf.b_bcount % sector == 0,
        format_args!("{} bytes are not sectors", buf.b_bcount),
    );
    rule(call, buf.b_bcount == buf.b_bufsize, "b_bcount is not b_bufsize");
    let (offset, base) = (buf.b_offset as usize % PAGE, buf.b_kvabase as usize);
    let pages = (offset + buf.b_bcount as usize).div_ceil(PAGE);
    rule(
        call,
        pages == buf.b_npages as usize,
        format_args!("b_npages {} for {pages} pages", buf.b_npages),
    );
    if buf.b_data as usize != unmapped() {
        rule(
            call,
            buf.b_data as usize == base + offset,
            "b_data is not where the pages are mapped",
        );
    }
    let array: *const *mut sys::vm_page = (&raw const buf.b_pages).cast();
    let mut first = None;
    for i in 0..pages {
        // SAFETY: within b_npages.
        let page = Page(unsafe { *array.add(i) });
        if page == Page::bogus() {
            continue;
        }
        if page.fields().object.is_null() && page.fields().ref_count > 0 {
            // A page of the caller's own, which nobody else can find.
            continue;
        }
        rule(call, page.is_busy(), format_args!("page {i} is not busied"));
        let base = page.fields().pindex.wrapping_sub(i as u64);
        rule(call, *first.get_or_insert(base) == base, "pages are not consecutive");
        rule(
            call,
            offset != 0 || pages == 1 || page.fields().valid == 0 || sector < 512,
            "reading over a valid page",
        );
    }
    record(
        call,
        format_args!("buf {bp:?} {} bytes at {} in {pages} pages", buf.b_bcount, buf.b_iooffset),
    );
    let Some(disk) =
        DISKS.lock().unwrap().as_ref().and_then(|all| all.get(&(bo as usize)).cloned())
    else {
        crate::rules::violation(call, "not a disk");
    };
    disk.enqueue(Work::Buf(bp as usize));
}

thread_local! {
    static WAITS: Cell<u64> = const { Cell::new(0) };
}

/// This thread waits for a disk, or for no good reason.
pub fn waits(call: &str) {
    may_sleep(call);
    WAITS.set(WAITS.get() + 1);
}

/// How often this thread has waited for a disk.
pub fn waited() -> u64 {
    WAITS.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each kind has the mean and the extremes that it says.
    #[test]
    fn latencies() {
        let (time, n) = (Duration::from_millis(1), 20_000);
        let mut rng = fastrand::Rng::with_seed(1);
        for (latency, mean, most) in [
            (Latency::Constant(time), 1.0, 1.0),
            (Latency::Uniform(time), 0.5, 1.0),
            (Latency::Exponential(time), 1.0, 30.0),
            (Latency::LongTail(time), 1.0 + 19.0 / 32.0, 20.0),
        ] {
            let all: Vec<f64> =
                (0..n).map(|_| latency.draw(&mut rng).as_secs_f64() * 1000.0).collect();
            let average = all.iter().sum::<f64>() / f64::from(n);
            assert!((average - mean).abs() < 0.05, "{latency:?}: {average}");
            assert!(all.iter().all(|one| *one <= most + 1e-9), "{latency:?}");
        }
    }
}
