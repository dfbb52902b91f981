// SPDX-License-Identifier: BSD-2-Clause
//! Workloads: which files there are, and what each connection asks for.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A workload by its name.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Name {
    /// One connection, one large cold file
    ColdStream,
    /// Four connections send the same four cold files at the same time
    Shared,
    /// Sixteen connections share out many cold files
    ManyFiles,
    /// Sixty-four connections read cold random ranges of a large file, as video seeking does
    Random,
    /// Eight connections share out small cold files
    Small,
    /// One connection, a cold file in extents of 64 KiB
    Fragmented,
    /// One connection, cold data beyond the second indirect level of a sparse file
    Deep,
    /// As shared, with all pages in memory
    Warm,
    /// A cold stream, random ranges, and small files at the same time
    Mixed,
}

impl Name {
    /// As the command line has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Name::ColdStream => "cold-stream",
            Name::Shared => "shared",
            Name::ManyFiles => "many-files",
            Name::Random => "random",
            Name::Small => "small",
            Name::Fragmented => "fragmented",
            Name::Deep => "deep",
            Name::Warm => "warm",
            Name::Mixed => "mixed",
        }
    }

    /// What it is, in a sentence.
    pub fn about(self) -> String {
        let value = self.to_possible_value();
        value.and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }
}

/// How a file lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As the filesystem allocates it.
    Plain,
    /// In extents of this many bytes.
    Extents(u64),
    /// A hole, and then data beyond the reach of double indirect blocks.
    Deep,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSpec {
    /// Its name in the directory of files.
    pub name: String,
    /// Its number, which its content depends on.
    pub number: u32,
    /// Bytes of data.
    pub size: u64,
    /// Where they lie.
    pub layout: Layout,
}

/// What a client asks for: a range of a file, relative to where its data begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Which of the workload's files.
    pub file: usize,
    /// From here,
    pub offset: u64,
    /// this many bytes.
    pub len: u64,
}

/// Files, and what each connection asks for, one after the other.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Drop what is cached before it runs.
    pub cold: bool,
    /// What is sent.
    pub files: Vec<FileSpec>,
    /// Each connection's requests.
    pub connections: Vec<Vec<Request>>,
}

/// How large everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// Bytes of a large file; the rest follows from it.
    pub size: u64,
    /// Seed of contents and requests.
    pub seed: u64,
}

const KIB: u64 = 1024;
const RANGE: u64 = 64 * KIB;
const SHARED_FILES: u64 = 4;
const MANY_FILES: u64 = 64;
const RANDOM_CONNECTIONS: u64 = 64;

impl Scale {
    fn file(&self, group: u32, n: u64, name: &str, size: u64, layout: Layout) -> FileSpec {
        let number = group * 100_000 + n as u32;
        FileSpec { name: format!("{name}-{n}"), number, size, layout }
    }

    fn large(&self) -> FileSpec {
        self.file(0, 0, "large", self.size, Layout::Plain)
    }

    fn shared(&self) -> Vec<FileSpec> {
        let size = self.size / SHARED_FILES;
        (0..SHARED_FILES).map(|n| self.file(1, n, "shared", size, Layout::Plain)).collect()
    }

    fn many(&self) -> Vec<FileSpec> {
        let size = self.size / MANY_FILES;
        (0..MANY_FILES).map(|n| self.file(2, n, "many", size, Layout::Plain)).collect()
    }

    fn small(&self) -> Vec<FileSpec> {
        let mut rng = fastrand::Rng::with_seed(self.seed ^ 0x5a11);
        let count = (self.size / (256 * KIB)).clamp(16, 2048);
        (0..count).map(|n| self.file(3, n, "small", rng.u64(1..=16 * KIB), Layout::Plain)).collect()
    }

    /// `count` ranges of a file.
    fn ranges(&self, salt: u64, file: usize, count: u64) -> Vec<Request> {
        let mut rng = fastrand::Rng::with_seed(self.seed ^ salt);
        let len = RANGE.min(self.size);
        let places = (self.size - len) / (4 * KIB) + 1;
        (0..count).map(|_| Request { file, offset: rng.u64(0..places) * 4 * KIB, len }).collect()
    }

