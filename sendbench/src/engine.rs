// SPDX-License-Identifier: BSD-2-Clause
//! One run: an event loop as nginx's sends files, clients check every byte.
//!
//! One thread serves all connections. A connection that can go on gets one
//! sendfile call of at most a chunk, and then it is the next one's turn. One
//! whose socket is full waits for an event.

use std::{
    collections::VecDeque,
    io::ErrorKind,
    sync::{
        Barrier, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};

use crate::{
    content::Content,
    distribution::Recorder,
    host::{Client, Event, Host, Server, Stop},
    interrupt,
    pace::Line,
    result::{Measured, SendOptions},
    workload::{FileSpec, Request, Workload},
};

/// Bytes that have come and are not what they should be.
#[derive(Debug)]
pub struct WrongBytes(pub String);

impl std::fmt::Display for WrongBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongBytes {}

/// The timeline's resolution; results are made coarser when a run is long.
const PIECE_MS: u64 = 10;
const PIECES: usize = 400;
/// A connection that met a busy page is tried again after this long.
const BUSY_PAUSE: Duration = Duration::from_millis(1);
/// How long the event loop waits before it looks for signals, and a client before it looks
/// whether all is over.
const PATIENCE: Duration = Duration::from_millis(200);
const RECEIVE: usize = 256 << 10;

/// A request on its way: which file, from where, how much.
const REQUEST: usize = 20;

fn encode(file: u32, offset: u64, len: u64) -> [u8; REQUEST] {
    let mut bytes = [0; REQUEST];
    bytes[..4].copy_from_slice(&file.to_le_bytes());
    bytes[4..12].copy_from_slice(&offset.to_le_bytes());
    bytes[12..].copy_from_slice(&len.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8; REQUEST]) -> (usize, u64, u64) {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    (u32::from_le_bytes(std::array::from_fn(|i| bytes[i])) as usize, word(4), word(12))
}

/// What a run sends to whom.
pub struct Bench<'a, H> {
    /// The system.
    pub host: &'a H,
    /// The workload.
    pub workload: &'a Workload,
    /// Seed of the files' content.
    pub seed: u64,
    /// How sendfile is called.
    pub options: &'a SendOptions,
}

/// Shared by the clients.
struct Clients<'a> {
    ready: Barrier,
    /// When the server began: one clock for all.
    began: OnceLock<Instant>,
    stop: AtomicBool,
    starts: Vec<u64>,
    files: &'a [FileSpec],
    seed: u64,
    seconds: Option<u64>,
    rate: Option<u64>,
    progress: &'a AtomicU64,
}

/// What a client has seen.
struct Seen {
    first_byte: Recorder,
    bytes: u64,
    requests: u64,
    cut: bool,
    timeline: Vec<u64>,
    end: Duration,
}

