//! Cards and tables of the report, as text.

use super::item::{Column, Item};
use super::roofline::Ceilings;
use crate::bench::numbers::{bytes, duration, rate, significant};

/// A device.
#[derive(Debug)]
pub(super) struct Card {
    pub(super) title: String,
    pub(super) facts: Vec<(&'static str, String)>,
}

/// A cell: what people read, and what rows are sorted by.
#[derive(Debug, Clone, Default)]
pub(super) struct Cell {
    pub(super) text: String,
    /// Smaller, below the text.
    pub(super) detail: String,
    /// Empty where there is nothing, which goes last.
    pub(super) value: String,
}

/// Columns side by side.
#[derive(Debug)]
pub(super) struct Matrix {
    pub(super) columns: Vec<String>,
    pub(super) rows: Vec<(Vec<String>, Vec<Cell>)>,
}

/// A line in the table of all lines.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) number: usize,
    /// In pieces between which a line may break.
    pub(super) problem: Vec<String>,
    pub(super) path: String,
    pub(super) detail: String,
    /// Why there is no time.
    pub(super) why: String,
    /// Median, spread, TFLOP/s, GB/s, share of the bound, error.
    pub(super) cells: Vec<Cell>,
}

impl Cell {
    pub(super) fn of(value: f64, text: String) -> Self {
        Self { text, detail: String::new(), value: value.to_string() }
    }

    pub(super) fn none() -> Self {
        Self { text: "–".into(), ..Self::default() }
    }
}

fn pieces(problem: &str) -> Vec<String> {
    problem.split_inclusive(',').map(str::to_owned).collect()
}

/// A card for each column.
pub(super) fn cards(items: &[Item], columns: &[Column]) -> Vec<Card> {
    let card = |(at, column): (usize, &Column)| {
        let first = items.iter().find(|item| item.column == at)?.line;
        let mine = || items.iter().filter(move |item| item.column == at);
        let ceilings = Ceilings::of(items, at);
        let clock = mine().find_map(|item| item.timing()).map_or(String::new(), |timing| timing.clock.clone());
        let mut commit = first.commit.as_ref().map_or(String::new(), |commit| format!(", commit {commit}"));
        commit.insert_str(0, &first.version);
        let program = format!("{} {commit}", first.peer.as_deref().unwrap_or("regard"));
        let arithmetic = ceilings.arithmetic.iter().map(|(name, peak)| {
            let name = if name.is_empty() { String::new() } else { format!(" ({name})") };
            format!("{}{name}", rate(*peak, "FLOP/s"))
        });
        let arithmetic = arithmetic.collect::<Vec<_>>().join(", ");
        let facts = [
            ("device", column.device().to_owned()),
            ("driver", first.driver.clone()),
            ("host", first.cpu.clone()),
            ("threads", if first.threads > 0 { first.threads.to_string() } else { String::new() }),
            ("taken", first.device_reason.clone()),
            ("program", program),
            ("measured", first.date.clone()),
            ("clock", clock),
            ("arithmetic", arithmetic),
            ("memory", ceilings.bandwidth.map_or(String::new(), |bytes| rate(bytes, "B/s"))),
            ("lines", mine().count().to_string()),
        ];
        let facts = facts.into_iter().filter(|(_, text)| !text.is_empty()).collect();
        Some(Card { title: column.label.clone(), facts })
    };
    columns.iter().enumerate().filter_map(card).collect()
}

