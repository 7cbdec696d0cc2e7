//! Two runs, problem by problem: what became slower, what became faster, and how sure that is.

use std::collections::HashMap;

use serde::Serialize;

use super::run::Run;
use super::side::{Ratio, Side, Spread};
use super::statistics::Interval;
use crate::error::{Error, Result};

/// Which lines belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Devices {
    /// Those of the same device.
    Same,
    /// Those of the one device of either run, whatever it is.
    Any,
}

/// What two runs have in common and what they have not: what counts most comes first.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Every problem of either run.
    pub entries: Vec<Entry>,
}

/// A problem of either run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// What came of it.
    pub verdict: Verdict,
    /// Device of both, or that of the newer run where devices differ.
    pub device: String,
    /// Suite.
    pub suite: String,
    /// The problem in canonical text.
    pub problem: String,
    /// Whose code, where it is not this crate's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Time of the newer run by that of the older; missing where one of them has none.
    #[serde(flatten)]
    pub ratio: Option<Ratio>,
    /// The older run; missing where it lacks the problem.
    pub old: Option<Side>,
    /// The newer run; missing where it lacks the problem.
    pub new: Option<Side>,
    /// What else changed between the two, and what makes them hard to compare.
    pub notes: Vec<String>,
}

/// What came of a problem, in the order in which entries stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The interval lies above 1.
    Slower,
    /// The interval lies below 1.
    Faster,
    /// The interval holds 1.
    Unchanged,
    /// Only the older run has it.
    Missing,
    /// Only the newer run has a time for it.
    Added,
    /// The older run has a time for it; in the newer one it was wrong or did not run.
    Failed,
    /// Neither run has a time for it.
    Unmeasured,
}

/// Compares the lines of two runs that have device, suite, problem and peer in common. Where these have several lines, those of the
/// same path and cache belong together; a line whose path changed goes with the one that is left on the other side.
///
/// # Errors
/// [`Error::Parse`]: the runs have nothing in common; one has several devices where [`Devices::Any`] wants one.
pub fn compare(old: &Run, new: &Run, devices: Devices) -> Result<Comparison> {
    if devices == Devices::Any {
        for run in [old, new] {
            let found = run.devices();
            if found.len() > 1 {
                let (name, found) = (&run.name, found.join(" and "));
                return Err(Error::Parse(format!(
                    "{name} has lines of {found}; across devices it may have one device"
                )));
            }
        }
    }
    let [before, after] = [old, new].map(|run| subjects(run, devices));
    if !after.iter().any(|(subject, _)| before.iter().any(|(other, _)| other == subject)) {
        return Err(Error::Parse(nothing_in_common(old, new, devices)));
    }
    let mut entries = Vec::new();
    let mut left: HashMap<_, _> = after.iter().map(|(subject, sides)| (subject, sides)).collect();
    for (subject, sides) in &before {
        let others = left.remove(subject).map_or(&[][..], Vec::as_slice);
        entries.extend(pairs(sides, others).into_iter().map(|[old, new]| entry(subject, old, new)));
    }
    for (subject, sides) in after.iter().filter(|(subject, _)| left.contains_key(subject)) {
        entries.extend(sides.iter().map(|side| entry(subject, None, Some(side))));
    }
    if devices == Devices::Any {
        entries.iter_mut().for_each(|entry| entry.device = new.lines[0].device.clone());
    }
    // Stable, so that problems of a device keep the order of the files where their ratios are alike.
    let rank = |a: &Entry, b: &Entry| a.verdict.cmp(&b.verdict).then_with(|| a.device.cmp(&b.device));
    entries.sort_by(|a, b| rank(a, b).then_with(|| b.distance().total_cmp(&a.distance())));
    Ok(Comparison { entries })
}