impl<H: Host> Bench<'_, H> {
    /// Run it. `progress` counts the bytes that clients have checked.
    pub fn run(&self, progress: &AtomicU64) -> Result<Measured> {
        let host = self.host;
        let files = self.workload.files.iter();
        let files = files.map(|file| host.open(file)).collect::<Result<Vec<_>>>()?;
        let starts = self.workload.files.iter();
        let starts = starts.map(|file| host.data_offset(file)).collect::<Result<Vec<_>>>()?;
        let queue = host.queue()?;
        let (mut servers, mut ends) = (Vec::new(), Vec::new());
        for connection in 0..self.workload.connections.len() {
            let (server, client) = host.connect(&queue, connection, self.options)?;
            servers.push(Connection::new(server));
            ends.push(client);
        }
        let shared = Clients {
            ready: Barrier::new(ends.len() + 1),
            began: OnceLock::new(),
            stop: AtomicBool::new(false),
            starts,
            files: &self.workload.files,
            seed: self.seed,
            seconds: self.options.seconds,
            rate: self.options.rate,
            progress,
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = ends
                .into_iter()
                .zip(&self.workload.connections)
                .zip(0..)
                .map(|((end, requests), n)| {
                    let delay = Duration::from_millis(self.options.stagger_ms) * n;
                    let shared = &shared;
                    scope.spawn(move || {
                        host.enter_thread();
                        let seen = client(end, requests, delay, shared);
                        if seen.is_err() {
                            shared.stop.store(true, Ordering::Relaxed);
                        }
                        seen
                    })
                })
                .collect();
            let before = host.counters();
            let usage = host.usage();
            let began = *shared.began.get_or_init(Instant::now);
            shared.ready.wait();
            let served =
                Loop { bench: self, files: &files, queue: &queue, connections: servers }.run();
            let used = host.usage();
            if served.is_err() {
                shared.stop.store(true, Ordering::Relaxed);
            }
            // The servers' ends are gone, so every client comes to its end.
            let seen: Vec<Result<Seen>> = clients
                .into_iter()
                .map(|client| client.join().unwrap_or_else(|_| Err(anyhow!("a client panicked"))))
                .collect();
            let served = match served {
                Ok(served) => served,
                // A wrong byte is the graver news, and may be why the loop ended.
                Err(error) => {
                    let wrong =
                        seen.into_iter().filter_map(Result::err).find(|e| e.is::<WrongBytes>());
                    return Err(wrong.unwrap_or(error));
                }
            };
            let seen = seen.into_iter().collect::<Result<Vec<_>>>()?;
            let (before, after) = (before?, host.counters()?);
            let seconds = seen.iter().map(|seen| seen.end).max().unwrap_or_default().as_secs_f64();
            let mut first_byte = Recorder::new();
            seen.iter().for_each(|seen| first_byte.add(&seen.first_byte));
            let (timeline, timeline_ms) = timeline(&seen);
            // A client may have all bytes before the call that sent them returns.
            let whole = (served.last - began).as_secs_f64().max(seconds).max(1e-9);
            Ok(Measured {
                seconds,
                bytes: seen.iter().map(|seen| seen.bytes).sum(),
                requests: seen.iter().map(|seen| seen.requests).sum(),
                cut: seen.iter().any(|seen| seen.cut),
                first_byte: first_byte.distribution(),
                call: served.call.distribution(),
                inside_share: served.inside.as_secs_f64() / whole,
                asleep: Some(served.asleep_call.distribution()),
                asleep_share: Some(served.asleep.as_secs_f64() / whole),
                calls_full: served.full,
                calls_busy: served.busy,
                cpu_server: used.cpu.saturating_sub(usage.cpu).as_secs_f64(),
                cpu_system: after.cpu.zip(before.cpu).map(|(after, before)| after - before),
                switches_voluntary: used.voluntary - usage.voluntary,
                switches_involuntary: used.involuntary - usage.involuntary,
                pages_read: after
                    .pages_read
                    .zip(before.pages_read)
                    .map(|(after, before)| after.wrapping_sub(before)),
                counters_before: before.module,
                counters_after: after.module,
                timeline,
                timeline_ms,
            })
        })
    }
}

/// All clients' timelines in one of at most [`PIECES`] pieces.
fn timeline(seen: &[Seen]) -> (Vec<u64>, u64) {
    let len = seen.iter().map(|seen| seen.timeline.len()).max().unwrap_or(0);
    let join = len.div_ceil(PIECES).max(1);
    let mut all = vec![0; len.div_ceil(join)];
    for seen in seen {
        for (i, bytes) in seen.timeline.iter().enumerate() {
            all[i / join] += bytes;
        }
    }
    (all, PIECE_MS * join as u64)
}

enum State {
    /// Waits for a request, of which so much is there.
    Idle([u8; REQUEST], usize),
    /// Sends a file from `at` to `end`.
    Sending {
        file: usize,
        at: u64,
        end: u64,
    },
    Closed,
}

struct Connection<S> {
    server: Option<S>,
    state: State,
    queued: bool,
}

impl<S> Connection<S> {
    fn new(server: S) -> Self {
        Self { server: Some(server), state: State::Idle([0; REQUEST], 0), queued: false }
    }
}

/// What the loop has measured.
struct Served {
    call: Recorder,
    inside: Duration,
    asleep_call: Recorder,
    asleep: Duration,
    /// When the last call returned.
    last: Instant,
    full: u64,
    busy: u64,
}

enum Turn {
    /// Nothing to do before an event.
    Wait,
    /// Goes on when the others have had their turn.
    Again,
    /// Goes on after a pause.
    Busy,
}

struct Loop<'a, H: Host> {
    bench: &'a Bench<'a, H>,
    files: &'a [H::File],
    queue: &'a H::Queue,
    connections: Vec<Connection<H::Server>>,
}

