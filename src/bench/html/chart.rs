//! What all plots share: colours, marks, axes and the way into the page.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

/// Width of every plot in its own units; the page scales it.
pub(super) const WIDTH: u32 = 480;

/// Text in plots, in the same units; plotters divides it by 1.24.
pub(super) const TEXT: f64 = 15.0;

/// Colours that stand for those of the style sheet, which replaces them by value.
pub(super) const INK: RGBColor = RGBColor(0x33, 0x33, 0x34);
const GRID: RGBColor = RGBColor(0xE2, 0xE2, 0xE3);

/// After Okabe and Ito, darkened until each is seen on white; the style sheet has brighter ones for dark.
pub(super) const COLOURS: [RGBColor; 8] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xC4, 0x4E, 0x01),
    RGBColor(0x00, 0x7F, 0x5C),
    RGBColor(0xA0, 0x46, 0x8C),
    RGBColor(0x8A, 0x66, 0x02),
    RGBColor(0x4A, 0x4A, 0x4C),
    RGBColor(0x2A, 0x8C, 0xC4),
    RGBColor(0xB0, 0x3A, 0x48),
];

/// A plot as the page has it.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// What it shows, for those who do not see it too.
    pub(super) description: String,
    /// SVG without its outer element, or why there is nothing to plot.
    pub(super) svg: Result<String, &'static str>,
    pub(super) height: u32,
    pub(super) legend: Vec<Legend>,
    /// What a pointer near a point is told: `[[x, y, "text"], …]`.
    pub(super) points: String,
}

/// A series' name and mark.
#[derive(Debug)]
pub(super) struct Legend {
    /// SVG of the mark in 18 × 12 units.
    pub(super) mark: String,
    pub(super) colour: String,
    pub(super) label: String,
}

/// How a series looks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    pub(super) colour: RGBColor,
    shape: usize,
    /// Marks are outlines and lines are dashed.
    open: bool,
}

/// Shapes of marks: circle, square, and triangle, diamond and triangle again.
const SHAPES: usize = 5;

/// A linear axis with its ticks.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) label: String,
    pub(super) range: Range<f64>,
    pub(super) ticks: Vec<(f64, String)>,
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, at: &f64) -> String {
        self.ticks.iter().find(|(tick, _)| (tick - at).abs() < 1e-9).map_or(String::new(), |(_, text)| text.clone())
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.iter().map(|(tick, _)| *tick).collect()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

/// A chart with two such axes.
pub(super) type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

pub(super) type Area<'b> = DrawingArea<SVGBackend<'b>, Shift>;

/// Why drawing cannot fail: the only thing that could is the sink.
pub(super) const INTO_A_STRING: &str = "a plot is drawn into a string";

/// An axis of logarithms to a base, with ticks at whole powers or, for base 10, also at 2 and 5 of each.
pub(super) fn log_axis(label: &str, base: f64, values: impl Iterator<Item = f64>, text: fn(f64) -> String) -> Axis {
    let logs = values.filter(|value| *value > 0.0).map(|value| value.log(base));
    let (low, high) = logs.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), log| (low.min(log), high.max(log)));
    let pad = if base < 10.0 { 0.5 } else { 0.25 };
    let range = low - pad..high + pad;
    let steps: &[f64] = if base < 10.0 || range.end - range.start > 3.0 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let powers = range.start.floor() as i32..=range.end.ceil() as i32;
    let all = powers.flat_map(|power| steps.iter().map(move |step| step * base.powi(power)));
    let mut ticks: Vec<_> =
        all.filter(|tick| range.contains(&tick.log(base))).map(|tick| (tick.log(base), text(tick))).collect();
    let every = ticks.len().div_ceil(8);
    ticks = ticks.into_iter().step_by(every.max(1)).collect();
    Axis { label: label.into(), range, ticks }
}

/// A number with no zeros at its end, for ticks.
pub(super) fn plain(value: f64) -> String {
    // What a power of ten is short of its decimal is no digit.
    let rounded = format!("{value:.6}");
    rounded.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The unit in which throughput reads best, and how many of it a TFLOP/s are.
pub(super) fn unit(tflops: impl Iterator<Item = f64>) -> (&'static str, f64) {
    if tflops.fold(0.0, f64::max) >= 2.0 { ("TFLOP/s", 1.0) } else { ("GFLOP/s", 1e3) }
}

/// What is drawn with these axes, the grid and its labels beneath it.
pub(super) fn draw<'a>(height: u32, svg: &'a mut String, axes: [Axis; 2], content: impl FnOnce(&mut Chart<'_, 'a>)) {
    let root: Area = SVGBackend::with_string(svg, (WIDTH, height)).into_drawing_area();
    let [x, y] = axes;
    let (across, up) = (x.label.clone(), y.label.clone());
    let ticks = [x.ticks.len(), y.ticks.len()];
    let mut chart = ChartBuilder::on(&root)
        .margin(6)
        .margin_left(if ticks[1] == 0 { 18 } else { 6 })
        .margin_right(22)
        .x_label_area_size(44)
        .y_label_area_size(if ticks[1] == 0 { 0 } else { 64 })
        .build_cartesian_2d(x, y)
        .expect(INTO_A_STRING);
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(text_style())
        .x_labels(ticks[0] + 1)
        .y_labels(ticks[1] + 1)
        .x_desc(across)
        .y_desc(up);
    if ticks[1] == 0 {
        mesh.disable_y_mesh().disable_y_axis();
    }
    mesh.draw().expect(INTO_A_STRING);
    content(&mut chart);
    drop(chart);
    root.present().expect(INTO_A_STRING);
}