/// The fastest way of each column for each problem; `None` where there is one column only.
pub(super) fn matrix(items: &[Item], columns: &[Column]) -> Option<Matrix> {
    if columns.len() < 2 {
        return None;
    }
    let mut problems: Vec<&str> = Vec::new();
    for item in items {
        if !problems.contains(&item.line.problem.as_str()) {
            problems.push(&item.line.problem);
        }
    }
    // What most columns have comes first.
    let had = |problem: &str| (0..columns.len()).filter(|&column| fastest(items, problem, column).is_some()).count();
    problems.sort_by_key(|problem| std::cmp::Reverse(had(problem)));
    let rows = problems.into_iter().map(|problem| {
        let fastest: Vec<Option<&Item>> = (0..columns.len()).map(|column| fastest(items, problem, column)).collect();
        let median = |item: &Item| item.timing().map_or(f64::NAN, |timing| timing.median_ms);
        let first = fastest[0].map(median);
        let cell = |(at, item): (usize, &Option<&Item>)| match (item, first) {
            (None, _) => Cell { detail: absence(items, problem, at), ..Cell::none() },
            (Some(item), Some(first)) if at > 0 => {
                let detail = format!("{} ×, {}", significant(median(item) / first), item.path());
                Cell { detail, ..Cell::of(median(item), duration(median(item))) }
            }
            (Some(item), _) => Cell { detail: item.path(), ..Cell::of(median(item), duration(median(item))) },
        };
        (pieces(problem), fastest.iter().enumerate().map(cell).collect())
    });
    let rows = rows.collect();
    Some(Matrix { columns: columns.iter().map(|column| column.label.clone()).collect(), rows })
}

fn fastest<'a>(items: &'a [Item<'a>], problem: &str, column: usize) -> Option<&'a Item<'a>> {
    let timed = items.iter().filter(|item| item.column == column && item.line.problem == problem);
    let timed = timed.filter_map(|item| Some((item, item.timing()?.median_ms)));
    timed.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(item, _)| item)
}

fn absence(items: &[Item], problem: &str, column: usize) -> String {
    let mine = items.iter().find(|item| item.column == column && item.line.problem == problem);
    match mine {
        None => String::new(),
        Some(item) => why(item),
    }
}

fn why(item: &Item) -> String {
    let failed = item.line.failed.as_ref().map(|failed| format!("wrong: {failed}"));
    failed.or_else(|| item.line.skipped.as_ref().map(|skipped| format!("skipped: {skipped}"))).unwrap_or_default()
}

/// Every line.
pub(super) fn rows(items: &[Item], columns: &[Column]) -> Vec<Row> {
    let row = |item: &Item| {
        let column = (columns.len() > 1).then(|| columns[item.column].label.clone());
        let rounds = (item.rounds > 1).then(|| format!("fastest of {} processes", item.rounds));
        let work = item.line.work.as_ref();
        let peak = work.filter(|work| work.peak_bytes > 0).map(|work| format!("peak {}", bytes(work.peak_bytes)));
        let cache =
            item.timing().filter(|timing| timing.cache != "warm").map(|timing| format!("{} caches", timing.cache));
        let tiles = work.filter(|work| !work.tiles.is_empty()).map(|work| work.tiles.clone());
        let suite = Some(item.line.suite.clone()).filter(|suite| suite != "problem");
        let detail = [column, suite, rounds, cache, tiles, peak].into_iter().flatten().collect::<Vec<_>>().join(" · ");
        Row {
            number: item.number,
            problem: pieces(&item.line.problem),
            path: item.path(),
            detail,
            why: why(item),
            cells: cells(item),
        }
    };
    items.iter().map(row).collect()
}

fn cells(item: &Item) -> Vec<Cell> {
    let Some(timing) = item.timing() else { return vec![Cell::none(); 6] };
    let positive = |value: f64, text: String| if value > 0.0 { Cell::of(value, text) } else { Cell::none() };
    let spread = timing.spread();
    let outer = format!("{} to {}", duration(timing.p05_ms), duration(timing.p95_ms));
    let bound = timing.bound.as_ref().map(|bound| Cell {
        detail: bound.name(),
        ..Cell::of(bound.bound_share, format!("{:.0} %", 100.0 * bound.bound_share))
    });
    let error =
        item.line.check.as_ref().map(|check| Cell::of(check.error_of_scale, format!("{:.1e}", check.error_of_scale)));
    vec![
        Cell { detail: format!("{} runs", timing.runs), ..Cell::of(timing.median_ms, duration(timing.median_ms)) },
        Cell { detail: outer, ..Cell::of(spread, format!("{:.1} %", 100.0 * spread)) },
        positive(timing.tflops, significant(timing.tflops)),
        positive(timing.gbps, significant(timing.gbps)),
        bound.unwrap_or_else(Cell::none),
        error.unwrap_or_else(Cell::none),
    ]
}
