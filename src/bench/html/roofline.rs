//! Throughput against arithmetic intensity, under what the devices reach.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::chart::{
    Chart, Figure, INTO_A_STRING, LegendKind, Style, draw, inner, log_axis, plain, text_style, told, unit,
};
use super::item::{Column, Item};
use crate::bench::numbers::{rate, significant};
use crate::bench::report::Peaks;

const HEIGHT: u32 = 340;

/// Peaks of one column, as far as they were measured.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Ceilings {
    /// Operations a second of each kind of arithmetic with its name, the highest first.
    pub(super) arithmetic: Vec<(&'static str, f64)>,
    /// Bytes a second.
    pub(super) bandwidth: Option<f64>,
}

impl Ceilings {
    /// From the lines of a column, which hold the peaks. Those of earlier versions name the peak that they meet first.
    pub(super) fn of(items: &[Item], column: usize) -> Self {
        let mine = || items.iter().filter(move |item| item.column == column);
        if let Some(Peaks { peak_f32, peak_f16, peak_matrices, peak_bandwidth }) =
            mine().find_map(|item| item.line.peaks)
        {
            let kinds = [("f32", Some(peak_f32)), ("f16", peak_f16), ("matrices", peak_matrices)];
            let mut arithmetic: Vec<_> = kinds.into_iter().filter_map(|(name, peak)| Some((name, peak?))).collect();
            arithmetic.sort_by(|a, b| b.1.total_cmp(&a.1));
            return Self { arithmetic, bandwidth: Some(peak_bandwidth) };
        }
        let bounds = mine().filter_map(|item| item.timing()?.bound.as_ref());
        let highest = |kind: &str| {
            bounds.clone().filter(|bound| bound.bound == kind).map(|bound| bound.bound_per_second).reduce(f64::max)
        };
        let arithmetic = highest("arithmetic").map(|peak| ("", peak)).into_iter().collect();
        Self { arithmetic, bandwidth: highest("bandwidth") }
    }

    /// Those of the kinds of arithmetic that some line of the column does; all of them where no line says so.
    fn used(self, items: &[Item], column: usize) -> Self {
        let works = items.iter().filter(|item| item.column == column && item.line.timing.is_some());
        let kinds: Vec<_> = works.filter_map(|item| Some(item.line.work.as_ref()?.arithmetic())).flatten().collect();
        let is_used = |name: &str| name.is_empty() || kinds.iter().any(|(kind, _)| kind.name() == name);
        let arithmetic = self.arithmetic.into_iter().filter(|(name, _)| is_used(name)).collect();
        Self { arithmetic, ..self }
    }

    /// TFLOP/s that are within reach at an intensity under one of the ceilings; `None` where no peak is known.
    fn roof(&self, ceiling: Option<f64>, intensity: f64) -> Option<f64> {
        let slope = self.bandwidth.map(|bytes| bytes * intensity);
        Some(ceiling.into_iter().chain(slope).reduce(f64::min)? / 1e12)
    }

    /// The intensity from which on a ceiling is what bounds.
    fn ridge(&self, ceiling: f64) -> Option<f64> {
        Some(ceiling / self.bandwidth?)
    }