impl<H: Host> Loop<'_, H> {
    fn run(mut self) -> Result<Served> {
        let mut served = Served {
            call: Recorder::new(),
            inside: Duration::ZERO,
            asleep_call: Recorder::new(),
            asleep: Duration::ZERO,
            last: Instant::now(),
            full: 0,
            busy: 0,
        };
        let mut open = self.connections.len();
        let mut turns: VecDeque<usize> = VecDeque::new();
        let mut busy: Vec<usize> = Vec::new();
        let mut events: Vec<Event> = Vec::new();
        while open > 0 {
            let time = match (turns.is_empty(), busy.is_empty()) {
                (false, _) => Duration::ZERO,
                (true, false) => BUSY_PAUSE,
                (true, true) => PATIENCE,
            };
            self.bench.host.wait(self.queue, time, &mut events).context("waiting for events")?;
            interrupt::check()?;
            for event in events.drain(..) {
                let connection = &mut self.connections[event.connection];
                let useful = match connection.state {
                    State::Idle(..) => event.readable,
                    State::Sending { .. } => event.writable || event.readable,
                    State::Closed => false,
                };
                if useful && !connection.queued {
                    connection.queued = true;
                    turns.push_back(event.connection);
                }
            }
            turns.extend(busy.drain(..));
            for _ in 0..turns.len() {
                let Some(n) = turns.pop_front() else { break };
                self.connections[n].queued = false;
                match self.turn(n, &mut served)? {
                    Turn::Wait => {
                        if matches!(self.connections[n].state, State::Closed) {
                            open -= 1;
                        }
                    }
                    turn => {
                        self.connections[n].queued = true;
                        if matches!(turn, Turn::Busy) { busy.push(n) } else { turns.push_back(n) }
                    }
                }
            }
        }
        Ok(served)
    }

    /// Read a request if there is none, and send a chunk of the answer.
    fn turn(&mut self, n: usize, served: &mut Served) -> Result<Turn> {
        let connection = &mut self.connections[n];
        let Some(server) = &mut connection.server else { return Ok(Turn::Wait) };
        while let State::Idle(bytes, have) = &mut connection.state {
            match server.read(&mut bytes[*have..]) {
                Ok(0) => {
                    connection.server = None;
                    connection.state = State::Closed;
                    return Ok(Turn::Wait);
                }
                Ok(read) => *have += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Turn::Wait),
                Err(error) if gone(&error) => {
                    connection.server = None;
                    connection.state = State::Closed;
                    return Ok(Turn::Wait);
                }
                Err(error) => return Err(error).context("reading a request"),
            }
            if *have == REQUEST {
                let (file, at, len) = decode(bytes);
                if file >= self.files.len() {
                    bail!("a request for file {file} of {}", self.files.len());
                }
                connection.state = State::Sending { file, at, end: at + len };
            }
        }
        let State::Sending { file, at, end } = &mut connection.state else {
            return Ok(Turn::Wait);
        };
        let options = self.bench.options;
        let len = (*end - *at).min(options.chunk);
        let host = self.bench.host;
        let before = host.usage();
        let begin = Instant::now();
        let result = host.sendfile(&self.files[*file], server, *at, len, options);
        served.last = Instant::now();
        let inside = served.last - begin;
        let asleep = host.usage().asleep_since(&before, inside);
        served.call.record(inside.as_nanos() as u64);
        served.inside += inside;
        served.asleep_call.record(asleep.as_nanos() as u64);
        served.asleep += asleep;
        let (sent, stop) = match result {
            Ok(sent) => sent,
            Err(error) if gone(&error) => {
                connection.server = None;
                connection.state = State::Closed;
                return Ok(Turn::Wait);
            }
            Err(error) => {
                let name = &self.bench.workload.files[*file].name;
                return Err(error).with_context(|| format!("sendfile of {name} at {at}"));
            }
        };
        *at += sent;
        if *at == *end {
            connection.state = State::Idle([0; REQUEST], 0);
            return Ok(Turn::Wait);
        }
        match stop {
            Stop::Full => {
                served.full += 1;
                Ok(Turn::Wait)
            }
            Stop::Busy => {
                served.busy += 1;
                Ok(Turn::Busy)
            }
            Stop::Done if sent == 0 => {
                bail!("sendfile of {} ends early", self.bench.workload.files[*file].name)
            }
            Stop::Done => Ok(Turn::Again),
        }
    }
}

/// The client has gone away, as it does when its time is over.
fn gone(error: &std::io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected
    )
}

