// SPDX-License-Identifier: BSD-2-Clause
//! Plots, as SVG.

use anyhow::{Result, anyhow};
use plotters::{
    coord::{
        Shift,
        ranged1d::{AsRangedCoord, ValueFormatter},
    },
    prelude::*,
};

use crate::{
    distribution::Distribution,
    ratio::Case,
    result::{Run, Variant},
    table,
};

const SIZE: (u32, u32) = (560, 300);
const STOCK: RGBColor = RGBColor(0xd9, 0x6a, 0x1f);
const OURS: RGBColor = RGBColor(0x1f, 0x6f, 0xb2);
/// What is at the end of a range gets a label only when the range goes on.
const EDGE: f64 = 0.01;
const GRID: RGBColor = RGBColor(0xe3, 0xe7, 0xec);
const TEXT: RGBColor = RGBColor(0x5a, 0x65, 0x77);

fn colour(variant: Variant) -> RGBColor {
    match variant {
        Variant::Stock => STOCK,
        Variant::Asyncpager => OURS,
    }
}

fn font(size: i32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&TEXT)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draw on a fresh area.
fn draw(size: (u32, u32), on: impl FnOnce(&Area) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        on(&area)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

/// The sides' names in their colours, in a plot's corner.
fn legend(area: &Area, variants: &[Variant], right: i32) -> Result<()> {
    let mut at = right - 105 * variants.len() as i32;
    for variant in variants {
        let dot = Rectangle::new([(at, 8), (at + 12, 18)], colour(*variant).filled());
        area.draw(&dot).map_err(failed)?;
        area.draw(&Text::new(variant.as_str(), (at + 17, 6), font(14))).map_err(failed)?;
        at += 105;
    }
    Ok(())
}

fn sides(case: &Case) -> Vec<(Variant, &crate::ratio::Side)> {
    [(Variant::Stock, &case.stock), (Variant::Asyncpager, &case.asyncpager)]
        .into_iter()
        .filter_map(|(variant, side)| Some((variant, side.as_ref()?)))
        .collect()
}

/// A line of a chart.
struct Line {
    bold: bool,
    variant: Variant,
    points: Vec<(f64, f64)>,
}

/// Throughput of every run over time: each side's middle round is drawn boldly.
pub fn timeline(runs: &[&Run]) -> Result<String> {
    let bold: Vec<*const Run> = [Variant::Stock, Variant::Asyncpager]
        .iter()
        .filter_map(|variant| middle(runs, *variant))
        .map(std::ptr::from_ref)
        .collect();
    let mut lines: Vec<Line> = runs
        .iter()
        .map(|run| Line {
            bold: bold.contains(&std::ptr::from_ref(*run)),
            variant: run.variant,
            points: line(run),
        })
        .collect();
    // The bold ones last, on top.
    lines.sort_by_key(|line| line.bold);
    let points = || lines.iter().flat_map(|line| &line.points);
    let end = points().map(|(x, _)| *x).fold(0.01, f64::max);
    let top = points().map(|(_, y)| *y).fold(1.0, f64::max) * 1.05;
    let x = Axis { range: 0.0..end, labels: 7, label: trim };
    let y = Axis { range: 0.0..top, labels: 6, label: trim };
    chart("throughput, MB/s; bold: the middle round", "seconds", x, y, &lines)
}

/// An axis of a chart.
struct Axis<R> {
    range: R,
    labels: usize,
    label: fn(f64) -> String,
}

/// Lines over one another, the last on top.
fn chart<R>(title: &str, below: &str, x: Axis<R>, y: Axis<R>, lines: &[Line]) -> Result<String>
where
    R: AsRangedCoord<Value = f64>,
    R::CoordDescType: ValueFormatter<f64>,
{
    draw(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_top(26)
            .margin_right(28)
            .x_label_area_size(40)
            .y_label_area_size(66)
            .build_cartesian_2d(x.range, y.range)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(GRID)
            .label_style(font(13))
            .axis_desc_style(font(13))
            .x_labels(x.labels)
            .y_labels(y.labels)
            .x_desc(below)
            .x_label_formatter(&|value| (x.label)(*value))
            .y_label_formatter(&|value| (y.label)(*value))
            .draw()
            .map_err(failed)?;
        for line in lines {
            let (mix, width) = if line.bold { (1.0, 2) } else { (0.3, 1) };
            let style = colour(line.variant).mix(mix).stroke_width(width);
            let points = line.points.iter().copied();
            chart.draw_series(LineSeries::new(points, style)).map_err(failed)?;
        }
        area.draw(&Text::new(title, (8, 6), font(14))).map_err(failed)?;
        legend(area, &seen(lines.iter().map(|line| line.variant)), SIZE.0 as i32)
    })
}

