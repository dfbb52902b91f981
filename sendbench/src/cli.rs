// SPDX-License-Identifier: BSD-2-Clause
//! The command line.

use std::{path::PathBuf, str::FromStr};

use clap::{Args, Parser, Subcommand};

use crate::{
    result::{SendOptions, Variant},
    workload::{Name, Scale},
};

/// Measure sendfile(2) from an event loop: the kernel's own getpages beside asyncpager's.
///
/// Exit codes: 0 all is well, 1 something failed, 2 bad arguments, 3 a client got a wrong byte,
/// 4 cannot be measured here (not root, the module is not loaded), 130 interrupted.
#[derive(Parser, Debug)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run workloads with the kernel's own implementation and with the module in turn
    Compare {
        #[command(flatten)]
        bench: Bench,
    },
    /// Run workloads with one of them
    Run {
        /// Who answers
        #[arg(long, value_enum, default_value = "asyncpager")]
        variant: Variant,
        #[command(flatten)]
        bench: Bench,
    },
    /// Make a table or a page from what --json has written
    Report {
        /// What --json has written
        #[arg(long)]
        from: PathBuf,
        /// Where the page goes; without it the table is printed
        page: Option<PathBuf>,
    },
}

#[cfg(target_os = "linux")]
const DEFAULT_SIZE: u64 = 16 << 20;
#[cfg(not(target_os = "linux"))]
const DEFAULT_SIZE: u64 = 128 << 20;

/// What to run, and how.
#[derive(Args, Debug, Clone)]
pub struct Bench {
    /// Workloads, with commas between them; all when none is named
    #[arg(long, short, value_enum, value_delimiter = ',')]
    pub workload: Vec<Name>,
    /// Rounds of each workload
    #[arg(long, short, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Latencies of the disk, with commas between them, as 0,5ms,30ms: a gnop(8) disk is set up
    #[arg(long, value_delimiter = ',')]
    pub latency: Vec<Milliseconds>,
    /// Size of a large file, 128M unless given, 16M in the testbed; all other sizes follow from it
    #[arg(long)]
    pub size: Option<Bytes>,
    /// End each run after so many seconds
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: Option<u64>,
    /// Bytes a second that each client takes, as over a line of its own, and no more
    #[arg(long, value_name = "BYTES")]
    pub rate: Option<Bytes>,
    /// Milliseconds between one client's beginning and the next one's
    #[arg(long, value_name = "MS", default_value = "0")]
    pub stagger: Milliseconds,
    /// Seed of contents and requests
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[command(flatten)]
    pub disk: Disk,
    #[cfg(target_os = "linux")]
    #[command(flatten)]
    pub testbed: Testbed,
    #[command(flatten)]
    pub send: Send,
    /// Print everything as JSON on standard output, and no table
    #[arg(long)]
    pub json: bool,
    /// Write everything as JSON to this file too
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Write a page with plots to this file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
}

/// Where the files lie. A memory disk is made when nothing is said.
#[derive(Args, Debug, Clone)]
pub struct Disk {
    /// An FFS directory that is there; the cache is dropped with msync(2) and not by remounting
    #[arg(long, conflicts_with = "device")]
    pub dir: Option<PathBuf>,
    /// A device for a new filesystem: ALL DATA ON IT ARE LOST
    #[arg(long)]
    pub device: Option<String>,
    /// Use the filesystem that is on --device
    #[arg(long, requires = "device")]
    pub no_newfs: bool,
    /// Wire memory until so many per cent of all are wired, to see what a shortage does
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(1..=95))]
    pub wire: Option<u8>,
}

/// The module in userspace.
#[cfg(target_os = "linux")]
#[derive(Args, Debug, Clone)]
pub struct Testbed {
    /// Run the module in the testbed
    #[arg(long, conflicts_with_all = ["dir", "device", "wire"])]
    pub testbed: bool,
    /// The module
    #[arg(long, requires = "testbed", default_value = "target/kmod/14-amd64/asyncpager.ko")]
    pub ko: PathBuf,
}

/// How sendfile(2) is called.
#[derive(Args, Debug, Clone)]
pub struct Send {
    /// Most bytes of one sendfile call, as nginx's sendfile_max_chunk
    #[arg(long, default_value = "2M")]
    pub chunk: Bytes,
    /// SO_SNDBUF of the server's sockets; the system decides when it is not given
    #[arg(long)]
    pub sndbuf: Option<Bytes>,
    /// SF_NODISKIO: do not wait for busy pages, try again
    #[arg(long)]
    pub nodiskio: bool,
    /// SF_NOCACHE: free pages once they are sent
    #[arg(long)]
    pub nocache: bool,
    /// Pages for SF_READAHEAD
    #[arg(long, default_value_t = 0)]
    pub readahead: u16,
    /// SF_USER_READAHEAD: exactly the pages of --readahead
    #[arg(long)]
    pub user_readahead: bool,
}

