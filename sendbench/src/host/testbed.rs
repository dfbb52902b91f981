// SPDX-License-Identifier: BSD-2-Clause
//! The testbed: the same module and its sendfile in this process, over a disk
//! in memory. Sockets are queues of transfers with a limit, as a socket's
//! buffer has one.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use asyncpager_testbed::bench::{self, File, Transfer};

use crate::{
    content::Content,
    host::{Client, Counters, Event, Host, Server, Stop, Usage, thread_usage},
    result::{Machine, SendOptions, Variant},
    unusable::unusable,
    workload::{FileSpec, Layout},
};

const BLOCK: u64 = 32 << 10;
const PAGE: u64 = 4096;
/// What a FreeBSD socket's buffer grows to on loopback, about.
const SNDBUF: u32 = 512 << 10;
/// Blocks that an inode and one indirect block reach.
const REACH: u64 = 12 + BLOCK / 8;

/// See the module's documentation.
pub struct Testbed {
    bench: bench::Bench,
    files: BTreeMap<u32, File>,
    fragments: Option<u64>,
}

/// Blocks of a file, and the first free one after them.
fn place(file: &FileSpec, first: u64) -> (Vec<Option<u64>>, u64) {
    let count = file.size.div_ceil(BLOCK);
    match file.layout {
        Layout::Plain => ((first..first + count).map(Some).collect(), first + count),
        Layout::Extents(bytes) => {
            // A block between extents.
            let extent = (bytes / BLOCK).max(1);
            let at = |i: u64| first + i + i / extent;
            ((0..count).map(at).map(Some).collect(), at(count))
        }
        Layout::Deep => {
            let hole = std::iter::repeat_n(None, REACH as usize);
            (hole.chain((first..first + count).map(Some)).collect(), first + count)
        }
    }
}

fn data_offset(file: &FileSpec) -> u64 {
    if file.layout == Layout::Deep { REACH * BLOCK } else { 0 }
}

impl Testbed {
    /// Load the module over a disk that has these files.
    pub fn new(ko: &Path, files: &[FileSpec], seed: u64) -> Result<Self> {
        if !ko.exists() {
            return Err(unusable(format!("no module {}: `make kmod`, or --ko", ko.display())));
        }
        let total: u64 = files.iter().map(|file| file.size).sum();
        if total > bench::MEMORY * 3 / 2 {
            return Err(unusable("the testbed has 256 MiB of memory: --size 32M or less"));
        }
        // An indirect block's 0 is a hole, as block 0 of a filesystem is never a file's.
        let mut next = 1;
        let maps: Vec<_> = files
            .iter()
            .map(|file| {
                let (map, after) = place(file, next);
                next = after;
                map
            })
            .collect();
        let mut image = vec![0; (next * BLOCK) as usize];
        for (file, map) in files.iter().zip(&maps) {
            let content = Content::new(seed, file.number);
            let end = data_offset(file) + file.size;
            for (logical, physical) in (0..).zip(map) {
                let Some(physical) = physical else { continue };
                let at = logical * BLOCK;
                let len = (end - at).min(BLOCK) as usize;
                let to = (physical * BLOCK) as usize;
                content.fill(at, &mut image[to..to + len]);
            }
        }
        let fragments = files.iter().find_map(|file| match file.layout {
            Layout::Extents(bytes) => Some(file.size.div_ceil(bytes)),
            _ => None,
        });
        let bench = bench::Bench::new(ko, image, BLOCK, seed)?;
        let files = files
            .iter()
            .zip(&maps)
            .map(|(file, map)| {
                (file.number, bench.file(&file.name, map, data_offset(file) + file.size))
            })
            .collect();
        Ok(Self { bench, files, fragments })
    }
}

/// What both ends of a connection share.
struct Pipe {
    state: Mutex<State>,
    changed: Condvar,
    queue: Arc<Queue>,
    connection: usize,
}

#[derive(Default)]
struct State {
    requests: VecDeque<u8>,
    /// Transfers, and how many bytes each takes of the buffer.
    answers: VecDeque<(Transfer, u64)>,
    /// Bytes of the buffer in use.
    used: u64,
    nocache: bool,
    server_gone: bool,
    client_gone: bool,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Events that nobody has taken yet.
#[derive(Default)]
pub struct Queue {
    events: Mutex<Vec<Event>>,
    arrived: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn push(&self, event: Event) {
        self.lock().push(event);
        self.arrived.notify_one();
    }
}

/// The server's end.
pub struct PipeServer(Arc<Pipe>);

impl Server for PipeServer {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.requests.is_empty() {
            return if state.client_gone { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) };
        }
        let len = buf.len().min(state.requests.len());
        for (to, from) in buf.iter_mut().zip(state.requests.drain(..len)) {
            *to = from;
        }
        Ok(len)
    }
}