fn nothing_in_common(old: &Run, new: &Run, devices: Devices) -> String {
    let of = |run: &Run| format!("{} was measured on {}", run.name, run.devices().join(" and "));
    let differ = !new.devices().iter().any(|device| old.devices().contains(device));
    if let Some(bare) = [old, new].into_iter().find(|run| run.lines.is_empty()) {
        let (old, new, bare) = (&old.name, &new.name, &bare.name);
        return format!(
            "{old} and {new} have no problem in common: {bare} has first results alone, and none of them is of the same layer and \
             device as the other's"
        );
    }
    let (names, olds, news) = (format!("{} and {}", old.name, new.name), of(old), of(new));
    if devices == Devices::Same && differ {
        return format!(
            "{names} have no device in common: {olds}, {news}; --across-devices compares them all the same"
        );
    }
    let problems = |run: &Run| {
        let mut problems: Vec<_> = run.lines.iter().map(|line| format!("{} ({})", line.problem, line.suite)).collect();
        problems.dedup();
        let more = problems.len().saturating_sub(3);
        let shown = problems[..problems.len() - more].join(", ");
        if more == 0 { shown } else { format!("{shown} and {more} more") }
    };
    format!("{names} have no problem in common: {} has {}; {} has {}", old.name, problems(old), new.name, problems(new))
}

/// What lines must share: device, suite, problem, peer.
type Subject = (String, String, String, Option<String>);

/// The ways in which each subject was solved, in the order of the lines.
fn subjects(run: &Run, devices: Devices) -> Vec<(Subject, Vec<Side>)> {
    let mut subjects: Vec<(Subject, Vec<Side>)> = Vec::new();
    for line in &run.lines {
        let device = if devices == Devices::Same { line.device.clone() } else { String::new() };
        let subject = (device, line.suite.clone(), line.problem.clone(), line.peer.clone());
        let at = subjects.iter().position(|(known, _)| *known == subject).unwrap_or_else(|| {
            subjects.push((subject, Vec::new()));
            subjects.len() - 1
        });
        let side = Side::new(line);
        let sides = &mut subjects[at].1;
        // A process that failed adds nothing to one that did not.
        match sides.iter_mut().find(|known| known.same_way(&side) && (known.rounds == 0) == (side.rounds == 0)) {
            Some(known) => known.add(side),
            None => sides.push(side),
        }
    }
    subjects
}

/// Sides that belong together; each side of both runs is in one pair.
fn pairs<'a>(old: &'a [Side], new: &'a [Side]) -> Vec<[Option<&'a Side>; 2]> {
    let mut left: Vec<&Side> = new.iter().collect();
    let mut pairs: Vec<[Option<&Side>; 2]> = Vec::new();
    for side in old {
        let measured = left.iter().position(|other| side.same_way(other) && other.rounds > 0);
        let at = measured.or_else(|| left.iter().position(|other| side.same_way(other)));
        pairs.push([Some(side), at.map(|at| left.remove(at))]);
    }
    // Another path in the place of the one that was there.
    for cache in [Some("cold"), Some("warm"), None] {
        let alike = |side: &Side| cache.is_none() || side.cache() == cache;
        let alone = |[old, new]: &[Option<&Side>; 2]| new.is_none() && old.is_some_and(alike);
        let alone: Vec<_> = (0..pairs.len()).filter(|&at| alone(&pairs[at])).collect();
        let others: Vec<_> = (0..left.len()).filter(|&at| alike(left[at])).collect();
        if let ([pair], [other]) = (&alone[..], &others[..]) {
            pairs[*pair][1] = Some(left.remove(*other));
        }
    }
    pairs.extend(left.into_iter().map(|side| [None, Some(side)]));
    pairs
}

fn entry((device, suite, problem, peer): &Subject, old: Option<&Side>, new: Option<&Side>) -> Entry {
    let timed = |side: Option<&Side>| side.is_some_and(|side| side.rounds > 0);
    let ratio = old.zip(new).and_then(|(old, new)| old.ratio(new));
    let verdict = match (timed(old), timed(new)) {
        (true, true) => ratio.map_or(Verdict::Unmeasured, |ratio| verdict(ratio.interval)),
        (true, false) if new.is_some() => Verdict::Failed,
        (true, false) => Verdict::Missing,
        (false, true) => Verdict::Added,
        (false, false) => Verdict::Unmeasured,
    };
    Entry {
        verdict,
        device: device.clone(),
        suite: suite.clone(),
        problem: problem.clone(),
        peer: peer.clone(),
        ratio,
        old: old.cloned(),
        new: new.cloned(),
        notes: old.zip(new).map_or(Vec::new(), |(old, new)| old.changes(new, ratio)),
    }
}