/// Of the variants, those that are there.
fn seen(all: impl Iterator<Item = Variant> + Clone) -> Vec<Variant> {
    let known = [Variant::Stock, Variant::Asyncpager];
    known.into_iter().filter(|variant| all.clone().any(|other| other == *variant)).collect()
}

/// The run of a variant whose throughput is in the middle.
fn middle<'a>(runs: &[&'a Run], variant: Variant) -> Option<&'a Run> {
    let mut own: Vec<&Run> = runs.iter().filter(|run| run.variant == variant).copied().collect();
    own.sort_by(|a, b| a.measured.rate().total_cmp(&b.measured.rate()));
    own.get(own.len() / 2).copied()
}

/// A run's throughput, in pieces that are long enough to be read.
fn line(run: &Run) -> Vec<(f64, f64)> {
    let timeline = &run.measured.timeline;
    let join = timeline.len().div_ceil(40).max(1);
    let seconds = run.measured.timeline_ms as f64 / 1000.0;
    // The last piece is over when the run is.
    let end = run.measured.seconds;
    timeline
        .chunks(join)
        .enumerate()
        .map(|(i, piece)| {
            let from = (i * join) as f64 * seconds;
            let to = (from + piece.len() as f64 * seconds).min(end.max(from + seconds / 2.0));
            let bytes: u64 = piece.iter().sum();
            (f64::midpoint(from, to), bytes as f64 / (to - from) / 1e6)
        })
        .collect()
}

