//! A report for people: one HTML file that needs no network, and JavaScript only for sorting and for what a pointer is over.
//!
//! Its text is in `templates/`, where values are escaped; plots are SVG in colours that the style sheet maps to light and dark.

mod chart;
#[cfg(test)]
mod colours;
mod distribution;
mod item;
mod latency;
mod roofline;
mod table;
mod throughput;
mod timeline;

use askama::Template;

use self::chart::Figure;
use self::item::{Column, Item, columns, items};
use self::latency::{Latencies, latencies};
use self::table::{Card, Matrix, Row, cards, matrix, rows};
use super::run::Run;

/// What stands in the page.
#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    title: String,
    subtitle: String,
    cards: Vec<Card>,
    matrix: Option<Matrix>,
    figures: Vec<Figure>,
    rows: Vec<Row>,
    latencies: Option<Latencies>,
    warnings: Vec<String>,
    version: &'static str,
}

/// A report on runs: a card for each device, plots, and every line in a table; what several devices measured stands side by side too.
pub fn html(runs: &[Run]) -> String {
    let columns = columns(runs);
    let items = items(runs, &columns);
    let figures = [
        throughput::figure(&items, &columns),
        roofline::figure(&items, &columns),
        distribution::figure(&items, &columns),
        timeline::figure(&items, &columns),
    ];
    let page = Page {
        title: title(&columns),
        subtitle: subtitle(runs, &items),
        cards: cards(&items, &columns),
        matrix: matrix(&items, &columns),
        figures: if items.is_empty() { Vec::new() } else { figures.into() },
        rows: rows(&items, &columns),
        latencies: latencies(runs),
        warnings: warnings(&items),
        version: env!("CARGO_PKG_VERSION"),
    };
    page.render().expect("the template formats strings only")
}

fn title(columns: &[Column]) -> String {
    match columns {
        [] => "First results".into(),
        [column] => format!("Attention on {}", column.device_name()),
        _ => format!("Attention, {} side by side", columns.len()),
    }
}

fn subtitle(runs: &[Run], items: &[Item]) -> String {
    let count = |of: fn(&Item) -> bool| items.iter().filter(|item| of(item)).count();
    let measured = count(|item| item.line.timing.is_some());
    let failed = count(|item| item.line.failed.is_some());
    let skipped = items.len() - measured - failed;
    let mut days: Vec<&str> = runs.iter().flat_map(|run| &run.lines).filter_map(|line| line.date.get(..10)).collect();
    days.sort_unstable();
    days.dedup();
    let days = match &days[..] {
        [] => String::new(),
        [day] => format!(" on {day}"),
        [first, .., last] => format!(" from {first} to {last}"),
    };
    if items.is_empty() {
        return "How long programs wait for their first result".into();
    }
    let plural = if measured == 1 { "" } else { "s" };
    format!("{measured} line{plural} measured{days}; {failed} wrong, {skipped} skipped")
}

/// Each warning once.
fn warnings(items: &[Item]) -> Vec<String> {
    let mut found: Vec<(&str, Vec<usize>)> = Vec::new();
    for item in items {
        for warning in &item.line.warnings {
            match found.iter_mut().find(|(known, _)| known == warning) {
                Some((_, numbers)) => numbers.push(item.number),
                None => found.push((warning, vec![item.number])),
            }
        }
    }
    let text = |(warning, numbers): (&str, Vec<usize>)| {
        let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
        format!("{warning} (line {})", numbers.join(", "))
    };
    found.into_iter().map(text).collect()
}