impl Clients<'_> {
    /// The time is over.
    fn over(&self, begin: Instant) -> bool {
        self.seconds.is_some_and(|most| begin.elapsed().as_secs() >= most)
    }

    /// Sleep until so much of the run has gone by; false when it ends before.
    fn delay(&self, begin: Instant, delay: Duration) -> Result<bool> {
        loop {
            let left = delay.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Ok(true);
            }
            self.check_stop()?;
            if self.over(begin) {
                return Ok(false);
            }
            std::thread::sleep(left.min(PATIENCE));
        }
    }

    /// An error once others have failed.
    fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            bail!("stopped");
        }
        Ok(())
    }
}

/// Begin after a delay, ask for everything, check what comes.
fn client(
    mut end: impl Client,
    requests: &[Request],
    delay: Duration,
    shared: &Clients,
) -> Result<Seen> {
    let mut seen = Seen {
        first_byte: Recorder::new(),
        bytes: 0,
        requests: 0,
        cut: false,
        timeline: Vec::new(),
        end: Duration::ZERO,
    };
    let mut line = shared.rate.map(Line::new);
    let most = line.as_ref().map_or(RECEIVE, |line| RECEIVE.min(line.most() as usize));
    let mut buf = vec![0; most];
    shared.ready.wait();
    let begin = *shared.began.get_or_init(Instant::now);
    if !shared.delay(begin, delay)? {
        seen.cut = true;
        return Ok(seen);
    }
    'all: for request in requests {
        let file = &shared.files[request.file];
        let content = Content::new(shared.seed, file.number);
        let mut at = shared.starts[request.file] + request.offset;
        let mut left = request.len;
        let asked = Instant::now();
        end.write(&encode(request.file as u32, at, left)).context("sending a request")?;
        while left > 0 {
            let len = left.min(most as u64) as usize;
            let got = match end.read(&mut buf[..len]) {
                Ok(got) => got,
                Err(error) if gone(&error) => 0,
                Err(error) => return Err(error).context("receiving"),
            };
            if got == 0 {
                bail!("the server closed the connection, {left} bytes of {} early", file.name);
            }
            if left == request.len {
                seen.first_byte.record(asked.elapsed().as_nanos() as u64);
            }
            if let Err(wrong) = content.check(at, &buf[..got]) {
                bail!(WrongBytes(format!(
                    "{} is wrong at byte {}: {:#04x} instead of {:#04x}",
                    file.name, wrong.offset, wrong.got, wrong.want
                )));
            }
            let mut now = begin.elapsed();
            if let Some(line) = &mut line {
                let wait = line.take(now, got as u64);
                if !wait.is_zero() {
                    std::thread::sleep(wait);
                    now = begin.elapsed();
                }
            }
            let piece = (now.as_millis() as u64 / PIECE_MS) as usize;
            if seen.timeline.len() <= piece {
                seen.timeline.resize(piece + 1, 0);
            }
            seen.timeline[piece] += got as u64;
            seen.bytes += got as u64;
            seen.end = now;
            at += got as u64;
            left -= got as u64;
            shared.progress.fetch_add(got as u64, Ordering::Relaxed);
            shared.check_stop()?;
            if left > 0 && shared.over(begin) {
                seen.cut = true;
                break 'all;
            }
        }
        seen.requests += 1;
        if shared.over(begin) {
            seen.cut |= seen.requests < requests.len() as u64;
            break;
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_survive_the_wire() {
        for request in [(0, 0, 1), (7, 1 << 41, u64::MAX >> 1), (65_535, 4096, 65_536)] {
            assert_eq!(decode(&encode(request.0 as u32, request.1, request.2)), request);
        }
    }

    #[test]
    fn long_timelines_are_made_coarser_and_lose_nothing() {
        let seen = |timeline| Seen {
            first_byte: Recorder::new(),
            bytes: 0,
            requests: 0,
            cut: false,
            timeline,
            end: Duration::ZERO,
        };
        let (pieces, ms) = timeline(&[seen(vec![1; 1000]), seen(vec![2; 10])]);
        assert_eq!(ms, 3 * PIECE_MS);
        assert!(pieces.len() <= PIECES);
        assert_eq!(pieces.iter().sum::<u64>(), 1020);
        assert_eq!(timeline(&[]), (vec![], PIECE_MS));
    }
}
