//! `regard compare`.

use std::io::{self, Write};
use std::path::PathBuf;

use regard::bench::{
    Basis, Comparison, Devices, Entry, LatencyEntry, Ratio, Run, Side, Spread, Verdict, compare, compare_latencies,
};
use serde::Serialize;

use super::text::{duration, wrap};
use super::{Ending, Result, compare_latency};

/// Columns before the numbers; a longer problem has a line of its own.
const PROBLEM: usize = 48;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// JSON lines of the run to compare with: `regard bench --out FILE`, or what scripts/peers wrote
    ///
    /// A file may hold several lines of a problem, each of a process of its own, such as several files one after the other. Five
    /// of them on both sides make the intervals narrower and surer: measure old and new in turns.
    #[arg(verbatim_doc_comment)]
    old: PathBuf,
    /// JSON lines of the run in question
    new: PathBuf,
    /// Exit code 1 if a problem became slower by more than this, such as 5%, or has no time any more
    ///
    /// With fewer than five lines of a problem on either side, the interval must lie above 1 too.
    #[arg(long, value_name = "PERCENTAGE", value_parser = parse_percentage)]
    fail_if_slower: Option<f64>,
    /// Compares problems whatever device they ran on; each run may have one device
    #[arg(long)]
    across_devices: bool,
    /// One JSON object a line instead of the table; the last one is the summary
    #[arg(long)]
    json: bool,
}

/// A percentage as a share.
fn parse_percentage(text: &str) -> std::result::Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|number| number.trim_end().parse::<f64>().ok());
    let share = number.filter(|number| number.is_finite() && *number >= 0.0).map(|number| number / 100.0);
    share.ok_or_else(|| format!("`{text}` is no percentage of 0 or more, such as 5%"))
}

#[derive(Serialize)]
struct JsonEntry<'a> {
    schema: &'static str,
    #[serde(flatten)]
    entry: &'a Entry,
}

#[derive(Serialize)]
struct JsonLatency<'a> {
    schema: &'static str,
    #[serde(flatten)]
    entry: &'a LatencyEntry,
}

#[derive(Serialize)]
struct JsonSummary {
    schema: &'static str,
    mean_ratio: Option<f64>,
    slower: usize,
    faster: usize,
    unchanged: usize,
    missing: usize,
    added: usize,
    failed: usize,
    unmeasured: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    alarms: Option<usize>,
}

const SCHEMA: &str = "regard.compare/1";

pub(crate) fn run(args: &Args, out: &mut impl Write) -> Result {
    let (old, new) = (Run::read(&args.old)?, Run::read(&args.new)?);
    let devices = if args.across_devices { Devices::Any } else { Devices::Same };
    let latencies = compare_latencies(&old, &new, devices);
    // Where first results are all that there is, there is nothing else to miss.
    let only_latencies = !latencies.is_empty() && (old.lines.is_empty() || new.lines.is_empty());
    let comparison = if only_latencies { Comparison { entries: Vec::new() } } else { compare(&old, &new, devices)? };
    let late = args.fail_if_slower.map_or(0, |threshold| latencies.iter().filter(|l| l.slower_than(threshold)).count());
    let alarms = args.fail_if_slower.map(|threshold| alarms(&comparison, threshold));
    if args.json {
        for entry in &latencies {
            let entry = JsonLatency { schema: "regard.compare.latency/1", entry };
            writeln!(out, "{}", serde_json::to_string(&entry).map_err(io::Error::from)?)?;
        }
        json(out, &comparison, alarms.as_ref().map(|alarms| alarms.len() + late))?;
    } else {
        for (title, run) in [("old", &old), ("new", &new)] {
            writeln!(out, "{}", wrap(&format!("{title}  {}", describe(run)), 0))?;
        }
        if !only_latencies {
            table(out, &comparison)?;
        }
        if !latencies.is_empty() {
            compare_latency::table(out, &latencies)?;
        }
        if let (Some(alarms), Some(threshold)) = (&alarms, args.fail_if_slower) {
            if !only_latencies {
                verdict(out, alarms, threshold)?;
            }
            compare_latency::verdict(out, &latencies, threshold)?;
        }
    }
    Ok(if late > 0 || alarms.is_some_and(|alarms| !alarms.is_empty()) { Ending::CheckFailed } else { Ending::Good })
}

