// SPDX-License-Identifier: BSD-2-Clause
//! Ratios with their spread: each round's pair is divided, and the middle and
//! the ends of the quotients are told.

use serde::Serialize;

use crate::{
    distribution::Distribution,
    result::{Measured, Results, Run, Variant},
    workload::Name,
};

/// Quotients of the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ratio {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
    /// How many rounds.
    pub rounds: usize,
}

impl Ratio {
    /// None without a round that can be divided.
    pub fn of(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        let mut all: Vec<f64> = pairs
            .into_iter()
            .filter(|(ours, stock)| *stock > 0.0 && ours.is_finite())
            .map(|(ours, stock)| ours / stock)
            .collect();
        all.sort_by(f64::total_cmp);
        let (min, max) = (*all.first()?, *all.last()?);
        Some(Self { median: middle(&all), min, max, rounds: all.len() })
    }
}

/// The median; 0 of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.into_iter().collect();
    all.sort_by(f64::total_cmp);
    middle(&all)
}

fn middle(sorted: &[f64]) -> f64 {
    match sorted {
        [] => 0.0,
        _ if sorted.len() % 2 == 1 => sorted[sorted.len() / 2],
        _ => f64::midpoint(sorted[sorted.len() / 2 - 1], sorted[sorted.len() / 2]),
    }
}

/// What one variant did in all rounds of a case: medians, and distributions of all rounds together.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Bytes a second.
    pub rate: f64,
    /// From the request to the first byte.
    pub first_byte: Distribution,
    /// Time inside sendfile.
    pub call: Distribution,
    /// Share of the run inside sendfile.
    pub inside_share: f64,
    /// Time asleep inside sendfile.
    pub asleep: Option<Distribution>,
    /// Share of the run asleep inside sendfile.
    pub asleep_share: Option<f64>,
    /// CPU seconds per GiB of the event loop's thread.
    pub cpu_server_per_gib: f64,
    /// CPU seconds per GiB of the machine.
    pub cpu_system_per_gib: Option<f64>,
    /// Voluntary and involuntary context switches of the event loop's thread per GiB.
    pub switches_per_gib: f64,
    /// Pages read per GiB.
    pub pages_read_per_gib: Option<f64>,
}

/// One workload on one disk: both sides and how they compare.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// The workload.
    pub workload: Name,
    /// The disk's latency.
    pub latency_ms: Option<u64>,
    /// The kernel's own.
    pub stock: Option<Side>,
    /// The module.
    pub asyncpager: Option<Side>,
    /// asyncpager / stock.
    pub ratios: Ratios,
    /// The module's rate here / its own rate without latency, when that was run.
    pub of_own_zero: Option<f64>,
    /// The same of the kernel's own.
    pub stock_of_own_zero: Option<f64>,
}

/// asyncpager / stock, round by round.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Ratios {
    /// Bytes a second: more is better.
    pub rate: Option<Ratio>,
    /// Median time to the first byte: less is better, as in all that follow.
    pub first_byte_p50: Option<Ratio>,
    /// 99th percentile of the time inside a call.
    pub call_p99: Option<Ratio>,
    /// Share of the run inside sendfile.
    pub inside_share: Option<Ratio>,
    /// Share of the run asleep inside sendfile.
    pub asleep_share: Option<Ratio>,
    /// CPU per GiB of the event loop's thread.
    pub cpu_server: Option<Ratio>,
    /// CPU per GiB of the machine.
    pub cpu_system: Option<Ratio>,
    /// Context switches per GiB.
    pub switches: Option<Ratio>,
    /// Pages read per GiB.
    pub pages_read: Option<Ratio>,
}

fn switches(m: &Measured) -> f64 {
    m.per_gib((m.switches_voluntary + m.switches_involuntary) as f64)
}