fn verdict(interval: Interval) -> Verdict {
    match interval {
        Interval { low, .. } if low > 1.0 => Verdict::Slower,
        Interval { high, .. } if high < 1.0 => Verdict::Faster,
        _ => Verdict::Unchanged,
    }
}

impl Entry {
    /// How far the ratio is from 1, either way.
    fn distance(&self) -> f64 {
        self.ratio.map_or(0.0, |ratio| ratio.interval.ratio.ln().abs())
    }

    /// Whether it is an alarm at this threshold (0.05 for 5 %): slower by more than that, or without a time where the older run has
    /// one, as a slowdown may hide behind that. Of fewer than five processes the interval must not hold 1 either; of more the ratio
    /// itself decides, as a threshold is there to be found at, and the interval of a disturbed machine is wide.
    pub fn slower_than(&self, threshold: f64) -> bool {
        let beyond = self.ratio.is_some_and(|ratio| {
            let sure = ratio.spread == Spread::Measured || self.verdict == Verdict::Slower;
            sure && ratio.interval.ratio > 1.0 + threshold
        });
        beyond || self.verdict == Verdict::Failed
    }
}

impl Comparison {
    /// How many entries have a verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.entries.iter().filter(|entry| entry.verdict == verdict).count()
    }

    /// Geometric mean of all ratios; `None` where there is none.
    pub fn mean(&self) -> Option<f64> {
        let logs: Vec<f64> = self.entries.iter().filter_map(|entry| Some(entry.ratio?.interval.ratio.ln())).collect();
        (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line as a device of a few microseconds of noise would give it.
    fn line(problem: &str, path: &str, ms: f64) -> String {
        let samples: Vec<f64> = (0..40).map(|at| ms * (1.0 + 0.001 * f64::from(at * 17 % 11 - 5))).collect();
        format!(
            r#"{{"schema": "regard.bench/3", "version": "1", "suite": "quick", "problem": "{problem}", "device": "d",
            "path": "{path}", "flops": 1, "clock": "host clock", "cache": "warm", "runs": 40, "median_ms": {ms},
            "p05_ms": {ms}, "p95_ms": {ms}, "iqr_ms": {}, "min_ms": {ms}, "outliers": 0, "tflops": 1.0,
            "samples_ms": {samples:?}}}"#,
            ms * 0.006
        )
        .replace('\n', "")
    }

    fn skipped(problem: &str) -> String {
        line(problem, "x", 1.0).replace("\"median_ms\"", "\"skipped\": \"for a test\", \"was\"")
    }

    fn run(name: &str, lines: &[String]) -> Run {
        Run::parse(name, &lines.join("\n")).unwrap()
    }

    fn of(old: &[String], new: &[String]) -> Comparison {
        compare(&run("old", old), &run("new", new), Devices::Same).unwrap()
    }

    fn verdicts(comparison: &Comparison) -> Vec<(Verdict, &str)> {
        comparison.entries.iter().map(|entry| (entry.verdict, entry.problem.as_str())).collect()
    }

    #[test]
    fn what_changed_most_comes_first() {
        let old = ["same", "slow", "slowest", "fast", "gone"].map(|problem| line(problem, "x", 1.0));
        let new = [("same", 1.01), ("slow", 1.2), ("slowest", 1.5), ("fast", 0.5), ("fresh", 1.0)];
        let comparison = of(&old, &new.map(|(problem, ms)| line(problem, "x", ms)));
        let wanted = [
            (Verdict::Slower, "slowest"),
            (Verdict::Slower, "slow"),
            (Verdict::Faster, "fast"),
            (Verdict::Unchanged, "same"),
            (Verdict::Missing, "gone"),
            (Verdict::Added, "fresh"),
        ];
        assert_eq!(verdicts(&comparison), wanted);
        let mean = (1.01_f64 * 1.2 * 1.5 * 0.5).powf(0.25);
        assert!((comparison.mean().unwrap() - mean).abs() < 1e-9);
        let ratio = comparison.entries[0].ratio.unwrap().interval;
        assert!((ratio.ratio - 1.5).abs() < 1e-9 && ratio.low < 1.5 && ratio.high > 1.5, "{ratio:?}");
        assert_eq!(comparison.entries.iter().filter(|entry| entry.slower_than(0.25)).count(), 1);
    }

    #[test]
    fn another_path_is_compared_and_told() {
        let comparison = of(&[line("p", "tiled", 2.0)], &[line("p", "lanes", 1.0)]);
        assert_eq!(verdicts(&comparison), [(Verdict::Faster, "p")]);
        assert_eq!(comparison.entries[0].notes, ["path changed: tiled → lanes"]);
    }

    #[test]
    fn of_several_paths_each_goes_with_its_own() {
        let old = [line("p", "tiled", 2.0), line("p", "vector", 4.0)];
        let comparison = of(&old, &[line("p", "vector", 8.0), line("p", "lanes", 2.0)]);
        assert_eq!(verdicts(&comparison), [(Verdict::Slower, "p"), (Verdict::Unchanged, "p")]);
        assert_eq!(comparison.entries[0].notes, [""; 0]);
        assert_eq!(comparison.entries[1].notes, ["path changed: tiled → lanes"]);
        // Two that are left on one side belong to neither.
        let comparison = of(&old, &[line("p", "lanes", 8.0)]);
        assert_eq!(comparison.count(Verdict::Missing), 2);
        assert_eq!(comparison.count(Verdict::Added), 1);
    }

    #[test]
    fn cold_and_warm_caches_are_not_mixed() {
        let cold = |ms| line("p", "x", ms).replace("\"warm\"", "\"cold\"");
        let comparison = of(&[line("p", "x", 1.0), cold(2.0)], &[cold(2.0), line("p", "x", 1.0)]);
        assert_eq!(comparison.count(Verdict::Unchanged), 2);
        let comparison = of(&[line("p", "x", 1.0)], &[cold(2.0)]);
        assert!(comparison.entries[0].notes[0].contains("warm caches → host clock, cold caches"));
    }

    #[test]
    fn what_has_no_time_any_more_is_an_alarm() {
        let comparison = of(&[line("p", "x", 1.0), skipped("q")], &[skipped("p"), skipped("q")]);
        assert_eq!(verdicts(&comparison), [(Verdict::Failed, "p"), (Verdict::Unmeasured, "q")]);
        assert!(comparison.entries[0].slower_than(0.5) && !comparison.entries[1].slower_than(0.0));
        assert_eq!(comparison.entries[0].new.as_ref().unwrap().why.as_deref(), Some("for a test"));
        assert_eq!(of(&[skipped("p")], &[line("p", "x", 1.0)]).count(Verdict::Added), 1);
    }

    #[test]
    fn nothing_in_common_says_what_there_is() {
        let message = |old: &str, new: &str, devices| {
            let error = compare(&run("a.json", &[old.into()]), &run("b.json", &[new.into()]), devices);
            error.unwrap_err().to_string()
        };
        let (p, other) = (line("p", "x", 1.0), line("p", "x", 1.0).replace("\"d\"", "\"e\""));
        let told = message(&p, &line("q", "x", 1.0), Devices::Same);
        assert!(told.contains("no problem in common: a.json has p (quick); b.json has q (quick)"), "{told}");
        let told = message(&p, &other, Devices::Same);
        assert!(told.contains("a.json was measured on d, b.json was measured on e; --across-devices"), "{told}");
        let told = message(&p, &format!("{p}\n{other}"), Devices::Any);
        assert!(told.contains("b.json has lines of d and e"), "{told}");
        let across = compare(&run("a", &[p]), &run("b", &[other]), Devices::Any).unwrap();
        assert_eq!((across.count(Verdict::Unchanged), across.entries[0].device.as_str()), (1, "e"));
    }
}