/// Text in the colour of the page's.
pub(super) fn text_style() -> TextStyle<'static> {
    ("system-ui", TEXT).into_font().color(&INK)
}

impl Style {
    /// That of the series with this index. Marks repeat after ten, colours after eight.
    pub(super) fn of(index: usize) -> Self {
        let open = index / SHAPES % 2 == 1;
        Self { colour: COLOURS[index % COLOURS.len()], shape: index % SHAPES, open }
    }

    /// What tells the mark from others without its colour.
    #[cfg(test)]
    pub(super) fn mark_name(self) -> (usize, bool) {
        (self.shape, self.open)
    }

    /// Draws a line through points, in dashes where marks are open.
    pub(super) fn line(self, chart: &mut Chart, points: impl IntoIterator<Item = (f64, f64)>) {
        let stroke = self.colour.stroke_width(2);
        if self.open {
            let points: Vec<_> = points.into_iter().collect();
            chart.draw_series(DashedLineSeries::new(points, 6, 4, stroke)).expect(INTO_A_STRING);
        } else {
            chart.draw_series(LineSeries::new(points, stroke)).expect(INTO_A_STRING);
        }
    }

    /// As the SVG has it.
    pub(super) fn hex(self) -> String {
        let RGBColor(red, green, blue) = self.colour;
        format!("#{red:02X}{green:02X}{blue:02X}")
    }

    /// Corners of a mark that is no circle, around a point.
    fn corners(self, (x, y): (i32, i32)) -> Vec<(i32, i32)> {
        let of = |corners: &[(i32, i32)]| corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect();
        match self.shape {
            1 => of(&[(-4, -4), (4, -4), (4, 4), (-4, 4)]),
            2 => of(&[(0, -6), (6, 4), (-6, 4)]),
            3 => of(&[(0, -6), (6, 0), (0, 6), (-6, 0)]),
            _ => of(&[(0, 6), (6, -4), (-6, -4)]),
        }
    }

    /// Draws the mark at a point of the chart.
    pub(super) fn mark(self, chart: &mut Chart, at: (f64, f64)) {
        let filled = if self.open { self.colour.stroke_width(2) } else { self.colour.filled() };
        if self.shape == 0 {
            chart.draw_series([Circle::new(at, 5, filled)]).expect(INTO_A_STRING);
            return;
        }
        let corners = self.corners(chart.backend_coord(&at));
        let area = chart.plotting_area().strip_coord_spec();
        let (left, top) = area.get_base_pixel();
        let mut corners: Vec<_> = corners.into_iter().map(|(x, y)| (x - left, y - top)).collect();
        if self.open {
            corners.push(corners[0]);
            area.draw(&PathElement::new(corners, filled)).expect(INTO_A_STRING);
        } else {
            area.draw(&Polygon::new(corners, filled)).expect(INTO_A_STRING);
        }
    }

    /// Its line in a legend; a bare block of colour for what has no marks.
    pub(super) fn legend(self, label: String, kind: LegendKind) -> Legend {
        let corners: Vec<_> = self.corners((9, 6)).into_iter().map(|(x, y)| format!("{x},{y}")).collect();
        let hex = self.hex();
        let paint = match self.open {
            true => format!("fill=\"none\" stroke-width=\"2\" stroke=\"{hex}\""),
            false => format!("fill=\"{hex}\""),
        };
        let mark = match kind {
            LegendKind::Mark if self.shape == 0 => format!("<circle {paint} cx=\"9\" cy=\"6\" r=\"5\"/>"),
            LegendKind::Mark => format!("<polygon {paint} points=\"{}\"/>", corners.join(" ")),
            LegendKind::Block => format!("<rect fill=\"{hex}\" x=\"3\" y=\"0\" width=\"12\" height=\"12\"/>"),
        };
        Legend { mark, colour: hex, label }
    }
}

/// What stands beside a label.
#[derive(Debug, Clone, Copy)]
pub(super) enum LegendKind {
    Mark,
    Block,
}

/// What the pointer is told, as JSON.
pub(super) fn told(points: &[((i32, i32), String)]) -> String {
    let points: Vec<_> = points.iter().map(|((x, y), text)| (x, y, text)).collect();
    serde_json::to_string(&points).expect("numbers and text are JSON")
}

/// What is inside the outer element, which the page has its own of.
pub(super) fn inner(svg: &str) -> String {
    let start = svg.find(">\n").map_or(0, |at| at + 2);
    let end = svg.rfind("</svg>").unwrap_or(svg.len());
    svg[start..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_short() {
        assert_eq!([plain(0.05), plain(2.0), plain(100.0), plain(1024.0)], ["0.05", "2", "100", "1024"]);
        let texts = |axis: &Axis| axis.ticks.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&log_axis("", 10.0, [30.0, 80.0].into_iter(), plain)), ["20", "50", "100"]);
        assert_eq!(texts(&log_axis("", 2.0, [64.0, 512.0].into_iter(), plain)), ["64", "128", "256", "512"]);
        let wide = log_axis("", 10.0, [0.001, 1e9].into_iter(), plain);
        assert!(wide.ticks.len() <= 8 && wide.ticks.len() > 4, "{wide:?}");
    }

    #[test]
    fn one_value_has_an_axis_too() {
        let axis = log_axis("", 10.0, [1.0].into_iter(), plain);
        assert!(axis.range.end - axis.range.start >= 0.5 && axis.ticks.len() == 1, "{axis:?}");
    }
}