    fn highest(&self) -> Option<f64> {
        self.arithmetic.first().map(|(_, peak)| *peak)
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
            timing.bound.as_ref().map(|bound| format!(", {:.0} % of {}", 100.0 * bound.bound_share, bound.name()));
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
    let ceilings: Vec<_> = used.iter().map(|&column| Ceilings::of(items, column).used(items, column)).collect();
    let (mut legend, mut shown) = (Vec::new(), Vec::new());
    let (unit, scale) = unit(points.iter().map(|point| point.at.1));
    let svg = (!points.is_empty()).then(|| {
        let ridges = ceilings.iter().flat_map(|c| c.arithmetic.iter().filter_map(|(_, peak)| c.ridge(*peak)));
        let x = log_axis("operations a byte", 10.0, points.iter().map(|point| point.at.0).chain(ridges), plain);
        let [left, right] = [x.range.start, x.range.end].map(|log| 10_f64.powf(log));
        let roofs = ceilings.iter().filter_map(|c| c.roof(c.highest(), right));
        let highest = points.iter().map(|point| point.at.1).chain(roofs);
        let y = log_axis(unit, 10.0, highest.map(|tflops| scale * tflops), plain);
        let area = Area { left, right, bottom: 10_f64.powf(y.range.start) / scale, scale };
        let mut svg = String::new();
        draw(HEIGHT, &mut svg, [x, y], |chart| {
            for ((index, &column), ceilings) in used.iter().enumerate().zip(&ceilings) {
                let style = Style::of(index);
                roof(chart, ceilings, style, &area);
                for point in points.iter().filter(|point| point.column == column) {
                    let at = area.place(point.at);
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
        description: description(&ceilings),
        svg: svg.ok_or("No line says how many bytes move."),
        height: HEIGHT,
        legend,
        points: told(&shown),
    }
}

/// What of the plane is drawn: intensities, the lowest TFLOP/s, and what these are multiplied by.
struct Area {
    left: f64,
    right: f64,
    bottom: f64,
    scale: f64,
}

impl Area {
    /// In the logarithms that the axes show.
    fn place(&self, (intensity, tflops): (f64, f64)) -> (f64, f64) {
        (intensity.log10(), (self.scale * tflops).log10())
    }
}

/// The slope of memory up to the highest ceiling, and each lower ceiling in dashes from the slope on, by name where there are several.
fn roof(chart: &mut Chart, ceilings: &Ceilings, style: Style, area: &Area) {
    let line = style.colour.stroke_width(2);
    let outline = corners(ceilings, area).into_iter().map(|at| area.place(at));
    chart.draw_series(LineSeries::new(outline, line)).expect(INTO_A_STRING);
    for (at, (name, peak)) in ceilings.arithmetic.iter().enumerate() {
        let (tflops, start) = (peak / 1e12, ceilings.ridge(*peak).unwrap_or(area.left).max(area.left));
        if start >= area.right || tflops < area.bottom {
            continue;
        }
        let ends = [start, area.right].map(|x| area.place((x, tflops)));
        if at > 0 {
            chart.draw_series(DashedLineSeries::new(ends, 6, 4, line)).expect(INTO_A_STRING);
        }
        if ceilings.arithmetic.len() > 1 {
            let below = text_style().pos(Pos::new(HPos::Right, VPos::Top));
            chart.draw_series([Text::new(*name, ends[1], below)]).expect(INTO_A_STRING);
        }
    }
}

/// The roof from left to right under the highest ceiling, where it is above the bottom of the plot.
fn corners(ceilings: &Ceilings, area: &Area) -> Vec<(f64, f64)> {
    let &Area { left, right, bottom, .. } = area;
    let highest = ceilings.highest();
    let rises = ceilings.bandwidth.map(|bandwidth| bottom * 1e12 / bandwidth).filter(|at| (left..right).contains(at));
    let ridge = highest.and_then(|peak| ceilings.ridge(peak)).filter(|ridge| (left..right).contains(ridge));
    let start = rises.unwrap_or(left);
    let at = [Some(start), ridge, Some(right)].into_iter().flatten();
    at.filter_map(|x| Some((x, ceilings.roof(highest, x)?))).filter(|(_, y)| *y >= bottom * 0.999).collect()
}

fn description(ceilings: &[Ceilings]) -> String {
    let what = "Exact operations a second at the median, against the operations done for each byte that must move at least; both \
                axes are logarithmic.";
    let no_arithmetic = ceilings.iter().all(|ceilings| ceilings.arithmetic.is_empty());
    let no_bandwidth = ceilings.iter().all(|ceilings| ceilings.bandwidth.is_none());
    let roof = match (no_arithmetic, no_bandwidth) {
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
    let several = ceilings.iter().any(|ceilings| ceilings.arithmetic.len() > 1);
    let kinds = if several { " Each kind of arithmetic that a line does has a ceiling of its own." } else { "" };
    format!("{what}{roof}{kinds}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: Area = Area { left: 0.1, right: 100.0, bottom: 0.5, scale: 1.0 };

    #[test]
    fn roofs_by_hand() {
        let ceilings = Ceilings { arithmetic: vec![("matrices", 4e12), ("f32", 2e12)], bandwidth: Some(1e12) };
        assert_eq!([4e12, 2e12].map(|peak| ceilings.ridge(peak)), [Some(4.0), Some(2.0)]);
        assert_eq!([2.0, 100.0].map(|x| ceilings.roof(ceilings.highest(), x)), [Some(2.0), Some(4.0)]);
        assert_eq!(corners(&ceilings, &AREA), [(0.5, 0.5), (4.0, 4.0), (100.0, 4.0)]);
        assert_eq!(corners(&Ceilings::default(), &AREA), []);
        assert!(description(&[ceilings]).ends_with("has a ceiling of its own."));
    }
}
