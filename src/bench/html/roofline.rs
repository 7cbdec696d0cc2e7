//! Throughput against arithmetic intensity, under what the devices reach.

use plotters::prelude::*;

use super::chart::{Figure, INTO_A_STRING, LegendKind, Style, draw, inner, log_axis, plain, told, unit};
use super::item::{Column, Item};
use crate::bench::numbers::{rate, significant};

const HEIGHT: u32 = 340;

/// Peaks of one column, as far as they were measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Peaks {
    /// Operations a second.
    pub(super) arithmetic: Option<f64>,
    /// Bytes a second.
    pub(super) bandwidth: Option<f64>,
}

impl Peaks {
    /// From the lines of a column, each of which names the peak that it meets first.
    pub(super) fn of(items: &[Item], column: usize) -> Self {
        let bounds = items.iter().filter(|item| item.column == column).filter_map(|item| item.timing()?.bound.as_ref());
        let highest = |kind: &str| {
            bounds.clone().filter(|bound| bound.bound == kind).map(|bound| bound.bound_per_second).reduce(f64::max)
        };
        Self { arithmetic: highest("arithmetic"), bandwidth: highest("bandwidth") }
    }

    /// TFLOP/s that are within reach at an intensity; `None` where no peak is known.
    fn roof(self, intensity: f64) -> Option<f64> {
        let [flat, slope] = [self.arithmetic, self.bandwidth.map(|bytes| bytes * intensity)];
        Some(flat.into_iter().chain(slope).reduce(f64::min)? / 1e12)
    }

    /// The intensity at which both peaks are met.
    fn ridge(self) -> Option<f64> {
        Some(self.arithmetic? / self.bandwidth?)
    }
}

/// Operations a byte, exact TFLOP/s, what the pointer is told, and the column.
struct Point {
    at: (f64, f64),
    text: String,
    column: usize,
}

fn points(items: &[Item]) -> Vec<Point> {
    let point = |item: &Item| {
        let (work, timing) = (item.line.work.as_ref()?, item.timing()?);
        let intensity = work.flops_exact as f64 / work.bytes as f64;
        let at = (intensity, timing.tflops_exact);
        let share =
            timing.bound.as_ref().map(|bound| format!(", {:.0} % of {}", 100.0 * bound.bound_share, bound.bound));
        let text = format!(
            "{}: {} FLOP/byte, {}{}",
            item.line.problem,
            significant(at.0),
            rate(1e12 * at.1, "FLOP/s"),
            share.unwrap_or_default()
        );
        let known = intensity.is_finite() && at.0 > 0.0 && at.1 > 0.0;
        known.then_some(Point { at, text, column: item.column })
    };
    items.iter().filter_map(point).collect()
}

pub(super) fn figure(items: &[Item], columns: &[Column]) -> Figure {
    let points = points(items);
    let used: Vec<usize> =
        (0..columns.len()).filter(|&column| points.iter().any(|point| point.column == column)).collect();
    let peaks: Vec<Peaks> = used.iter().map(|&column| Peaks::of(items, column)).collect();
    let (mut legend, mut shown) = (Vec::new(), Vec::new());
    let (unit, scale) = unit(points.iter().map(|point| point.at.1));
    let svg = (!points.is_empty()).then(|| {
        let ridges = peaks.iter().filter_map(|peaks| peaks.ridge());
        let x = log_axis("operations a byte", 10.0, points.iter().map(|point| point.at.0).chain(ridges), plain);
        let [left, right] = [x.range.start, x.range.end].map(|log| 10_f64.powf(log));
        let roofs = peaks.iter().filter_map(|peaks| peaks.roof(right));
        let highest = points.iter().map(|point| point.at.1).chain(roofs);
        let y = log_axis(unit, 10.0, highest.map(|tflops| scale * tflops), plain);
        let bottom = 10_f64.powf(y.range.start) / scale;
        let mut svg = String::new();
        draw(HEIGHT, &mut svg, [x, y], |chart| {
            for ((index, &column), peaks) in used.iter().enumerate().zip(&peaks) {
                let style = Style::of(index);
                let roof =
                    corners(*peaks, [left, right], bottom).into_iter().map(|(x, y)| (x.log10(), (scale * y).log10()));
                chart.draw_series(LineSeries::new(roof, style.colour.stroke_width(2))).expect(INTO_A_STRING);
                for point in points.iter().filter(|point| point.column == column) {
                    let at = (point.at.0.log10(), (scale * point.at.1).log10());
                    style.mark(chart, at);
                    shown.push((chart.backend_coord(&at), point.text.clone()));
                }
                legend.push(style.legend(columns[column].label.clone(), LegendKind::Mark));
            }
        });
        inner(&svg)
    });
    Figure {
        id: "roofline",
        title: "Roofline",
        description: description(&peaks),
        svg: svg.ok_or("No line says how many bytes move."),
        height: HEIGHT,
        legend,
        points: told(&shown),
    }
}

/// The roof from left to right, where it is above the bottom of the plot.
fn corners(peaks: Peaks, [left, right]: [f64; 2], bottom: f64) -> Vec<(f64, f64)> {
    let rises = peaks.bandwidth.map(|bandwidth| bottom * 1e12 / bandwidth).filter(|at| (left..right).contains(at));
    let ridge = peaks.ridge().filter(|ridge| (left..right).contains(ridge));
    let start = rises.unwrap_or(left);
    let at = [Some(start), ridge, Some(right)].into_iter().flatten();
    at.filter_map(|x| Some((x, peaks.roof(x)?))).filter(|(_, y)| *y >= bottom * 0.999).collect()
}

fn description(peaks: &[Peaks]) -> String {
    let what = "Exact operations a second at the median, against the operations done for each byte that must move at least; both \
                axes are logarithmic.";
    let missing = |of: fn(&Peaks) -> Option<f64>| peaks.iter().all(|peaks| of(peaks).is_none());
    let roof = match (missing(|peaks| peaks.arithmetic), missing(|peaks| peaks.bandwidth)) {
        (false, false) => {
            " The lines are the peaks that were measured on the device: memory on the slope, arithmetic on top."
        }
        (false, true) => {
            " The lines are the peak of arithmetic that was measured; no problem meets that of memory first."
        }
        (true, false) => {
            " The lines are the peak of memory that was measured; no problem meets that of arithmetic first."
        }
        (true, true) => " The file holds no measured peaks, so there is no roof.",
    };
    format!("{what}{roof}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roofs_by_hand() {
        let peaks = Peaks { arithmetic: Some(4e12), bandwidth: Some(1e12) };
        assert_eq!((peaks.ridge(), peaks.roof(2.0), peaks.roof(100.0)), (Some(4.0), Some(2.0), Some(4.0)));
        assert_eq!(corners(peaks, [0.1, 100.0], 0.5), [(0.5, 0.5), (4.0, 4.0), (100.0, 4.0)]);
        assert_eq!(corners(Peaks::default(), [0.1, 100.0], 0.5), []);
    }
}