/// A number without needless digits.
fn trim(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// Which share of the sendfile calls took longer than a time, both on log scales:
/// the tail is what an event loop suffers from.
pub fn calls(case: &Case) -> Result<String> {
    let sides = sides(case);
    let ends =
        |f: fn(&Distribution) -> Option<u64>| sides.iter().filter_map(move |(_, s)| f(&s.call));
    let least = log_time(ends(|d| d.buckets.first().map(|(ns, _)| *ns)).min().unwrap_or(1000));
    let most = log_time(ends(|d| d.buckets.last().map(|(ns, _)| *ns)).max().unwrap_or(1_000_000));
    let count = sides.iter().map(|(_, side)| side.call.count).max().unwrap_or(1).max(10) as f64;
    let (from, to) = (least.floor(), most.ceil().max(least.floor() + 1.0));
    let bottom = -count.log10().ceil();
    let lines: Vec<Line> = sides
        .iter()
        .map(|(variant, side)| Line {
            bold: true,
            variant: *variant,
            points: tail(&side.call, from, bottom),
        })
        .collect();
    // Logarithms on plain axes: whole decades get the labels.
    let axis = |from: f64, to: f64, label| Axis {
        range: (from..to + EDGE).step(1.0),
        labels: (to - from) as usize + 1,
        label,
    };
    let (x, y) = (axis(from, to, decade), axis(bottom, 0.0, share));
    chart("share of calls that took longer", "time inside the call", x, y, &lines)
}

/// log10 of a time; a clock may see no time go by.
fn log_time(ns: u64) -> f64 {
    (ns.max(1) as f64).log10()
}

/// Steps: (log10 of a time, log10 of the share of longer calls).
fn tail(calls: &Distribution, from: f64, bottom: f64) -> Vec<(f64, f64)> {
    let mut points = vec![(from, 0.0)];
    let (mut left, mut share) = (calls.count, 0.0);
    for (ns, count) in &calls.buckets {
        let at = log_time(*ns);
        points.push((at, share));
        left -= count;
        share = if left == 0 { bottom } else { (left as f64 / calls.count as f64).log10() };
        points.push((at, share));
    }
    points
}

fn decade(log: f64) -> String {
    let ns = 10f64.powi(log.round() as i32);
    match log.round() as i32 {
        ..3 => format!("{ns:.0} ns"),
        3..6 => format!("{:.0} µs", ns / 1e3),
        6..9 => format!("{:.0} ms", ns / 1e6),
        _ => format!("{:.0} s", ns / 1e9),
    }
}

fn share(log: f64) -> String {
    match -log.round() as i32 {
        0 => "all".into(),
        n => format!("1 in 10{}", "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(n as usize).unwrap_or('ⁿ')),
    }
}

/// The highest throughput of all.
pub fn top(cases: &[Case]) -> f64 {
    cases.iter().flat_map(sides).map(|(_, side)| side.rate).fold(1.0, f64::max)
}

/// Throughput of workloads, both sides as bars; the longest stands for `top`.
pub fn bars(cases: &[&Case], top: f64) -> Result<String> {
    const ROW: i32 = 40;
    let (left, right, width) = (110, 70, 1120);
    let size = (width as u32, (cases.len() as i32 * ROW + 30) as u32);
    draw(size, |area| {
        for (i, case) in cases.iter().enumerate() {
            let y = 30 + i as i32 * ROW;
            area.draw(&Text::new(case.workload.as_str(), (0, y + 8), font(15))).map_err(failed)?;
            for (n, (variant, side)) in sides(case).into_iter().enumerate() {
                let y = y + n as i32 * 16;
                let length = (side.rate / top * f64::from(width - left - right)) as i32;
                let bar = Rectangle::new(
                    [(left, y), (left + length.max(1), y + 14)],
                    colour(variant).filled(),
                );
                area.draw(&bar).map_err(failed)?;
                let label = format!("{} MB/s", table::rate(side.rate));
                area.draw(&Text::new(label, (left + length + 6, y), font(14))).map_err(failed)?;
            }
        }
        let all = cases.iter().flat_map(|case| sides(case)).map(|(variant, _)| variant);
        legend(area, &seen(all.collect::<Vec<_>>().into_iter()), width)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_falls_from_all_to_none() {
        assert_eq!(log_time(0), 0.0);
        let calls = Distribution {
            count: 1000,
            buckets: vec![(1_000, 900), (10_000, 99), (30_000_000, 1)],
            ..Distribution::default()
        };
        let points = tail(&calls, 2.0, -3.0);
        assert_eq!(points.first(), Some(&(2.0, 0.0)));
        assert!(points.is_sorted_by(|a, b| a.0 <= b.0 && a.1 >= b.1), "{points:?}");
        let at = |x: f64| points.iter().rfind(|p| p.0 <= x).unwrap().1;
        assert!((at(3.0) + 1.0).abs() < 1e-9, "100 of 1000 took longer than 1 µs");
        assert!((at(4.0) + 3.0).abs() < 1e-9, "one took longer than 10 µs");
    }

    #[test]
    fn the_middle_round_is_by_throughput() {
        let results = crate::ratio::tests::results();
        let runs: Vec<&Run> = results.runs.iter().filter(|r| r.latency_ms == Some(30)).collect();
        assert_eq!(middle(&runs, Variant::Stock).unwrap().measured.seconds, 40.0);
        assert!(middle(&[], Variant::Stock).is_none());
    }

    #[test]
    fn labels() {
        assert_eq!(decade(2.0), "100 ns");
        assert_eq!(decade(3.0), "1 µs");
        assert_eq!(decade(7.0), "10 ms");
        assert_eq!(decade(9.0), "1 s");
        assert_eq!(share(0.0), "all");
        assert_eq!(share(-3.0), "1 in 10³");
        assert_eq!((trim(2.50), trim(30.0), trim(0.0)), ("2.5".into(), "30".into(), "0".into()));
    }
}
