//! Lines as the report numbers them, and whose they are.

use crate::bench::numbers::counted;
use crate::bench::problem::Problem;
use crate::bench::report::{Line, Timing};
use crate::bench::run::Run;

/// Who measured: a device or a peer in a run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Column {
    /// Index of its run.
    run: usize,
    device: String,
    peer: Option<String>,
    /// Short, and unlike that of any other column.
    pub(super) label: String,
}

/// A line with its place.
#[derive(Debug)]
pub(super) struct Item<'a> {
    /// Number in the table, from 1.
    pub(super) number: usize,
    /// Index of its column.
    pub(super) column: usize,
    pub(super) line: &'a Line,
    /// Lines of the same kind, of which this is the fastest.
    pub(super) rounds: usize,
}

impl Column {
    /// The device without its driver, which follows in parentheses at the end.
    pub(super) fn device_name(&self) -> &str {
        short(&self.device)
    }

    pub(super) fn device(&self) -> &str {
        &self.device
    }
}

/// A name without the last parentheses, unless these are all that tells it.
fn short(device: &str) -> &str {
    if device.starts_with("CPU backend") {
        return device;
    }
    device.find(" (").map_or(device, |at| &device[..at])
}

/// Each device and peer of each run, in the order of the lines.
pub(super) fn columns(runs: &[Run]) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    for (run, lines) in runs.iter().enumerate() {
        for line in &lines.lines {
            if !columns.iter().any(|column| column.is_of(run, line)) {
                let (device, peer) = (line.device.clone(), line.peer.clone());
                columns.push(Column { run, device, peer, label: String::new() });
            }
        }
    }
    let several = |of: fn(&Column) -> String| {
        let first = columns.first().map(of);
        columns.iter().any(|column| Some(of(column)) != first)
    };
    let (devices, peers) = (several(|c| short(&c.device).into()), several(|c| c.peer.clone().unwrap_or_default()));
    let labels: Vec<String> = columns
        .iter()
        .map(|column| {
            let peer = peers.then(|| column.peer.clone().unwrap_or_else(|| "regard".into()));
            let device = (devices || !peers).then(|| short(&column.device).to_owned());
            peer.into_iter().chain(device).collect::<Vec<_>>().join(", ")
        })
        .collect();
    for (at, column) in columns.iter_mut().enumerate() {
        // What else is called so is told apart by its file.
        let alike = labels.iter().filter(|label| **label == labels[at]).count() > 1;
        let file = &runs[column.run].name;
        let file = file.rsplit(['/', '\\']).next().unwrap_or(file);
        column.label = if alike { format!("{}, {file}", labels[at]) } else { labels[at].clone() };
    }
    columns
}

impl Column {
    fn is_of(&self, run: usize, line: &Line) -> bool {
        self.run == run && self.device == line.device && self.peer == line.peer
    }
}

/// Lines in their order; of several that differ in nothing but their times, the fastest.
pub(super) fn items<'a>(runs: &'a [Run], columns: &[Column]) -> Vec<Item<'a>> {
    let mut items: Vec<Item> = Vec::new();
    for (run, lines) in runs.iter().enumerate() {
        for line in &lines.lines {
            let column = columns.iter().position(|column| column.is_of(run, line)).expect("each line has its column");
            let item = Item { number: items.len() + 1, column, line, rounds: 1 };
            match items.iter_mut().find(|known| known.same_way(&item)) {
                Some(known) => known.add(line),
                None => items.push(item),
            }
        }
    }
    items
}

impl<'a> Item<'a> {
    fn same_way(&self, other: &Self) -> bool {
        let way = |item: &Self| {
            let cache = item.line.timing.as_ref().map(|timing| timing.cache.clone());
            (item.column, item.line.suite.clone(), item.line.problem.clone(), item.path(), cache)
        };
        way(self) == way(other)
    }

    fn add(&mut self, line: &'a Line) {
        self.rounds += 1;
        let median = |line: &Line| line.timing.as_ref().map_or(f64::INFINITY, |timing| timing.median_ms);
        if median(line) < median(self.line) {
            self.line = line;
        }
    }

    /// Techniques, each once; empty where none is known.
    pub(super) fn path(&self) -> String {
        self.line.work.as_ref().map_or(String::new(), |work| counted(&work.path.split(" + ").collect::<Vec<_>>()))
    }

    pub(super) fn timing(&self) -> Option<&'a Timing> {
        self.line.timing.as_ref()
    }

    /// The problem, where it is one of attention.
    pub(super) fn problem(&self) -> Option<Problem> {
        // Any other text is a problem of another kind, not a mistake.
        self.line.problem.strip_prefix("attention ").unwrap_or(&self.line.problem).parse().ok()
    }
}