impl Bench {
    /// What to run, each once, in the order of the names.
    pub fn workloads(&self) -> Vec<Name> {
        let mut names = match self.workload[..] {
            [] => <Name as clap::ValueEnum>::value_variants().to_vec(),
            _ => self.workload.clone(),
        };
        names.sort();
        names.dedup();
        names
    }

    /// The sizes.
    pub fn scale(&self) -> Scale {
        let size = self.size.map_or(DEFAULT_SIZE, |size| size.0);
        Scale { size, seed: self.seed }
    }

    /// For the runs and for results.
    pub fn send_options(&self) -> SendOptions {
        SendOptions {
            chunk: self.send.chunk.0,
            sndbuf: self.send.sndbuf.map(|bytes| bytes.0.min(i32::MAX as u64) as u32),
            nodiskio: self.send.nodiskio,
            nocache: self.send.nocache,
            readahead: self.send.readahead,
            user_readahead: self.send.user_readahead,
            seconds: self.seconds,
            rate: self.rate.map(|bytes| bytes.0),
            stagger_ms: self.stagger.0,
        }
    }
}

/// Bytes, as 65536, 64K, 2M or 1G.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a size as 65536, 64K, 2M or 1G");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match text[digits.len()..]
            .to_ascii_lowercase()
            .trim_end_matches("ib")
            .trim_end_matches('b')
        {
            "" => 1,
            "k" => 1 << 10,
            "m" => 1 << 20,
            "g" => 1 << 30,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        match number.checked_mul(unit) {
            Some(bytes) if (4096..=1 << 40).contains(&bytes) => Ok(Self(bytes)),
            Some(_) => Err(format!("'{text}' is not between 4K and 1024G")),
            None => Err(wrong()),
        }
    }
}

/// Milliseconds, as 30 or 30ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Milliseconds(pub u64);

impl FromStr for Milliseconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.strip_suffix("ms").unwrap_or(text);
        match number.parse() {
            Ok(ms) if ms <= 10_000 => Ok(Self(ms)),
            Ok(_) => Err(format!("'{text}' is more than 10000ms")),
            Err(_) => Err(format!("'{text}' is not a time as 30 or 30ms")),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn compare(args: &[&str]) -> Result<Bench, clap::Error> {
        match Cli::try_parse_from(["sendbench", "compare"].iter().chain(args))?.command {
            Command::Compare { bench } => Ok(bench),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn clap_finds_no_fault() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_and_latencies() {
        assert_eq!("64K".parse(), Ok(Bytes(65536)));
        assert_eq!("2MiB".parse(), Ok(Bytes(2 << 20)));
        assert_eq!("1g".parse(), Ok(Bytes(1 << 30)));
        assert_eq!("4096".parse(), Ok(Bytes(4096)));
        for bad in ["", "K", "1", "4095", "12X", "-1M", "99999999999999999999", "2T", "1.5M"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
        assert_eq!("30ms".parse(), Ok(Milliseconds(30)));
        assert_eq!("0".parse(), Ok(Milliseconds(0)));
        for bad in ["", "ms", "3s", "-1", "10001"] {
            assert!(bad.parse::<Milliseconds>().is_err(), "{bad}");
        }
    }

    #[test]
    fn lists_and_defaults() {
        let bench =
            compare(&["-w", "random,cold-stream,random", "--latency", "0,5ms,30ms"]).unwrap();
        assert_eq!(bench.workloads(), [Name::ColdStream, Name::Random]);
        assert_eq!(bench.latency.iter().map(|l| l.0).collect::<Vec<_>>(), [0, 5, 30]);
        let bench = compare(&[]).unwrap();
        assert_eq!(bench.workloads().len(), 9);
        assert_eq!((bench.scale().size, bench.send.chunk.0), (DEFAULT_SIZE, 2 << 20));
        assert_eq!(bench.rounds, 5);
        assert!(bench.latency.is_empty());
        let clients = |bench: &Bench| {
            let send = bench.send_options();
            (send.rate, send.stagger_ms)
        };
        assert_eq!(clients(&bench), (None, 0));
        let bench = compare(&["--rate", "112M", "--stagger", "50ms"]).unwrap();
        assert_eq!(clients(&bench), (Some(112 << 20), 50));
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(compare(&["--dir", "/a", "--device", "/dev/b"]).is_err());
        assert!(compare(&["--no-newfs"]).is_err());
        assert!(compare(&["--rounds", "0"]).is_err());
        assert!(compare(&["--wire", "96"]).is_err() && compare(&["--wire", "90"]).is_ok());
        assert!(compare(&["--workload", "nonesuch"]).is_err());
    }
}