impl Drop for PipeServer {
    fn drop(&mut self) {
        self.0.lock().server_gone = true;
        self.0.changed.notify_all();
    }
}

/// The client's end, with bytes that have come and were not asked for yet.
pub struct PipeClient {
    pipe: Arc<Pipe>,
    bytes: Vec<u8>,
    taken: usize,
}

impl PipeClient {
    /// The next transfer's bytes; false at the end.
    fn next(&mut self) -> io::Result<bool> {
        let mut state = self.pipe.lock();
        let (transfer, len, nocache) = loop {
            if let Some((transfer, len)) = state.answers.pop_front() {
                break (transfer, len, state.nocache);
            }
            if state.server_gone {
                return Ok(false);
            }
            state = self.pipe.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        };
        drop(state);
        self.bytes.clear();
        self.taken = 0;
        transfer.finish(nocache, |bytes| self.bytes.extend_from_slice(bytes))?;
        self.pipe.lock().used -= len;
        let connection = self.pipe.connection;
        self.pipe.queue.push(Event { connection, readable: false, writable: true });
        Ok(true)
    }
}

impl Client for PipeClient {
    fn write(&mut self, request: &[u8]) -> io::Result<()> {
        self.pipe.lock().requests.extend(request);
        let connection = self.pipe.connection;
        self.pipe.queue.push(Event { connection, readable: true, writable: false });
        Ok(())
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.bytes.len() && !self.next()? {
            return Ok(0);
        }
        let rest = &self.bytes[self.taken..];
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        self.taken += len;
        Ok(len)
    }
}

impl Drop for PipeClient {
    fn drop(&mut self) {
        let left = {
            let mut state = self.pipe.lock();
            state.client_gone = true;
            std::mem::take(&mut state.answers)
        };
        // Their pages are wired until then.
        for (transfer, _) in left {
            let _ = transfer.finish(false, |_| {});
        }
        let connection = self.pipe.connection;
        self.pipe.queue.push(Event { connection, readable: true, writable: true });
    }
}

impl Host for Testbed {
    type File = File;
    type Queue = Arc<Queue>;
    type Server = PipeServer;
    type Client = PipeClient;

    fn prepare(&self, files: &[FileSpec], _: u64, progress: &dyn Fn(u64)) -> Result<Option<u64>> {
        files.iter().for_each(|file| progress(file.size));
        Ok(self.fragments)
    }

    fn data_offset(&self, file: &FileSpec) -> Result<u64> {
        Ok(data_offset(file))
    }

    fn latency(&self, milliseconds: u64) -> Result<()> {
        self.bench.latency(Duration::from_millis(milliseconds));
        Ok(())
    }

    fn switch(&self, variant: Variant) -> Result<()> {
        self.bench.switch("vfs.asyncpager.enabled", variant == Variant::Asyncpager)
    }

    fn make_cold(&self, _: &[FileSpec]) -> Result<()> {
        self.files.values().for_each(File::forget);
        Ok(())
    }

    fn open(&self, file: &FileSpec) -> Result<File> {
        self.files.get(&file.number).cloned().with_context(|| format!("no file {}", file.name))
    }

    fn queue(&self) -> Result<Arc<Queue>> {
        Ok(Arc::default())
    }

    fn connect(
        &self,
        queue: &Arc<Queue>,
        connection: usize,
        options: &SendOptions,
    ) -> Result<(PipeServer, PipeClient)> {
        if options.nodiskio || options.user_readahead {
            bail!(unusable("the testbed's sendfile has no SF_NODISKIO and no SF_USER_READAHEAD"));
        }
        let pipe = Arc::new(Pipe {
            state: Mutex::new(State { nocache: options.nocache, ..State::default() }),
            changed: Condvar::new(),
            queue: queue.clone(),
            connection,
        });
        let client = PipeClient { pipe: pipe.clone(), bytes: Vec::new(), taken: 0 };
        Ok((PipeServer(pipe), client))
    }

