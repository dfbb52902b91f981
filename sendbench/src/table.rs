// SPDX-License-Identifier: BSD-2-Clause
//! Results for people, as text.

use std::fmt::Write;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use crate::{
    distribution::Distribution,
    ratio::{Case, Ratio, Ratios, Side, cases},
    result::{Results, SendOptions},
};

/// Bytes a second.
pub fn rate(bytes: f64) -> String {
    format!("{:.1}", bytes / 1e6)
}

/// Nanoseconds, with three digits.
pub fn duration(nanoseconds: u64) -> String {
    let ns = nanoseconds as f64;
    let (value, unit) = match nanoseconds {
        0..1_000 => return format!("{nanoseconds} ns"),
        1_000..1_000_000 => (ns / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// A share in per cent.
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// How the clients behave, unless they take all that comes as it comes.
pub fn clients(send: &SendOptions) -> Option<String> {
    let rate = send.rate.map(|rate| match rate as f64 {
        rate @ ..1e6 => format!("take at most {:.1} kB/s each", rate / 1e3),
        rate => format!("take at most {:.1} MB/s each", rate / 1e6),
    });
    let stagger = (send.stagger_ms > 0).then(|| format!("begin {} ms apart", send.stagger_ms));
    let all: Vec<String> = rate.into_iter().chain(stagger).collect();
    (!all.is_empty()).then(|| format!("clients {}", all.join(" and ")))
}

/// A ratio and its spread.
fn ratio(ratio: Option<Ratio>) -> String {
    ratio.map_or("–".into(), |r| format!("{:.2} ({:.2}–{:.2})", r.median, r.min, r.max))
}

/// The disk's latency.
pub fn latency(ms: Option<u64>) -> String {
    ms.map_or("as it is".into(), |ms| format!("{ms} ms"))
}

/// Both sides' figures.
fn both(case: &Case, figure: impl Fn(&Side) -> Option<String>) -> String {
    let text = |side: &Option<Side>| side.as_ref().and_then(&figure).unwrap_or_else(|| "–".into());
    match (&case.stock, &case.asyncpager) {
        (None, _) => text(&case.asyncpager),
        (_, None) => text(&case.stock),
        _ => format!("{} → {}", text(&case.stock), text(&case.asyncpager)),
    }
}

/// A side's time asleep inside a sendfile call.
pub fn sleep(side: &Side, figure: impl Fn(&Distribution) -> u64) -> Option<String> {
    side.asleep.as_ref().map(|asleep| duration(figure(asleep)))
}

/// A figure of each side, and how the sides compare in it.
pub struct Metric {
    /// Its name, with the unit.
    pub name: &'static str,
    /// Which way is good.
    pub more_is_better: bool,
    figure: fn(&Side) -> Option<String>,
    ratio: Option<fn(&Ratios) -> Option<Ratio>>,
}

impl Metric {
    const fn new(
        name: &'static str,
        figure: fn(&Side) -> Option<String>,
        ratio: Option<fn(&Ratios) -> Option<Ratio>>,
    ) -> Self {
        Self { name, more_is_better: false, figure, ratio }
    }

    /// One side's figure.
    pub fn text(&self, side: Option<&Side>) -> String {
        side.and_then(self.figure).unwrap_or_else(|| "–".into())
    }

    /// asyncpager / stock.
    pub fn ratio(&self, case: &Case) -> Option<Ratio> {
        self.ratio.and_then(|ratio| ratio(&case.ratios))
    }
}

/// Everything that a page tells of a case.
pub const METRICS: &[Metric] = &[
    Metric {
        more_is_better: true,
        ..Metric::new("throughput, MB/s", |s| Some(rate(s.rate)), Some(|r| r.rate))
    },
    Metric::new(
        "first byte, median",
        |s| Some(duration(s.first_byte.p50)),
        Some(|r| r.first_byte_p50),
    ),
    Metric::new("first byte, p99", |s| Some(duration(s.first_byte.p99)), None),
    Metric::new("sendfile call, median", |s| Some(duration(s.call.p50)), None),
    Metric::new("sendfile call, p99", |s| Some(duration(s.call.p99)), Some(|r| r.call_p99)),
    Metric::new("sendfile call, p99.9", |s| Some(duration(s.call.p999)), None),
    Metric::new("sendfile call, longest", |s| Some(duration(s.call.max)), None),
    Metric::new(
        "share of the run inside sendfile",
        |s| Some(percent(s.inside_share)),
        Some(|r| r.inside_share),
    ),
    Metric::new(
        "share of the run asleep inside sendfile",
        |s| s.asleep_share.map(percent),
        Some(|r| r.asleep_share),
    ),
    Metric::new("asleep in a sendfile call, p99", |s| sleep(s, |d| d.p99), None),
    Metric::new("asleep in a sendfile call, p99.9", |s| sleep(s, |d| d.p999), None),
    Metric::new("asleep in a sendfile call, longest", |s| sleep(s, |d| d.max), None),
    Metric::new(
        "CPU s/GiB, event loop",
        |s| Some(format!("{:.2}", s.cpu_server_per_gib)),
        Some(|r| r.cpu_server),
    ),
    Metric::new(
        "CPU s/GiB, machine",
        |s| s.cpu_system_per_gib.map(|cpu| format!("{cpu:.2}")),
        Some(|r| r.cpu_system),
    ),
    Metric::new(
        "context switches/GiB, event loop",
        |s| Some(format!("{:.0}", s.switches_per_gib)),
        Some(|r| r.switches),
    ),
    Metric::new(
        "pages read/GiB",
        |s| s.pages_read_per_gib.map(|pages| format!("{pages:.0}")),
        Some(|r| r.pages_read),
    ),
];

const OF_OWN_ZERO: &str = "of own 0 ms";

/// A column of the overview: its head, and a case's cell.
type Column = (&'static str, fn(&Case) -> String);

const COLUMNS: &[Column] = &[
    ("workload", |case| case.workload.as_str().to_string()),
    ("latency", |case| latency(case.latency_ms)),
    ("MB/s", |case| both(case, |s| Some(rate(s.rate)))),
    ("ratio", |case| ratio(case.ratios.rate)),
    (OF_OWN_ZERO, |case| {
        let share = |share: Option<f64>| share.map_or("–".into(), |share| format!("{share:.2}"));
        match (case.stock_of_own_zero, case.of_own_zero) {
            (None, None) => "–".into(),
            (stock, ours) => format!("{} → {}", share(stock), share(ours)),
        }
    }),
    ("first byte p50", |case| both(case, |s| Some(duration(s.first_byte.p50)))),
    ("inside", |case| both(case, |s| Some(percent(s.inside_share)))),
    ("asleep", |case| both(case, |s| s.asleep_share.map(percent))),
    ("sleep p99", |case| both(case, |s| sleep(s, |asleep| asleep.p99))),
    ("longest sleep", |case| both(case, |s| sleep(s, |asleep| asleep.max))),
    ("CPU ratio", |case| ratio(case.ratios.cpu_server)),
    ("pages ratio", |case| ratio(case.ratios.pages_read)),
];

/// All cases.
pub fn table(results: &Results) -> String {
    let mut text = String::new();
    let machine = &results.machine;
    let _ = writeln!(
        text,
        "{}, {} CPUs, {} MiB, disk: {}\ncold: {}",
        machine.system,
        machine.cpus,
        machine.memory >> 20,
        machine.disk,
        machine.cold
    );
    if let Some(clients) = clients(&results.send) {
        let _ = writeln!(text, "{clients}");
    }
    for warning in &machine.warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    let _ = writeln!(
        text,
        "stock → asyncpager; ratios asyncpager/stock of each round: median (least–greatest)"
    );
    let cases = cases(results);
    // Without a run at 0 ms there is nothing to refer to.
    let referred = cases.iter().any(|case| case.of_own_zero.or(case.stock_of_own_zero).is_some());
    let columns: Vec<_> =
        COLUMNS.iter().filter(|(name, _)| referred || *name != OF_OWN_ZERO).collect();
    let mut overview = sheet();
    overview.set_header(columns.iter().map(|(name, _)| *name));
    for case in &cases {
        overview.add_row(columns.iter().map(|(_, text)| text(case)));
    }
    for column in overview.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let _ = writeln!(text, "{overview}");
    let cut = results.runs.iter().filter(|run| run.measured.cut).count();
    if cut > 0 {
        let _ = writeln!(text, "{cut} of {} runs were ended by --seconds", results.runs.len());
    }
    text
}

fn sheet() -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::ASCII_MARKDOWN)
        .set_content_arrangement(ContentArrangement::Disabled);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_three_digits() {
        for (ns, text) in [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_234, "1.23 µs"),
            (12_345, "12.3 µs"),
            (123_456, "123 µs"),
            (30_400_000, "30.4 ms"),
            (2_500_000_000, "2.50 s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn the_table_has_the_ratio_its_spread_and_the_reference() {
        let text = table(&crate::ratio::tests::results());
        let row = text.lines().find(|line| line.contains("30 ms")).unwrap();
        for want in [
            "cold-stream",
            "4.00 (3.00–4.40)",
            "26.8 → 107.4",
            "0.23 → 0.90",
            "40.0 % → 10.0 %",
            "9.96 ms → 99.3 µs",
        ] {
            assert!(row.contains(want), "{want}: {row}");
        }
    }

    #[test]
    fn the_head_tells_what_the_clients_take() {
        let send = |rate| SendOptions { rate, ..SendOptions::default() };
        assert_eq!(clients(&send(None)), None);
        let told = clients(&send(Some(112 << 20))).unwrap();
        assert_eq!(told, "clients take at most 117.4 MB/s each");
        assert_eq!(clients(&send(Some(4096))).unwrap(), "clients take at most 4.1 kB/s each");
        let stagger = SendOptions { stagger_ms: 50, ..send(None) };
        assert_eq!(clients(&stagger).unwrap(), "clients begin 50 ms apart");
        let both = SendOptions { stagger_ms: 50, ..send(Some(112 << 20)) };
        assert_eq!(clients(&both).unwrap(), format!("{told} and begin 50 ms apart"));
        let results = Results { send: send(Some(112 << 20)), ..crate::ratio::tests::results() };
        assert!(table(&results).contains(&told));
    }

    #[test]
    fn without_a_reference_there_is_no_column_for_it() {
        let mut results = crate::ratio::tests::results();
        assert!(table(&results).contains(OF_OWN_ZERO));
        results.runs.retain(|run| run.latency_ms == Some(30));
        assert!(!table(&results).contains(OF_OWN_ZERO));
    }
}
