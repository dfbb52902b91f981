// SPDX-License-Identifier: BSD-2-Clause
//! What the benchmark needs of a system: files, sockets, sendfile, events, a
//! cold cache, and counters. FreeBSD has it for real; on Linux the testbed does.

use std::{collections::BTreeMap, io, time::Duration};

use anyhow::Result;

use crate::{
    result::{Machine, SendOptions, Variant},
    workload::FileSpec,
};

#[cfg(target_os = "freebsd")]
pub mod freebsd;
#[cfg(target_os = "linux")]
pub mod testbed;

/// Why a sendfile call sent no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It sent what it was asked for.
    Done,
    /// The socket's buffer is full: an event tells when there is room.
    Full,
    /// A page is busy and waiting was not wanted.
    #[cfg_attr(target_os = "linux", expect(dead_code, reason = "the testbed has no SF_NODISKIO"))]
    Busy,
}

/// What an event tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The connection's number.
    pub connection: usize,
    /// A request has come, or the client is gone.
    pub readable: bool,
    /// There is room in the socket's buffer.
    pub writable: bool,
}

/// What a thread has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time, in user and kernel mode.
    pub cpu: Duration,
    /// Voluntary context switches.
    pub voluntary: i64,
    /// Involuntary ones.
    pub involuntary: i64,
}

impl Usage {
    /// How long the thread slept since `before`, when `wall` has gone by: 0 unless it gave up
    /// the CPU of its own accord. When it did, time that it was preempted counts too.
    ///
    /// The two clocks are read at different moments and tick differently: never less than 0.
    pub fn asleep_since(&self, before: &Usage, wall: Duration) -> Duration {
        if self.voluntary > before.voluntary {
            wall.saturating_sub(self.cpu.saturating_sub(before.cpu))
        } else {
            Duration::ZERO
        }
    }
}

/// Counters of the whole system.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// CPU seconds of all processors, idle time aside.
    pub cpu: Option<f64>,
    /// Pages that vnode pagers have read.
    pub pages_read: Option<u64>,
    /// The module's own.
    pub module: BTreeMap<String, u64>,
}

/// The server's end of a connection; no call waits for the client.
pub trait Server {
    /// Bytes of a request: 0 at the end, WouldBlock when there is none yet.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;
}

/// The client's end; calls wait.
pub trait Client: Send {
    /// Send a request.
    fn write(&mut self, request: &[u8]) -> io::Result<()>;
    /// Receive something; 0 when the server is gone.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;
}

/// A system to measure.
pub trait Host: Sync {
    /// An open file.
    type File;
    /// A queue of events.
    type Queue;
    /// The server's end of a connection.
    type Server: Server;
    /// The client's end.
    type Client: Client;

    /// Make files. Returns the number of extents of the one that has
    /// [`Layout::Extents`](crate::workload::Layout), if there is one and the filesystem tells.
    fn prepare(&self, files: &[FileSpec], seed: u64, progress: &dyn Fn(u64))
    -> Result<Option<u64>>;
    /// Where the data of such a file begin.
    fn data_offset(&self, file: &FileSpec) -> Result<u64>;
    /// Set the disk's latency; an error when the disk's latency is not ours to set.
    fn latency(&self, milliseconds: u64) -> Result<()>;
    /// Let this one answer.
    fn switch(&self, variant: Variant) -> Result<()>;
    /// Drop all that is cached of these files.
    fn make_cold(&self, files: &[FileSpec]) -> Result<()>;
    /// Open a file.
    fn open(&self, file: &FileSpec) -> Result<Self::File>;
    /// Make a queue.
    fn queue(&self) -> Result<Self::Queue>;
    /// Make a connection whose events go to a queue, under this number.
    fn connect(
        &self,
        queue: &Self::Queue,
        connection: usize,
        options: &SendOptions,
    ) -> Result<(Self::Server, Self::Client)>;
    /// Wait for events; none when the time is over or a signal has come.
    fn wait(&self, queue: &Self::Queue, time: Duration, events: &mut Vec<Event>) -> io::Result<()>;
    /// sendfile(2): bytes sent, and why no more.
    fn sendfile(
        &self,
        file: &Self::File,
        server: &mut Self::Server,
        offset: u64,
        len: u64,
        options: &SendOptions,
    ) -> io::Result<(u64, Stop)>;
    /// To be called once in each new thread.
    fn enter_thread(&self) {}
    /// What the calling thread has used.
    fn usage(&self) -> Usage;
    /// The system's counters.
    fn counters(&self) -> Result<Counters>;
    /// The machine.
    fn machine(&self) -> Result<Machine>;
    /// Put everything back. Also done, as far as possible, when it is not called.
    fn finish(self) -> Result<()>;
}

/// getrusage(2) of the calling thread.
pub fn thread_usage() -> Usage {
    // SAFETY: a zeroed rusage is valid, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
        usage
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec.max(0) as u64)
            + Duration::from_micros(time.tv_usec.max(0) as u64)
    };
    Usage {
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        voluntary: usage.ru_nvcsw,
        involuntary: usage.ru_nivcsw,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_gives_up_the_cpu_sleeps() {
        let ms = Duration::from_millis;
        let usage = |cpu, voluntary, involuntary| Usage { cpu: ms(cpu), voluntary, involuntary };
        let before = usage(100, 7, 3);
        assert_eq!(usage(104, 8, 3).asleep_since(&before, ms(30)), ms(26));
        // Preempted on the way: who can tell that from sleep.
        assert_eq!(usage(104, 8, 4).asleep_since(&before, ms(30)), ms(26));
        // Preempted only, or busy all the time.
        assert_eq!(usage(104, 7, 9).asleep_since(&before, ms(30)), ms(0));
        // More CPU time than time, CPU time and switches that go backwards.
        assert_eq!(usage(140, 8, 3).asleep_since(&before, ms(30)), ms(0));
        assert_eq!(usage(90, 8, 3).asleep_since(&before, ms(30)), ms(30));
        assert_eq!(usage(104, 6, 3).asleep_since(&before, ms(30)), ms(0));
    }

    #[test]
    fn this_system_tells_sleep_from_work() {
        const SLEEP: Duration = Duration::from_millis(50);
        let slept = |what: &dyn Fn()| {
            let (before, begin) = (thread_usage(), std::time::Instant::now());
            what();
            let wall = begin.elapsed();
            (thread_usage().asleep_since(&before, wall), wall)
        };
        let (asleep, wall) = slept(&|| std::thread::sleep(SLEEP));
        assert!(asleep > SLEEP / 2 && asleep <= wall, "{asleep:?} of {wall:?}");
        let (asleep, wall) = slept(&|| {
            let used = || thread_usage().cpu;
            let begin = used();
            while used() < begin + SLEEP {}
        });
        assert!(asleep < wall / 2, "{asleep:?} of {wall:?}");
    }
}