fn side(runs: &[&Run]) -> Option<Side> {
    let all: Vec<&Measured> = runs.iter().map(|run| &run.measured).collect();
    if all.is_empty() {
        return None;
    }
    let of = |f: &dyn Fn(&Measured) -> f64| median(all.iter().map(|m| f(m)));
    let maybe = |f: &dyn Fn(&Measured) -> Option<f64>| {
        all.iter().map(|m| f(m)).collect::<Option<Vec<_>>>().map(median)
    };
    Some(Side {
        rate: of(&Measured::rate),
        first_byte: Distribution::merged(all.iter().map(|m| &m.first_byte)),
        call: Distribution::merged(all.iter().map(|m| &m.call)),
        inside_share: of(&|m| m.inside_share),
        asleep: all
            .iter()
            .map(|m| m.asleep.as_ref())
            .collect::<Option<Vec<_>>>()
            .map(Distribution::merged),
        asleep_share: maybe(&|m| m.asleep_share),
        cpu_server_per_gib: of(&|m| m.per_gib(m.cpu_server)),
        cpu_system_per_gib: maybe(&|m| Some(m.per_gib(m.cpu_system?))),
        switches_per_gib: of(&switches),
        pages_read_per_gib: maybe(&|m| Some(m.per_gib(m.pages_read? as f64))),
    })
}

/// Every workload and latency, in the order of the runs.
pub fn cases(results: &Results) -> Vec<Case> {
    let mut keys = Vec::new();
    for run in &results.runs {
        if !keys.contains(&(run.workload, run.latency_ms)) {
            keys.push((run.workload, run.latency_ms));
        }
    }
    let mut cases: Vec<Case> = keys.iter().map(|key| case(results, *key)).collect();
    for i in 0..cases.len() {
        if cases[i].latency_ms.is_none_or(|ms| ms == 0) {
            continue;
        }
        let zero = cases
            .iter()
            .find(|case| case.workload == cases[i].workload && case.latency_ms == Some(0));
        let of = |here: &Option<Side>, zero: Option<&Side>| {
            let (here, zero) = (here.as_ref()?.rate, zero?.rate);
            (zero > 0.0).then(|| here / zero)
        };
        let ours = of(&cases[i].asyncpager, zero.and_then(|zero| zero.asyncpager.as_ref()));
        let stock = of(&cases[i].stock, zero.and_then(|zero| zero.stock.as_ref()));
        (cases[i].of_own_zero, cases[i].stock_of_own_zero) = (ours, stock);
    }
    cases
}

