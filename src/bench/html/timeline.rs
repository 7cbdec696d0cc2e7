//! Steps of a run, one after the other.

use plotters::prelude::*;

use super::chart::{Axis, Figure, INTO_A_STRING, LegendKind, Style, draw, inner, told};
use super::distribution::{MOST, ROW, caption};
use super::item::{Column, Item};
use crate::bench::numbers::duration;

pub(super) fn figure(items: &[Item], columns: &[Column]) -> Figure {
    let mut shown: Vec<&Item> = items.iter().filter(|item| item.line.steps.len() > 1 && total(item) > 0.0).collect();
    let all = shown.len();
    shown.truncate(MOST);
    let mut names: Vec<&str> = Vec::new();
    for step in shown.iter().flat_map(|item| &item.line.steps) {
        if !names.contains(&step.step.as_str()) {
            names.push(&step.step);
        }
    }
    let style = |name: &str| Style::of(names.iter().position(|known| *known == name).unwrap_or_default());
    let height = 60 + ROW * shown.len() as u32;
    let mut points = Vec::new();
    let svg = (!shown.is_empty()).then(|| {
        let ticks = (0..=5).map(|fifth| (f64::from(fifth) * 0.2, format!("{} %", fifth * 20))).collect();
        let x = Axis { label: "share of the run".into(), range: 0.0..1.0, ticks };
        let y = Axis { label: String::new(), range: shown.len() as f64..0.0, ticks: Vec::new() };
        let mut svg = String::new();
        draw(height, &mut svg, [x, y], |chart| {
            for (row, item) in shown.iter().enumerate() {
                let (all, mut start) = (total(item), 0.0);
                for step in &item.line.steps {
                    let end = start + step.ms / all;
                    let [top, bottom] = [0.5, 0.95].map(|part| row as f64 + part);
                    let bar = Rectangle::new([(start, top), (end, bottom)], style(&step.step).colour.filled());
                    chart.draw_series([bar]).expect(INTO_A_STRING);
                    let share = 100.0 * step.ms / all;
                    let text = format!("{}: {}, {share:.0} %", step.step, duration(step.ms));
                    points.push((chart.backend_coord(&((start + end) / 2.0, (top + bottom) / 2.0)), text));
                    start = end;
                }
                let of = if columns.len() > 1 { format!(", {}", columns[item.column].label) } else { String::new() };
                caption(chart, row, 0.0, &format!("{}. {}{of}: {}", item.number, item.line.problem, duration(all)));
            }
        });
        inner(&svg)
    });
    let more = if all > MOST { format!(" These are the first {MOST} of {all} plans.") } else { String::new() };
    Figure {
        id: "timeline",
        title: "Steps of a run",
        description: format!(
            "What share of a run each step takes, in the order in which steps run, for plans of several steps. Steps are timed one by one, which makes \
             the whole a little longer than a run that is timed as one.{more}"
        ),
        svg: svg.ok_or("No plan of several steps was timed step by step."),
        height,
        legend: names.iter().map(|name| style(name).legend((*name).to_owned(), LegendKind::Block)).collect(),
        points: told(&points),
    }
}

fn total(item: &Item) -> f64 {
    item.line.steps.iter().map(|step| step.ms).sum()
}
