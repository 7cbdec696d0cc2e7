//! First results in two runs, number by number.

use serde::Serialize;

use super::comparison::Devices;
use super::latency::{Latency, Process};
use super::run::Run;
use super::statistics::{Interval, Statistics, ratio_interval};

/// Processes on either side from which the spread of their medians is known.
const ENOUGH: usize = 5;

/// How long one part of a first result takes in the newer run, by the older.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LatencyEntry {
    /// Device of the newer run.
    pub device: String,
    /// What gives the result.
    pub problem: String,
    /// `empty` or `filled`.
    pub caches: &'static str,
    /// What was timed: a part of the first result, in words.
    pub part: &'static str,
    /// Median over the older run's processes.
    pub old_ms: f64,
    /// Median over the newer run's processes.
    pub new_ms: f64,
    /// The newer by the older.
    pub ratio: f64,
    /// Its 95 % interval by the bootstrap over processes; `None` where either side has fewer than five.
    pub interval: Option<Interval>,
}

/// A number of a process in milliseconds.
pub(super) type Part = (&'static str, fn(&Process) -> f64);

/// The parts of a first result, and what comes after it.
pub(super) const LATENCY_PARTS: [Part; 6] = [
    ("first result", |process| process.first_result_ms),
    ("device", |process| process.phases.open_ms),
    ("plan", |process| process.phases.plan_ms),
    ("first run", |process| process.phases.run_ms),
    ("plan again", |process| process.steady.plan_ms),
    ("run again", |process| process.steady.run_ms),
];

impl LatencyEntry {
    /// Whether it surely takes longer by more than this share, 0.05 for 5 %.
    pub fn slower_than(&self, threshold: f64) -> bool {
        self.ratio > 1.0 + threshold && self.interval.is_some_and(|interval| interval.low > 1.0)
    }
}

/// The processes of one way to start, over all lines of a problem on a device.
fn processes<'a>(run: &'a Run, like: &'a Latency, devices: Devices) -> impl Iterator<Item = &'a Latency> {
    let same = move |other: &&Latency| {
        other.problem == like.problem && (devices == Devices::Any || other.device == like.device)
    };
    run.latencies.iter().filter(same)
}

/// Compares what two runs say of first results; empty where they have no problem and device in common.
pub fn compare_latencies(old: &Run, new: &Run, devices: Devices) -> Vec<LatencyEntry> {
    let mut entries: Vec<LatencyEntry> = Vec::new();
    for line in &new.latencies {
        if entries.iter().any(|known| known.problem == line.problem && known.device == line.device) {
            continue;
        }
        let [before, after] = [old, new].map(|run| processes(run, line, devices).collect::<Vec<_>>());
        for caches in ["empty", "filled"] {
            let numbers = |lines: &[&Latency], number: fn(&Process) -> f64| -> Vec<f64> {
                let of =
                    |latency: &&Latency| if caches == "empty" { latency.cold.clone() } else { latency.cached.clone() };
                lines.iter().flat_map(of).map(|process| number(&process)).collect()
            };
            for (part, number) in LATENCY_PARTS {
                let sides = [numbers(&before, number), numbers(&after, number)];
                entries.extend(entry(line, [caches, part], &sides));
            }
        }
    }
    entries
}

/// `None` where a side has no process.
fn entry(line: &Latency, [caches, part]: [&'static str; 2], [old, new]: &[Vec<f64>; 2]) -> Option<LatencyEntry> {
    let [old_ms, new_ms] = [Statistics::new(old)?.median, Statistics::new(new)?.median];
    let enough = old.len().min(new.len()) >= ENOUGH;
    Some(LatencyEntry {
        device: line.device.clone(),
        problem: line.problem.clone(),
        caches,
        part,
        old_ms,
        new_ms,
        ratio: new_ms / old_ms,
        interval: enough.then(|| ratio_interval(old, new)),
    })
}

#[cfg(test)]
mod tests {
    use super::super::latency::{LATENCY_SCHEMA, Phases, Steady};
    use super::*;

    fn process(ms: f64) -> Process {
        let phases = Phases { inputs_ms: 1.0, open_ms: 2.0, plan_ms: 3.0, run_ms: ms, result: 7 };
        Process {
            first_result_ms: ms + 5.0,
            phases,
            steady: Steady { plan_ms: 0.5, run_ms: ms / 2.0, submit_us: None },
        }
    }

    fn run(device: &str, ms: &[f64]) -> Run {
        let cold: Vec<Process> = ms.iter().map(|ms| process(*ms)).collect();
        let latency = Latency {
            schema: LATENCY_SCHEMA.into(),
            problem: "a layer".into(),
            device: device.into(),
            cached: cold[..1].to_vec(),
            cold,
        };
        Run { name: device.into(), lines: Vec::new(), latencies: vec![latency] }
    }

    #[test]
    fn ratios_by_hand() {
        let (old, new) = (run("d", &[9.0, 10.0, 11.0, 10.0, 10.0]), run("d", &[20.0, 21.0, 20.0, 19.0, 20.0]));
        let entries = compare_latencies(&old, &new, Devices::Same);
        assert_eq!(entries.len(), 2 * LATENCY_PARTS.len());
        let of = |caches: &str, part: &str| {
            entries.iter().find(|entry| entry.caches == caches && entry.part == part).unwrap()
        };
        let first = of("empty", "first run");
        assert_eq!((first.old_ms, first.new_ms, first.ratio), (10.0, 20.0, 2.0));
        let interval = first.interval.unwrap();
        assert!(interval.low > 1.5 && interval.high < 2.5 && first.slower_than(0.5), "{interval:?}");
        assert!(!first.slower_than(1.0) && !of("empty", "plan").slower_than(0.0));
        // One process each says nothing of its spread.
        let filled = of("filled", "first run");
        assert_eq!((filled.old_ms, filled.interval, filled.slower_than(0.0)), (9.0, None, false));
    }

    #[test]
    fn devices_in_common() {
        let (old, new) = (run("d", &[1.0]), run("e", &[2.0]));
        assert_eq!(compare_latencies(&old, &new, Devices::Same), []);
        let across = compare_latencies(&old, &new, Devices::Any);
        assert_eq!((across.len(), across[0].device.as_str()), (12, "e"));
    }
}