fn case(results: &Results, (workload, latency_ms): (Name, Option<u64>)) -> Case {
    let of = |variant| -> Vec<&Run> {
        let here = results.runs.iter();
        here.filter(|r| (r.workload, r.latency_ms, r.variant) == (workload, latency_ms, variant))
            .collect()
    };
    let (stock, ours) = (of(Variant::Stock), of(Variant::Asyncpager));
    let pairs: Vec<(&Measured, &Measured)> = ours
        .iter()
        .filter_map(|a| {
            let twin = stock.iter().find(|s| s.round == a.round)?;
            Some((&a.measured, &twin.measured))
        })
        .collect();
    let ratio = |f: &dyn Fn(&Measured) -> Option<f64>| {
        Ratio::of(pairs.iter().filter_map(|(a, s)| Some((f(a)?, f(s)?))))
    };
    Case {
        workload,
        latency_ms,
        ratios: Ratios {
            rate: ratio(&|m| Some(m.rate())),
            first_byte_p50: ratio(&|m| Some(m.first_byte.p50 as f64)),
            call_p99: ratio(&|m| Some(m.call.p99 as f64)),
            inside_share: ratio(&|m| Some(m.inside_share)),
            asleep_share: ratio(&|m| m.asleep_share),
            cpu_server: ratio(&|m| Some(m.per_gib(m.cpu_server))),
            cpu_system: ratio(&|m| Some(m.per_gib(m.cpu_system?))),
            switches: ratio(&|m| Some(switches(m))),
            pages_read: ratio(&|m| Some(m.per_gib(m.pages_read? as f64))),
        },
        stock: side(&stock),
        asyncpager: side(&ours),
        of_own_zero: None,
        stock_of_own_zero: None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        distribution::Recorder,
        result::{FORMAT, Machine, SendOptions},
    };

    fn run(variant: Variant, latency_ms: u64, round: u32, seconds: f64, calls_ns: u64) -> Run {
        let mut call = Recorder::new();
        (1..100).for_each(|n| call.record(calls_ns * n));
        // Every other call sleeps all the time.
        let mut asleep = Recorder::new();
        (1..100).for_each(|n| asleep.record(calls_ns * n * (n % 2)));
        let measured = Measured {
            seconds,
            bytes: 1 << 30,
            call: call.distribution(),
            first_byte: call.distribution(),
            asleep: Some(asleep.distribution()),
            asleep_share: Some(seconds / 100.0),
            cpu_server: seconds / 10.0,
            pages_read: Some(262_144),
            timeline: vec![1 << 29; 2],
            timeline_ms: 500,
            ..Measured::default()
        };
        Run { workload: Name::ColdStream, variant, latency_ms: Some(latency_ms), round, measured }
    }

    /// Three rounds at 0 and at 30 ms, one workload.
    pub(crate) fn results() -> Results {
        let mut runs = Vec::new();
        for (round, (stock, ours)) in [(40.0, 10.0), (44.0, 10.0), (36.0, 12.0)].iter().enumerate()
        {
            runs.push(run(Variant::Stock, 30, round as u32, *stock, 100_000));
            runs.push(run(Variant::Asyncpager, 30, round as u32, *ours, 1000));
            runs.push(run(Variant::Asyncpager, 0, round as u32, 9.0, 1000));
            runs.push(run(Variant::Stock, 0, round as u32, 9.0, 1000));
        }
        Results {
            format: FORMAT,
            version: "0".into(),
            began: 1_700_000_000,
            machine: Machine { system: "FreeBSD <14.2> & co".into(), ..Machine::default() },
            size: 1 << 30,
            seed: 1,
            send: SendOptions::default(),
            fragments: None,
            runs,
        }
    }

    #[test]
    fn median_of_odd_even_and_none() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median([]), 0.0);
    }

    #[test]
    fn ratio_tells_the_middle_and_the_ends() {
        let ratio = Ratio::of([(4.0, 1.0), (9.0, 3.0), (10.0, 2.0)]).unwrap();
        assert_eq!(ratio, Ratio { median: 4.0, min: 3.0, max: 5.0, rounds: 3 });
        assert_eq!(Ratio::of([(1.0, 0.0)]), None);
        assert_eq!(Ratio::of([]), None);
    }

    #[test]
    fn rounds_are_paired_and_zero_is_the_reference() {
        let cases = cases(&results());
        assert_eq!(cases.len(), 2);
        let slow = &cases[0];
        assert_eq!(slow.latency_ms, Some(30));
        let rate = slow.ratios.rate.unwrap();
        assert!((rate.median - 4.0).abs() < 1e-9, "{rate:?}");
        assert!((rate.min - 3.0).abs() < 1e-9 && (rate.max - 4.4).abs() < 1e-9, "{rate:?}");
        assert!((slow.of_own_zero.unwrap() - 0.9).abs() < 1e-9);
        assert!((slow.stock_of_own_zero.unwrap() - 9.0 / 40.0).abs() < 1e-9);
        assert_eq!(slow.ratios.pages_read.unwrap().median, 1.0);
        assert!(slow.ratios.cpu_system.is_none());
        assert_eq!(slow.ratios.asleep_share.unwrap().median, 0.25);
        let asleep = slow.stock.as_ref().unwrap().asleep.as_ref().unwrap();
        assert_eq!((asleep.count, asleep.buckets[0]), (3 * 99, (0, 3 * 49)));
        assert!((9_800_000..10_000_000).contains(&asleep.max), "{}", asleep.max);
        assert_eq!(slow.stock.as_ref().unwrap().call.count, 3 * 99);
        assert_eq!(cases[1].ratios.rate.unwrap().median, 1.0);
        assert!(cases[1].of_own_zero.is_none());
    }

    #[test]
    fn one_round_without_the_time_asleep_and_there_is_none() {
        let mut results = results();
        let run = results.runs.iter_mut().find(|run| run.variant == Variant::Stock).unwrap();
        (run.measured.asleep, run.measured.asleep_share) = (None, None);
        let slow = &cases(&results)[0];
        let side = |side: &Option<Side>| side.as_ref().unwrap().asleep.is_some();
        assert!(!side(&slow.stock) && side(&slow.asyncpager));
        assert!(slow.stock.as_ref().unwrap().asleep_share.is_none());
        assert_eq!(slow.ratios.asleep_share.unwrap().rounds, 2);
    }

    #[test]
    fn a_side_without_its_twin_has_no_ratio() {
        let mut results = results();
        results.runs.retain(|run| run.variant == Variant::Stock);
        let cases = cases(&results);
        assert!(cases[0].ratios.rate.is_none() && cases[0].asyncpager.is_none());
        assert!(cases[0].stock.is_some());
    }
}
