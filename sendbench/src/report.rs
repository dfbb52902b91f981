// SPDX-License-Identifier: BSD-2-Clause
//! Results for people, as one page that needs nothing else.

use anyhow::Result;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::{
    plot,
    ratio::{Case, Ratio, Side, cases},
    result::{Results, Run},
    table::{self, METRICS},
    workload::Name,
};

const STYLE: &str = "
body { font: 15px/1.45 system-ui, sans-serif; color: #1c2330; background: #fff;
       max-width: 1180px; margin: 2em auto; padding: 0 1.5em; }
h1 { font-size: 1.6em; margin-bottom: .2em; }
h2 { font-size: 1.25em; margin: 2.2em 0 .1em; border-top: 1px solid #d7dce3; padding-top: 1em; }
h3 { font-size: 1em; margin: 1.4em 0 .3em; }
p { margin: .3em 0 .8em; max-width: 52em; }
.note { color: #5a6577; }
.warning { background: #fff3d6; padding: .5em .8em; border-radius: 4px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6em 0 1em; }
th, td { padding: .25em .9em .25em 0; text-align: right; white-space: nowrap; }
th { font-weight: 600; color: #5a6577; border-bottom: 1px solid #d7dce3; }
th:first-child, td:first-child { text-align: left; }
.overview td, .overview th { padding: .35em .9em; border-bottom: 1px solid #e8ebef; }
.spread { color: #5a6577; font-size: .85em; }
.better { background: #e0f2e6; } .worse { background: #fbe3e0; }
.stock { color: #b4541a; } .asyncpager { color: #1f6fb2; }
.plots { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2em; }
.plots > div { overflow-x: auto; min-width: 0; }
.plots .overview { font-size: .88em; }
.plots .overview td, .plots .overview th { padding: .35em .55em; }
svg { width: 100%; height: auto; display: block; }
@media (max-width: 800px) { .plots { grid-template-columns: 1fr; } }
";

/// The page.
pub fn page(results: &Results) -> Result<String> {
    let cases = cases(results);
    let mut latencies: Vec<Option<u64>> = Vec::new();
    let mut names: Vec<Name> = Vec::new();
    for case in &cases {
        if !latencies.contains(&case.latency_ms) {
            latencies.push(case.latency_ms);
        }
        if !names.contains(&case.workload) {
            names.push(case.workload);
        }
    }
    // Those that can be compared with no latency.
    let slow: Vec<Option<u64>> = latencies
        .iter()
        .filter(|ms| ms.is_some_and(|ms| ms > 0) && latencies.contains(&Some(0)))
        .copied()
        .collect();
    let sections =
        names.iter().map(|name| section(results, *name, &cases)).collect::<Result<Vec<_>>>()?;
    let top = plot::top(&cases);
    let bars = latencies
        .iter()
        .map(|ms| {
            let here: Vec<&Case> = cases.iter().filter(|case| case.latency_ms == *ms).collect();
            Ok((*ms, plot::bars(&here, top)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { "sendbench: " (results.machine.system) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "sendfile(2): stock beside asyncpager" }
                (head(results))
                h2 { "Throughput, asyncpager / stock" }
                p.note {
                    "Both ran in turn, round by round. The median of the rounds' quotients, and the least and "
                    "the greatest. More is better."
                }
                (overview(&names, &latencies, &cases, &|case| ratio_cell(case.ratios.rate, true)))
                div.plots {
                    div {
                        h3 { "Share of the run that the event loop was asleep inside sendfile" }
                        (overview(&names, &latencies, &cases, &|case| {
                            two_cell(case, |side| side.asleep_share.map(table::percent))
                        }))
                    }
                    div {
                        h3 { "Longest sleep inside a sendfile call" }
                        (overview(&names, &latencies, &cases, &|case| {
                            two_cell(case, |side| table::sleep(side, |asleep| asleep.max))
                        }))
                    }
                    div {
                        h3 { "99th percentile of a sendfile call" }
                        (overview(&names, &latencies, &cases, &|case| {
                            two_cell(case, |side| Some(table::duration(side.call.p99)))
                        }))
                    }
                    div {
                        h3 { "Share of the run that the event loop was inside sendfile" }
                        (overview(&names, &latencies, &cases, &|case| {
                            two_cell(case, |side| Some(table::percent(side.inside_share)))
                        }))
                    }
                    @if !slow.is_empty() {
                        div {
                            h3 { "Throughput / the same side's own at 0 ms" }
                            (overview(&names, &slow, &cases, &|case| {
                                two_texts(share(case.stock_of_own_zero), share(case.of_own_zero))
                            }))
                        }
                    }
                    div {
                        h3 { "Median time to the first byte" }
                        (overview(&names, &latencies, &cases, &|case| {
                            two_cell(case, |side| Some(table::duration(side.first_byte.p50)))
                        }))
                    }
                }
                @for (ms, svg) in &bars {
                    h3 { "Throughput, disk latency " (table::latency(*ms)) }
                    (PreEscaped(svg))
                }
                @for section in sections { (section) }
            }
        }
    };
    Ok(page.into_string())
}

fn head(results: &Results) -> Markup {
    let machine = &results.machine;
    let send = &results.send;
    html! {
        p {
            (machine.system) ", " (machine.cpus) " CPUs, " (machine.memory >> 20) " MiB of memory"
            @if let Some(hz) = machine.hz { ", kern.hz " (hz) }
            ". Disk: " (machine.disk) ". Cold files: " (machine.cold) "."
        }
        p.note {
            (machine.kernel) br;
            "sendbench " (results.version) ", " (utc(results.began)) ", large file " (results.size >> 20)
            " MiB, seed " (results.seed) ", sendfile calls of at most " (send.chunk >> 10) " KiB"
            @if let Some(bytes) = send.sndbuf { ", SO_SNDBUF " (bytes) }
            @if send.nodiskio { ", SF_NODISKIO" }
            @if send.nocache { ", SF_NOCACHE" }
            @if send.user_readahead { ", SF_USER_READAHEAD" }
            @if send.readahead > 0 { ", SF_READAHEAD(" (send.readahead) ")" }
            @if let Some(extents) = results.fragments { ", fragmented file in " (extents) " extents" }
            @if let Some(clients) = table::clients(send) { ", " (clients) }
            ". Clients checked every byte."
        }
        @for warning in &machine.warnings { p.warning { "Warning: " (warning) } }
        @let cut = results.runs.iter().filter(|run| run.measured.cut).count();
        @if cut > 0 {
            p.warning { (cut) " of " (results.runs.len()) " runs were ended by --seconds before all was sent." }
        }
    }
}

/// A row for each workload, a column for each latency.
fn overview(
    names: &[Name],
    latencies: &[Option<u64>],
    cases: &[Case],
    cell: &dyn Fn(&Case) -> Markup,
) -> Markup {
    html! {
        table.overview {
            tr {
                th { "workload" }
                @for ms in latencies { th { (table::latency(*ms)) } }
            }
            @for name in names {
                tr {
                    td { a href={ "#" (name.as_str()) } { (name.as_str()) } }
                    @for ms in latencies {
                        @match cases.iter().find(|c| c.workload == *name && c.latency_ms == *ms) {
                            Some(case) => { (cell(case)) }
                            None => { td {} }
                        }
                    }
                }
            }
        }
    }
}

/// A figure of both sides.
fn two_cell(case: &Case, figure: impl Fn(&Side) -> Option<String>) -> Markup {
    let text = |side: &Option<Side>| side.as_ref().and_then(&figure).unwrap_or_else(none);
    two_texts(text(&case.stock), text(&case.asyncpager))
}

fn two_texts(stock: String, asyncpager: String) -> Markup {
    html! {
        td { span.stock { (stock) } " → " span.asyncpager { (asyncpager) } }
    }
}

fn none() -> String {
    "–".into()
}

/// A part of one's own rate.
fn share(share: Option<f64>) -> String {
    share.map_or_else(none, |share| format!("{share:.2}"))
}

/// Coloured when the whole spread is on one side.
fn ratio_cell(ratio: Option<Ratio>, more_is_better: bool) -> Markup {
    let Some(ratio) = ratio else { return html! { td { "–" } } };
    // One round has no spread.
    let many = ratio.rounds > 1;
    let (more, less) = (many && ratio.min > 1.0, many && ratio.max < 1.0);
    let class = match if more_is_better { (more, less) } else { (less, more) } {
        (true, _) => "better",
        (_, true) => "worse",
        _ => "",
    };
    html! {
        td class=(class) {
            (format!("{:.2}", ratio.median)) " "
            span.spread { (format!("{:.2}–{:.2}", ratio.min, ratio.max)) }
        }
    }
}

fn section(results: &Results, name: Name, cases: &[Case]) -> Result<Markup> {
    let parts = cases
        .iter()
        .filter(|case| case.workload == name)
        .map(|case| {
            let runs: Vec<&Run> = results
                .runs
                .iter()
                .filter(|run| (run.workload, run.latency_ms) == (name, case.latency_ms))
                .collect();
            Ok((case, plot::timeline(&runs)?, plot::calls(case)?))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(html! {
        h2 id=(name.as_str()) { (name.as_str()) }
        p.note { (name.about()) }
        @for (case, timeline, calls) in parts {
            h3 { "Disk latency " (table::latency(case.latency_ms)) }
            div.plots {
                div { (PreEscaped(timeline)) }
                div { (PreEscaped(calls)) }
            }
            (metrics(case))
        }
    })
}

fn metrics(case: &Case) -> Markup {
    html! {
        table {
            tr {
                th {}
                th { span.stock { "stock" } }
                th { span.asyncpager { "asyncpager" } }
                th { "asyncpager / stock" }
            }
            @for metric in METRICS {
                tr {
                    td { (metric.name) }
                    td { (metric.text(case.stock.as_ref())) }
                    td { (metric.text(case.asyncpager.as_ref())) }
                    (ratio_cell(metric.ratio(case), metric.more_is_better))
                }
            }
            @if case.of_own_zero.is_some() {
                tr {
                    td { "throughput / own at 0 ms" }
                    td { (share(case.stock_of_own_zero)) }
                    td { (share(case.of_own_zero)) }
                    td {}
                }
            }
        }
    }
}

/// Seconds since 1970 as a date and a time of the day.
fn utc(seconds: u64) -> String {
    // Days to a date: Howard Hinnant's civil_from_days, for years from 1970 on.
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (date, month) =
        (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = era * 400 + year + u64::from(month <= 2);
    let time = seconds % 86_400;
    format!("{year}-{month:02}-{date:02} {:02}:{:02} UTC", time / 3600, time / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ratio::tests::results;

    #[test]
    fn the_page_stands_alone_and_escapes() {
        let page = page(&results()).unwrap();
        for want in [
            "<svg",
            "4.00",
            "3.00–4.40",
            "FreeBSD &lt;14.2&gt; &amp; co",
            "cold-stream",
            ">40.0 %<",
            "Longest sleep",
        ] {
            assert!(page.contains(want), "{want}");
        }
        for network in ["src=", "<script", "<link", "url(", "@import"] {
            assert!(!page.contains(network), "{network}");
        }
    }

    #[test]
    fn the_page_tells_what_the_clients_take() {
        let mut results = results();
        assert!(!page(&results).unwrap().contains("clients take"));
        results.send.rate = Some(2_000_000);
        assert!(page(&results).unwrap().contains("clients take at most 2.0 MB/s each"));
    }

    #[test]
    fn a_page_from_saved_json_is_the_same() {
        let results = results();
        let text = serde_json::to_string(&results).unwrap();
        let again: Results = serde_json::from_str(&text).unwrap();
        assert_eq!(page(&again).unwrap(), page(&results).unwrap());
    }

    #[test]
    fn one_side_only_makes_a_page_too() {
        let mut results = results();
        results.runs.retain(|run| run.variant == crate::result::Variant::Asyncpager);
        assert!(page(&results).unwrap().contains("<svg"));
        results.runs.clear();
        assert!(page(&results).is_ok());
    }

    #[test]
    fn only_a_spread_on_one_side_is_coloured() {
        let ratio = |min, max| Some(Ratio { median: 1.0, min, max, rounds: 3 });
        let class = |r, more| ratio_cell(r, more).into_string();
        assert!(class(ratio(1.1, 2.0), true).contains("better"));
        assert!(class(ratio(1.1, 2.0), false).contains("worse"));
        assert!(class(ratio(0.5, 0.9), true).contains("worse"));
        let both = class(ratio(0.9, 1.1), true);
        assert!(!both.contains("better") && !both.contains("worse"));
        let once = Some(Ratio { rounds: 1, ..ratio(2.0, 2.0).unwrap() });
        assert!(!class(once, true).contains("better"));
    }

    #[test]
    fn dates() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_790_000_000), "2026-09-21 14:13 UTC");
    }
}