    fn wait(&self, queue: &Arc<Queue>, time: Duration, events: &mut Vec<Event>) -> io::Result<()> {
        let waiting = queue.lock();
        let (mut waiting, _) = queue
            .arrived
            .wait_timeout_while(waiting, time, |waiting| waiting.is_empty())
            .map_err(|_| io::Error::other("a client panicked"))?;
        events.append(&mut waiting);
        Ok(())
    }

    fn sendfile(
        &self,
        file: &File,
        server: &mut PipeServer,
        offset: u64,
        len: u64,
        options: &SendOptions,
    ) -> io::Result<(u64, Stop)> {
        let most = u64::from(options.sndbuf.unwrap_or(SNDBUF));
        let pipe = &server.0;
        let room = {
            let state = pipe.lock();
            if state.client_gone {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            most.saturating_sub(state.used)
        };
        // As kern_sendfile.c does: less than all ends at a page's boundary.
        let fits =
            if room >= len { len } else { ((offset + room) / PAGE * PAGE).saturating_sub(offset) };
        if fits == 0 {
            return Ok((0, Stop::Full));
        }
        let transfer = file.send(offset, fits, options.readahead)?;
        let late = {
            let mut state = pipe.lock();
            state.used += fits;
            if state.client_gone {
                Some(transfer)
            } else {
                state.answers.push_back((transfer, fits));
                None
            }
        };
        if let Some(transfer) = late {
            transfer.finish(false, |_| {})?;
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        pipe.changed.notify_all();
        Ok((fits, if fits == len { Stop::Done } else { Stop::Full }))
    }

    fn enter_thread(&self) {
        bench::attach();
    }

    fn usage(&self) -> Usage {
        thread_usage()
    }

    fn counters(&self) -> Result<Counters> {
        Ok(Counters { cpu: None, pages_read: None, module: self.bench.counters() })
    }

    fn machine(&self) -> Result<Machine> {
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        Ok(Machine {
            system: "asyncpager-testbed".into(),
            kernel: format!("userspace of {}", std::env::consts::OS),
            cpus,
            memory: bench::MEMORY,
            hz: None,
            disk: "in memory".into(),
            cold: "freed before each run".into(),
            warnings: vec![
                "not a kernel: figures of the testbed show the shape of things, not FreeBSD's speed".into(),
            ],
        })
    }

    fn finish(self) -> Result<()> {
        self.bench.finish().map_err(|error| anyhow!("the module is not well: {error:#}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::{
        engine,
        workload::{Name, Scale},
    };

    fn spec(layout: Layout, size: u64) -> FileSpec {
        FileSpec { name: "x".into(), number: 1, size, layout }
    }

    #[test]
    fn layouts() {
        let (map, next) = place(&spec(Layout::Plain, 3 * BLOCK - 1), 10);
        assert_eq!((map, next), (vec![Some(10), Some(11), Some(12)], 13));
        let (map, next) = place(&spec(Layout::Extents(2 * BLOCK), 5 * BLOCK), 0);
        assert_eq!(map, [0, 1, 3, 4, 6].map(Some));
        assert!(next > 6);
        let (map, _) = place(&spec(Layout::Deep, BLOCK), 7);
        assert_eq!(map.len() as u64, REACH + 1);
        assert!(map[..REACH as usize].iter().all(Option::is_none));
        assert_eq!(map[REACH as usize], Some(7));
        assert_eq!(data_offset(&spec(Layout::Deep, BLOCK)), REACH * BLOCK);
    }

    /// The only test here that loads the module: there is one in a process.
    #[test]
    fn a_wrong_byte_ends_the_run() {
        let ko =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/kmod/14-amd64/asyncpager.ko");
        let workload = Scale { size: 1 << 20, seed: 1 }.workload(Name::Shared);
        let host = Testbed::new(&ko, &workload.files, 1).expect("`make kmod` has been run");
        let options = SendOptions { chunk: 1 << 20, ..SendOptions::default() };
        let run = |seed| {
            let bench = engine::Bench { host: &host, workload: &workload, seed, options: &options };
            bench.run(&AtomicU64::new(0))
        };
        assert_eq!(run(1).unwrap().bytes, 4 << 20);
        let error = run(2).unwrap_err();
        assert!(error.is::<engine::WrongBytes>(), "{error:#}");
        assert!(error.to_string().contains("is wrong at byte 0"), "{error:#}");
        assert_eq!(run(1).unwrap().bytes, 4 << 20);
        host.finish().unwrap();
    }
}
