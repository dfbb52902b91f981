// SPDX-License-Identifier: BSD-2-Clause
//! What a benchmark gives: the JSON, and all that tables and pages are made from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{distribution::Distribution, workload::Name};

/// Of this file format.
pub const FORMAT: u32 = 1;

/// Who answers VOP_GETPAGES_ASYNC.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    clap::ValueEnum,
    Serialize,
    Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// The kernel's own implementation
    Stock,
    /// The module
    Asyncpager,
}

impl Variant {
    /// As tables have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Variant::Stock => "stock",
            Variant::Asyncpager => "asyncpager",
        }
    }
}

/// One workload, once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Which.
    pub workload: Name,
    /// With whom.
    pub variant: Variant,
    /// Latency of the disk in milliseconds; none when it is as it is.
    pub latency_ms: Option<u64>,
    /// Counted from 0; a round has one run of each variant.
    pub round: u32,
    /// What was measured.
    #[serde(flatten)]
    pub measured: Measured,
}

/// What was measured in one run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// From the first request to the end of the last answer.
    pub seconds: f64,
    /// Bytes that clients got, every one checked.
    pub bytes: u64,
    /// Requests that were answered whole.
    pub requests: u64,
    /// The time was over before the work was.
    pub cut: bool,
    /// From the request to the first byte, in nanoseconds.
    pub first_byte: Distribution,
    /// Time inside each sendfile call, in nanoseconds.
    pub call: Distribution,
    /// Share of the run that the event loop was inside sendfile.
    pub inside_share: f64,
    /// Time asleep inside each sendfile call, in nanoseconds; 0 of a call that did not give up
    /// the CPU. None in results of an older sendbench.
    pub asleep: Option<Distribution>,
    /// Share of the run that the event loop slept inside sendfile.
    pub asleep_share: Option<f64>,
    /// Calls that ended for lack of room in the socket's buffer.
    pub calls_full: u64,
    /// Calls that ended because a page was busy (SF_NODISKIO).
    pub calls_busy: u64,
    /// CPU seconds of the event loop's thread.
    pub cpu_server: f64,
    /// CPU seconds of the whole machine, interrupts included.
    pub cpu_system: Option<f64>,
    /// Context switches of the event loop's thread because it waited.
    pub switches_voluntary: i64,
    /// And because its time was over.
    pub switches_involuntary: i64,
    /// Pages read from disks by vnode pagers.
    pub pages_read: Option<u64>,
    /// Counters of the module before the run.
    pub counters_before: BTreeMap<String, u64>,
    /// And after.
    pub counters_after: BTreeMap<String, u64>,
    /// Bytes that clients got in each piece of `timeline_ms`.
    pub timeline: Vec<u64>,
    /// Length of a piece of the timeline.
    pub timeline_ms: u64,
}

impl Measured {
    /// Bytes a second.
    pub fn rate(&self) -> f64 {
        self.bytes as f64 / self.seconds.max(1e-9)
    }

    /// Something per GiB that was sent.
    pub fn per_gib(&self, amount: f64) -> f64 {
        amount / (self.bytes.max(1) as f64 / f64::from(1 << 30))
    }
}

/// The machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// System and release.
    pub system: String,
    /// The kernel's configuration or version line.
    pub kernel: String,
    /// Processors.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Ticks a second: the resolution of gnop(8)'s latency.
    pub hz: Option<u64>,
    /// What the files lie on.
    pub disk: String,
    /// How the cache was made cold.
    pub cold: String,
    /// What could distort the figures.
    pub warnings: Vec<String>,
}

/// How sendfile(2) is called, and how the clients behave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendOptions {
    /// Most bytes of one call.
    pub chunk: u64,
    /// SO_SNDBUF; none leaves it to the system.
    pub sndbuf: Option<u32>,
    /// SF_NODISKIO.
    pub nodiskio: bool,
    /// SF_NOCACHE.
    pub nocache: bool,
    /// Pages for SF_READAHEAD().
    pub readahead: u16,
    /// SF_USER_READAHEAD: these pages and no more.
    pub user_readahead: bool,
    /// A run ends after so many seconds.
    pub seconds: Option<u64>,
    /// Most bytes a second that each client takes.
    pub rate: Option<u64>,
    /// Milliseconds between one client's beginning and the next one's.
    #[serde(default)]
    pub stagger_ms: u64,
}

/// A whole benchmark.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: u32,
    /// Version of sendbench.
    pub version: String,
    /// Seconds since 1970 at the beginning.
    pub began: u64,
    /// The machine.
    pub machine: Machine,
    /// Bytes of a large file.
    pub size: u64,
    /// The seed.
    pub seed: u64,
    /// How sendfile(2) was called and how the clients behaved.
    pub send: SendOptions,
    /// Extents of the fragmented file, when the filesystem told them.
    pub fragments: Option<u64>,
    /// Everything that was run, in order.
    pub runs: Vec<Run>,
}