fn alarms(comparison: &Comparison, threshold: f64) -> Vec<&Entry> {
    comparison.entries.iter().filter(|entry| entry.slower_than(threshold)).collect()
}

fn json(out: &mut impl Write, comparison: &Comparison, alarms: Option<usize>) -> io::Result<()> {
    for entry in &comparison.entries {
        writeln!(out, "{}", serde_json::to_string(&JsonEntry { schema: SCHEMA, entry }).map_err(io::Error::from)?)?;
    }
    let count = |verdict| comparison.count(verdict);
    let summary = JsonSummary {
        schema: "regard.compare.summary/1",
        mean_ratio: comparison.mean(),
        slower: count(Verdict::Slower),
        faster: count(Verdict::Faster),
        unchanged: count(Verdict::Unchanged),
        missing: count(Verdict::Missing),
        added: count(Verdict::Added),
        failed: count(Verdict::Failed),
        unmeasured: count(Verdict::Unmeasured),
        alarms,
    };
    writeln!(out, "{}", serde_json::to_string(&summary).map_err(io::Error::from)?)
}

/// Name, lines, versions, commits and dates.
fn describe(run: &Run) -> String {
    let mut versions: Vec<String> = Vec::new();
    for line in run.lines.iter().filter(|line| line.peer.is_none()) {
        let commit = line.commit.as_ref().map_or(String::new(), |commit| format!(" ({commit})"));
        let version = format!("regard {}{commit}", line.version);
        if !versions.contains(&version) {
            versions.push(version);
        }
    }
    let dates: Vec<_> = run.lines.iter().map(|line| line.date.get(..10).unwrap_or_default()).collect();
    let mut days: Vec<_> =
        dates.iter().min().into_iter().chain(dates.iter().max()).filter(|day| !day.is_empty()).collect();
    days.dedup();
    let days = days.into_iter().copied().collect::<Vec<_>>().join(" to ");
    let count = run.lines.len() + run.latencies.len();
    let lines = format!("{}: {count} line{}", run.name, if count == 1 { "" } else { "s" });
    let parts = [vec![lines], versions, vec![days]].concat();
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

fn table(out: &mut impl Write, comparison: &Comparison) -> io::Result<()> {
    writeln!(out, "\n{:PROBLEM$} {}", "problem", row(["old", "new", "ratio", "95 %"].map(str::to_owned)))?;
    let (mut verdict, mut device) = (None, None);
    for entry in &comparison.entries {
        if verdict != Some(entry.verdict) {
            writeln!(out, "\n{}", title(entry.verdict))?;
        }
        if device != Some(&entry.device) {
            writeln!(out, "{}", wrap(&format!("on {}", entry.device), 2))?;
        }
        (verdict, device) = (Some(entry.verdict), Some(&entry.device));
        line(out, entry)?;
    }
    let counts =
        KINDS.map(|(verdict, _)| (verdict, comparison.count(verdict))).into_iter().filter(|(_, count)| *count > 0);
    let counts: Vec<_> = counts.map(|(verdict, count)| format!("{count} {}", name(verdict))).collect();
    let mean = comparison.mean().map_or(String::new(), |mean| format!(", geometric mean of the ratios {mean:.3}"));
    writeln!(out)?;
    writeln!(out, "{}", wrap(&legend(comparison), 0))?;
    writeln!(out, "{}{mean}", counts.join(", "))
}

/// What the columns mean.
fn legend(comparison: &Comparison) -> String {
    let ratios: Vec<_> = comparison.entries.iter().filter_map(|entry| entry.ratio).collect();
    let medians = ratios.iter().filter(|ratio| ratio.basis == Basis::Medians).count();
    let mut text = String::from(
        "old, new: a quarter of a process's runs was shorter, the mean over the faster half of the processes. ratio: new by \
         old, above 1 is slower. 95 %: the interval that the ratio lies in.",
    );
    if ratios.iter().any(|ratio| ratio.spread == Spread::Assumed) {
        text += " Processes of one program are taken to differ by 3 %, as there are fewer than five lines of a problem on \
                 either side; with five, measured in turns, it is seen how they differ.";
    }
    if medians > 0 {
        text += &format!(" {medians} compared by medians instead, as a line does not hold its runs.");
    }
    text
}

/// Verdicts with their titles.
const KINDS: [(Verdict, &str); 7] = [
    (Verdict::Slower, "slower"),
    (Verdict::Faster, "faster"),
    (Verdict::Unchanged, "unchanged"),
    (Verdict::Missing, "missing"),
    (Verdict::Added, "added"),
    (Verdict::Failed, "failed"),
    (Verdict::Unmeasured, "measured in neither"),
];

fn name(verdict: Verdict) -> &'static str {
    KINDS.iter().find(|(kind, _)| *kind == verdict).expect("every verdict has a title").1
}

