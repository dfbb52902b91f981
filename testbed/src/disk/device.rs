// SPDX-License-Identifier: BSD-2-Clause
//! The disk: serves bufs from an image after a latency, and fails when told to.

use std::{
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
    checks::{
        rules::{record, rule, violation},
        sleep::{no_lock, run_as, waits},
    },
    disk::{behaviour::Behaviour, geom, request, written::Written},
    host::{low_memory, schedule, thread::Context},
    kernel::proc,
};

/// The outcome of a read: its bytes, or an errno.
pub type Outcome = Result<Vec<u8>, c_int>;

/// A transfer in the queue.
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
    /// Sectors that were written since.
    pub written: Written,
    behaviour: Mutex<Behaviour>,
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

/// A thread waits: completes one transfer of the disk without a thread, as its seed
/// picks. False when there is no such disk or it is idle.
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
        let bufobj: *mut sys::bufobj = low_memory::zeroed();
        let ops: *mut sys::buf_ops = low_memory::zeroed();
        // SAFETY: fresh memory.
        unsafe {
            (*ops).bop_strategy = Some(strategy);
            (*bufobj).bo_ops = ops;
            (*bufobj).bo_bsize = sector;
            (*bufobj).bo_private = geom::consumer().cast();
        }
        let disk = Arc::new(Self {
            bufobj,
            image,
            written: Written::default(),
            behaviour: Mutex::default(),
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
                proc::attach();
                worker.work();
            })
        });
        *PUMPED.lock().unwrap() = (!threaded).then(|| disk.clone());
        (disk, thread)
    }

    /// Makes the provider two below the filesystem one of this class.
    pub fn set_class(&self, name: &'static std::ffi::CStr) {
        // SAFETY: a live bufobj, and the consumer that `new` has made.
        unsafe { geom::set_class((*self.bufobj).bo_private.cast(), name) };
    }

    /// Change how the disk behaves from the next buf on.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    /// Completes all queued transfers without further latency.
    pub fn complete_now(&self) {
        let now = Instant::now();
        self.queue.lock().unwrap().iter_mut().for_each(|(due, _)| *due = now);
        self.arrived.notify_all();
    }

    /// Complete now what is to be read from this range.
    pub fn complete_range_now(&self, range: Range<u64>) {
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

    /// Writes one sector.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.written.put(at, bytes);
    }

    /// Ends the disk's thread.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.arrived.notify_all();
    }

    /// Bytes of a sector.
    pub fn sector(&self) -> u64 {
        // SAFETY: a live bufobj.
        unsafe { (*self.bufobj).bo_bsize as u64 }
    }

    /// Writes to the image before the first read, to make a filesystem.
    pub fn write_initial(&self, at: usize, bytes: &[u8]) {
        let to = &self.image[at..at + bytes.len()];
        // SAFETY: within the image, which is never moved; no transfer is
        // under way where nothing has been made yet.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr().cast_mut(), bytes.len())
        };
    }

    /// The bytes of the disk now.
    fn contents(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = self.image[range.start as usize..range.end as usize].to_vec();
        self.written.apply(range.start, &mut bytes);
        bytes
    }

    /// The bytes of the image, at once and without errors.
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
        let behaviour = self.behaviour.lock().unwrap();
        let latency = behaviour.latency.draw(&mut self.rng.lock().unwrap());
        let is_there = |slow: &Range<u64>| range.start < slow.end && slow.start < range.end;
        let slow = behaviour.slow.iter().find(|(slow, _)| is_there(slow));
        let due = Instant::now() + latency + slow.map_or(Duration::ZERO, |(_, more)| *more);
        drop(behaviour);
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

    /// The outcome of a transfer: by how many bytes it is short, or an errno.
    fn transfer(&self, start: u64, len: u64) -> Result<u64, c_int> {
        let behaviour = self.behaviour.lock().unwrap().clone();
        let bad = behaviour.bad.iter().find(|(r, _)| r.start < start + len && start < r.end);
        let by_chance = behaviour.fail_percent > 0
            && self.rng.lock().unwrap().u8(..100) < behaviour.fail_percent;
        let error = match bad {
            _ if behaviour.gone => sys::ENXIO,
            Some((_, errno)) => *errno,
            None if by_chance || start + len > self.image.len() as u64 => sys::EIO,
            None => 0,
        };
        self.transfers.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len, Ordering::Relaxed);
        if error != 0 {
            self.errors.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(if behaviour.short { 512.min(len) } else { 0 })
    }

    fn finish(&self, work: Work) {
        match work {
            Work::Buf(bp) => self.complete(bp as *mut sys::buf),
            Work::Read(range, done) => {
                let outcome = self.transfer(range.start, range.end - range.start);
                let outcome = match outcome {
                    // b_resid makes a short read an error.
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
                request::deliver(buf, &self.contents(start..start + len - short));
            }
        }
        record("bufdone", format_args!("buf {bp:?} errno {error} resid {}", buf.b_resid));
        let iodone = buf.b_iodone.take();
        rule("bufdone", iodone.is_some(), "no b_iodone");
        // SAFETY: the callback that came with the buf, once.
        run_as(Context::Completion, "b_iodone", || unsafe { iodone.map(|iodone| iodone(bp)) });
    }
}

/// `bop_strategy`: checks the buf, then queues it.
pub unsafe extern "C" fn strategy(bo: *mut sys::bufobj, bp: *mut sys::buf) {
    request::check(bo, bp);
    let disks = DISKS.lock().unwrap();
    let disk = disks.as_ref().and_then(|all| all.get(&(bo as usize)).cloned());
    drop(disks);
    let Some(disk) = disk else { violation("bstrategy", "not a disk") };
    disk.enqueue(Work::Buf(bp as usize));
}
