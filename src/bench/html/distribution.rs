//! How runs spread around their median.

use plotters::prelude::*;

use super::chart::{Axis, Chart, Figure, INK, INTO_A_STRING, LegendKind, Style, draw, inner, text_style, told};
use super::item::{Column, Item};
use crate::bench::numbers::duration;
use crate::bench::report::Timing;

/// Most problems that are drawn; the table has all.
pub(super) const MOST: usize = 24;

/// Height of a row in the plot's units.
pub(super) const ROW: u32 = 42;

/// Bars of a row.
const BINS: usize = 60;

pub(super) fn figure(items: &[Item], columns: &[Column]) -> Figure {
    let with_samples =
        |item: &&Item| item.timing().is_some_and(|timing| timing.samples_ms.len() > 1 && timing.median_ms > 0.0);
    let mut shown: Vec<&Item> = items.iter().filter(with_samples).collect();
    let all = shown.len();
    let spread = |item: &Item| item.timing().map_or(0.0, Timing::spread);
    shown.sort_by(|a, b| spread(b).total_cmp(&spread(a)));
    shown.truncate(MOST);
    shown.sort_by_key(|item| item.number);
    let height = 60 + ROW * shown.len() as u32;
    let mut points = Vec::new();
    let svg = (!shown.is_empty()).then(|| {
        let x = times(&shown);
        let y = Axis { label: String::new(), range: shown.len() as f64..0.0, ticks: Vec::new() };
        let mut svg = String::new();
        draw(height, &mut svg, [x.clone(), y], |chart| {
            for (row, item) in shown.iter().enumerate() {
                points.extend(item.timing().map(|timing| histogram(chart, row, item, timing, &x)));
            }
        });
        inner(&svg)
    });
    let more = if all > MOST { format!(" These are the {MOST} of {all} that spread most.") } else { String::new() };
    let described = "Each run by the median of its problem; the higher a bar, the more runs took as long. The upright line is \
                     the median, and the last bar holds all that took longer.";
    let used = columns.iter().enumerate().filter(|(column, _)| shown.iter().any(|item| item.column == *column));
    Figure {
        id: "distribution",
        title: "Spread of the runs",
        description: format!("{described}{more}"),
        svg: svg.ok_or("No line holds the times of its runs."),
        height,
        legend: used.map(|(at, column)| Style::of(at).legend(column.label.clone(), LegendKind::Block)).collect(),
        points: told(&points),
    }
}

/// From a little below the fastest run to where nearly all are done, at most twice the median.
fn times(shown: &[&Item]) -> Axis {
    let timings = || shown.iter().filter_map(|item| item.timing());
    let low = timings().map(|timing| timing.min_ms / timing.median_ms).fold(0.95, f64::min).max(0.0);
    let high = timings().map(|timing| timing.p95_ms / timing.median_ms).fold(1.1, f64::max).min(2.0);
    let step = if high - low > 0.6 { 0.2 } else { 0.1 };
    let first = (low / step).floor() as i32;
    let last = (high / step).ceil() as i32;
    let ticks = (first..=last).map(|tick| (f64::from(tick) * step, format!("{:.1}", f64::from(tick) * step)));
    Axis {
        label: "time of a run, by the median".into(),
        range: f64::from(first) * step..f64::from(last) * step,
        ticks: ticks.collect(),
    }
}

/// The bars of one row, and what the pointer is told at its median.
fn histogram(chart: &mut Chart, row: usize, item: &Item, timing: &Timing, x: &Axis) -> ((i32, i32), String) {
    let (low, width) = (x.range.start, (x.range.end - x.range.start) / BINS as f64);
    let mut bins = [0_usize; BINS];
    for sample in &timing.samples_ms {
        let bin = ((sample / timing.median_ms - low) / width).floor().max(0.0) as usize;
        bins[bin.min(BINS - 1)] += 1;
    }
    let most = *bins.iter().max().expect("there are bins") as f64;
    let base = row as f64 + 0.95;
    let colour = Style::of(item.column).colour;
    let filled = bins.iter().enumerate().filter(|(_, count)| **count > 0);
    let bars = filled.map(|(bin, count)| {
        let left = low + bin as f64 * width;
        Rectangle::new([(left, base - 0.5 * *count as f64 / most), (left + width, base)], colour.filled())
    });
    chart.draw_series(bars).expect(INTO_A_STRING);
    let median = [(1.0, base - 0.55), (1.0, base)];
    chart.draw_series([PathElement::new(median, INK.stroke_width(2))]).expect(INTO_A_STRING);
    caption(chart, row, x.range.start, &format!("{}. {}", item.number, item.line.problem));
    let text = format!(
        "{}: median {}, 90 % within {} and {}, {} runs",
        item.line.problem,
        duration(timing.median_ms),
        duration(timing.p05_ms),
        duration(timing.p95_ms),
        timing.runs
    );
    (chart.backend_coord(&(1.0, base - 0.25)), text)
}

/// The name of a row above what it shows, cut where the plot ends.
pub(super) fn caption(chart: &mut Chart, row: usize, left: f64, text: &str) {
    const FITS: usize = 58;
    let cut = text.chars().count() > FITS;
    let text: String = text.chars().take(if cut { FITS - 1 } else { FITS }).chain(cut.then_some('…')).collect();
    let text = Text::new(text, (left, row as f64 + 0.08), text_style());
    chart.draw_series([text]).expect(INTO_A_STRING);
}