    /// A workload's files and requests.
    pub fn workload(&self, name: Name) -> Workload {
        let (files, connections) = match name {
            Name::ColdStream => (vec![self.large()], vec![]),
            Name::Fragmented => {
                (vec![self.file(4, 0, "fragmented", self.size, Layout::Extents(RANGE))], vec![])
            }
            Name::Deep => (vec![self.file(5, 0, "deep", self.size, Layout::Deep)], vec![]),
            Name::Shared | Name::Warm => {
                let files = self.shared();
                let all = whole(&files, 0);
                (files, vec![all; 4])
            }
            Name::ManyFiles => {
                let files = self.many();
                let requests = whole(&files, 0);
                (files, deal(&requests, 16))
            }
            Name::Small => {
                let files = self.small();
                let requests = whole(&files, 0);
                (files, deal(&requests, 8))
            }
            Name::Random => {
                let each = (self.size / 2 / RANDOM_CONNECTIONS / RANGE).max(2);
                let requests = (0..RANDOM_CONNECTIONS).map(|c| self.ranges(c + 1, 0, each));
                (vec![self.large()], requests.collect())
            }
            Name::Mixed => {
                let mut files = vec![self.large()];
                files.extend(self.shared());
                files.extend(self.small());
                let mut connections = vec![whole(&files[1..=SHARED_FILES as usize], 1)];
                let each = (self.size / 16 / RANGE / 8).max(2);
                connections.extend((0..8).map(|c| self.ranges(1000 + c, 0, each)));
                let first = 1 + SHARED_FILES as usize;
                connections.extend(deal(&whole(&files[first..], first), 4));
                (files, connections)
            }
        };
        // One connection for the only file, when nothing else is said.
        let connections = if connections.is_empty() { vec![whole(&files, 0)] } else { connections };
        Workload { cold: name != Name::Warm, files, connections }
    }

    /// Every file that these workloads need, once.
    pub fn files(&self, names: &[Name]) -> Vec<FileSpec> {
        let mut files: Vec<_> = names.iter().flat_map(|name| self.workload(*name).files).collect();
        files.sort_by_key(|file| file.number);
        files.dedup();
        files
    }
}

/// Every file from beginning to end.
fn whole(files: &[FileSpec], first: usize) -> Vec<Request> {
    files
        .iter()
        .enumerate()
        .map(|(n, file)| Request { file: first + n, offset: 0, len: file.size })
        .collect()
}

/// Requests dealt out to `count` connections like cards.
fn deal(requests: &[Request], count: usize) -> Vec<Vec<Request>> {
    (0..count.min(requests.len()))
        .map(|c| requests.iter().skip(c).step_by(count).copied().collect())
        .collect()
}

impl Workload {
    /// Bytes that its clients ask for.
    pub fn bytes(&self) -> u64 {
        self.connections.iter().flatten().map(|request| request.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALE: Scale = Scale { size: 8 << 20, seed: 1 };

    #[test]
    fn every_request_lies_in_its_file() {
        for name in Name::value_variants() {
            for size in [256 * KIB, 1 << 20, 8 << 20, 128 << 20] {
                let workload = Scale { size, seed: 1 }.workload(*name);
                assert!(!workload.connections.is_empty(), "{name:?}");
                for request in workload.connections.iter().flatten() {
                    let file = &workload.files[request.file];
                    assert!(request.len > 0, "{name:?} {size}");
                    assert!(request.offset + request.len <= file.size, "{name:?} {size}");
                }
            }
        }
    }

    #[test]
    fn shapes() {
        let connections = |name| SCALE.workload(name).connections.len();
        assert_eq!(connections(Name::ColdStream), 1);
        assert_eq!(connections(Name::Shared), 4);
        assert_eq!(connections(Name::ManyFiles), 16);
        assert_eq!(connections(Name::Random), 64);
        assert_eq!(SCALE.workload(Name::ColdStream).bytes(), SCALE.size);
        assert_eq!(SCALE.workload(Name::Shared).bytes(), 4 * SCALE.size);
        assert_eq!(SCALE.workload(Name::ManyFiles).bytes(), SCALE.size);
        assert!(!SCALE.workload(Name::Warm).cold);
        let random = SCALE.workload(Name::Random);
        assert!(random.connections.iter().flatten().all(|request| request.len == RANGE));
    }

    #[test]
    fn same_seed_same_requests_and_files_are_shared() {
        let random = |seed| Scale { size: 8 << 20, seed }.workload(Name::Random).connections;
        assert_eq!(random(5), random(5));
        assert_ne!(random(5), random(6));
        let files = SCALE.files(&[Name::ColdStream, Name::Random, Name::Shared, Name::Warm]);
        assert_eq!(files.len(), 1 + SHARED_FILES as usize);
        let mut numbers: Vec<_> =
            SCALE.files(Name::value_variants()).iter().map(|file| file.number).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), SCALE.files(Name::value_variants()).len());
    }

    #[test]
    fn names_are_those_of_the_command_line() {
        for name in Name::value_variants() {
            assert_eq!(name.to_possible_value().unwrap().get_name(), name.as_str());
            assert!(!name.about().is_empty());
            assert_eq!(serde_json::to_string(name).unwrap(), format!("\"{}\"", name.as_str()));
        }
    }
}
