//! Throughput against the number of keys.

use super::chart::{Figure, LegendKind, Style, draw, inner, log_axis, plain, told, unit};
use super::item::{Column, Item};
use crate::bench::numbers::rate;
use crate::tensor::Dtype;

const HEIGHT: u32 = 340;

/// Most series that a legend can name; the table has all.
const MOST: usize = 10;

/// What lines share that are one series, as words.
type Key = [String; 5];

/// Keys, TFLOP/s and what the pointer is told.
type Point = (f64, f64, String);

pub(super) fn figure(items: &[Item], columns: &[Column]) -> Figure {
    let mut series = series(items, columns);
    let all = series.len();
    series.truncate(MOST);
    let points = || series.iter().flat_map(|(_, points)| points);
    let mut legend = Vec::new();
    let mut shown = Vec::new();
    let (unit, scale) = unit(points().map(|point| point.1));
    let svg = (!series.is_empty()).then(|| {
        let x = log_axis("keys of the problem", 2.0, points().map(|point| point.0), plain);
        let y = log_axis(unit, 10.0, points().map(|point| scale * point.1), plain);
        let mut svg = String::new();
        draw(HEIGHT, &mut svg, [x, y], |chart| {
            for (index, (label, points)) in series.iter().enumerate() {
                let style = Style::of(index);
                let at = |point: &Point| (point.0.log2(), (scale * point.1).log10());
                style.line(chart, best(points).into_iter().map(at));
                for point in points {
                    style.mark(chart, at(point));
                    shown.push((chart.backend_coord(&at(point)), point.2.clone()));
                }
                legend.push(style.legend(label.clone(), LegendKind::Mark));
            }
        });
        inner(&svg)
    });
    let more = if all > MOST { format!(" These are the {MOST} longest of {all}.") } else { String::new() };
    Figure {
        id: "throughput",
        title: "Throughput by length",
        description: format!(
            "Operations a second by FlashAttention's formula, at the median, against the number of keys; both axes are \
             logarithmic. A line joins the fastest problem of each length.{more}"
        ),
        svg: svg.ok_or("No attention problem was measured."),
        height: HEIGHT,
        legend,
        points: told(&shown),
    }
}

/// Points of each series, by length, the longest series first; a label says what tells it from the others.
fn series(items: &[Item], columns: &[Column]) -> Vec<(String, Vec<Point>)> {
    let mut series: Vec<(Key, Vec<Point>)> = Vec::new();
    for item in items {
        let (Some(problem), Some(timing)) = (item.problem(), item.timing()) else { continue };
        let kind = if problem.seq_q == 1 { "decode" } else { "prefill" };
        let mask = match (problem.causal, problem.window) {
            (None, None) => "no mask",
            (Some(_), None) => "causal",
            (_, Some(_)) => "window",
        };
        let storage = if problem.dtype == Dtype::F32 { "f32" } else { "f16" };
        let words = [kind, mask, storage].map(str::to_owned);
        let [kind, mask, storage] = words;
        let key = [columns[item.column].label.clone(), kind, item.path(), mask, storage];
        let text = format!("{}: {}", item.line.problem, rate(1e12 * timing.tflops, "FLOP/s"));
        let point = (problem.seq_kv as f64, timing.tflops, text);
        match series.iter_mut().find(|(known, _)| *known == key) {
            Some((_, points)) => points.push(point),
            None => series.push((key, vec![point])),
        }
    }
    series.iter_mut().for_each(|(_, points)| {
        points.retain(|point| point.0 > 0.0 && point.1 > 0.0);
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    });
    series.retain(|(_, points)| !points.is_empty());
    series.sort_by_key(|(_, points)| std::cmp::Reverse(points.len()));
    let varies: [bool; 5] = std::array::from_fn(|at| series.iter().any(|(key, _)| key[at] != series[0].0[at]));
    let label = |key: Key| {
        let words = key.into_iter().zip(varies).filter(|(word, varies)| *varies && !word.is_empty());
        let words: Vec<_> = words.map(|(word, _)| word).collect();
        if words.is_empty() { "all".into() } else { words.join(" · ") }
    };
    series.into_iter().map(|(key, points)| (label(key), points)).collect()
}

/// The fastest of each length.
fn best(points: &[Point]) -> Vec<&Point> {
    let mut best: Vec<&Point> = points.iter().collect();
    best.dedup_by(|later, kept| later.0 == kept.0);
    best
}