fn title(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Missing => "missing: only in old",
        Verdict::Added => "added: no time in old",
        Verdict::Failed => "failed: a time in old, none in new",
        other => name(other),
    }
}

fn line(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    let peer = entry.peer.as_ref().map_or(String::new(), |peer| format!("{peer}: "));
    let problem = format!("  {peer}{}", entry.problem);
    let median = |side: &Option<Side>| side.as_ref().and_then(|side| side.median_ms).map_or("–".into(), duration);
    let numbers = row(match entry.ratio {
        Some(Ratio { interval, old_ms, new_ms, .. }) => [
            duration(old_ms),
            duration(new_ms),
            format!("{:.3}", interval.ratio),
            format!("{:.3} to {:.3}", interval.low, interval.high),
        ],
        None => [median(&entry.old), median(&entry.new), String::new(), String::new()],
    });
    if problem.chars().count() > PROBLEM {
        writeln!(out, "{problem}\n{:PROBLEM$} {numbers}", "")?;
    } else {
        writeln!(out, "{problem:PROBLEM$} {numbers}")?;
    }
    let why = [("old", &entry.old), ("new", &entry.new)]
        .into_iter()
        .filter_map(|(name, side)| Some(format!("{name}: {}", side.as_ref()?.why.as_ref()?)));
    // Beside nothing, its path is what tells a line from others of its problem.
    let alone = match (&entry.old, &entry.new) {
        (Some(side), None) | (None, Some(side)) => side.path.as_ref().map(|path| format!("path: {path}")),
        _ => None,
    };
    for note in entry.notes.iter().cloned().chain(alone).chain(why) {
        writeln!(out, "{}", wrap(&note, 6))?;
    }
    Ok(())
}

fn row([old, new, ratio, interval]: [String; 4]) -> String {
    format!("{old:>9} {new:>9} {ratio:>8} {interval:>16}").trim_end().to_owned()
}

fn verdict(out: &mut impl Write, alarms: &[&Entry], threshold: f64) -> io::Result<()> {
    let percent = threshold * 100.0;
    let names: Vec<_> = alarms.iter().map(|entry| entry.problem.as_str()).collect();
    let names = names.join(" · ");
    let text = match alarms.len() {
        0 => format!("no problem is slower by more than {percent} %"),
        1 => format!("1 problem is slower by more than {percent} %, or has no time any more: {names}"),
        more => format!("{more} problems are slower by more than {percent} %, or have no time any more: {names}"),
    };
    writeln!(out, "{}", wrap(&text, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages() {
        for (text, share) in [("5%", 0.05), ("0 %", 0.0), ("2.5%", 0.025)] {
            assert!((parse_percentage(text).unwrap() - share).abs() < 1e-12, "{text}");
        }
        for text in ["5", "0.05", "-1%", "%", "NaN%", "five%"] {
            assert!(parse_percentage(text).unwrap_err().contains("such as 5%"), "{text}");
        }
    }
}
