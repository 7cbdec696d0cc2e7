//! First results as a table.

use super::table::Cell;
use crate::bench::latency::Process;
use crate::bench::latency_comparison::LATENCY_PARTS;
use crate::bench::numbers::duration;
use crate::bench::run::Run;
use crate::bench::statistics::Statistics;

/// What programs wait for.
#[derive(Debug)]
pub(super) struct Latencies {
    pub(super) columns: Vec<&'static str>,
    /// Device with its file, problem, state of the caches, and a cell for each column.
    pub(super) rows: Vec<LatencyRow>,
}

/// One way to start on one device.
#[derive(Debug)]
pub(super) struct LatencyRow {
    pub(super) device: String,
    pub(super) detail: String,
    pub(super) caches: &'static str,
    pub(super) cells: Vec<Cell>,
}

/// Two rows for each line; `None` where there is none.
pub(super) fn latencies(runs: &[Run]) -> Option<Latencies> {
    let several = runs.iter().filter(|run| !run.latencies.is_empty()).count() > 1;
    let mut rows = Vec::new();
    for run in runs {
        for latency in &run.latencies {
            let file = if several { format!("{} · ", run.name) } else { String::new() };
            for (caches, processes) in [("empty", &latency.cold), ("filled", &latency.cached)] {
                rows.push(LatencyRow {
                    device: latency.device.clone(),
                    detail: format!("{file}{} · {} processes", latency.problem, processes.len()),
                    caches,
                    cells: cells(processes),
                });
            }
        }
    }
    let columns = LATENCY_PARTS.iter().map(|(name, _)| *name).chain(["submission"]).collect();
    (!rows.is_empty()).then_some(Latencies { columns, rows })
}

fn cells(processes: &[Process]) -> Vec<Cell> {
    let cell = |numbers: Vec<f64>| match Statistics::new(&numbers) {
        None => Cell::none(),
        Some(all) => Cell {
            detail: format!("{} to {}", duration(all.min), duration(all.max)),
            ..Cell::of(all.median, duration(all.median))
        },
    };
    let parts = LATENCY_PARTS.iter().map(|(_, number)| processes.iter().map(number).collect());
    let submission = processes.iter().filter_map(|process| Some(process.steady.submit_us? / 1e3)).collect();
    parts.chain([submission]).map(cell).collect()
}
