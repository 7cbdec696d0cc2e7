//! What `regard compare` prints of first results.

use std::io::{self, Write};

use regard::bench::LatencyEntry;

use super::text::{duration, wrap};

/// Columns before the numbers.
const NAME: usize = 34;

/// A line for each number, by device and problem.
pub(crate) fn table(out: &mut impl Write, entries: &[LatencyEntry]) -> io::Result<()> {
    writeln!(out, "\n{:NAME$} {}", "first results", row(["old", "new", "ratio", "95 %"].map(str::to_owned)))?;
    let mut subject = None;
    for entry in entries {
        if subject != Some((&entry.device, &entry.problem)) {
            writeln!(out, "\n{}", wrap(&format!("{} on {}", entry.problem, entry.device), 2))?;
        }
        subject = Some((&entry.device, &entry.problem));
        let interval = entry.interval.map_or("–".into(), |i| format!("{:.3} to {:.3}", i.low, i.high));
        let numbers = [duration(entry.old_ms), duration(entry.new_ms), format!("{:.3}", entry.ratio), interval];
        let name = format!("  {}, caches {}", entry.part, entry.caches);
        writeln!(out, "{name:NAME$} {}", row(numbers))?;
    }
    let mut legend = String::from("old, new: medians over processes. ratio: new by old. 95 %: its interval.");
    if entries.iter().any(|entry| entry.interval.is_none()) {
        legend += " There is no interval where either side has fewer than five processes.";
    }
    writeln!(out, "\n{}", wrap(&legend, 0))
}

/// What became slower; nothing where there is nothing to compare.
pub(crate) fn verdict(out: &mut impl Write, entries: &[LatencyEntry], threshold: f64) -> io::Result<()> {
    let slower = entries.iter().filter(|entry| entry.slower_than(threshold));
    let names: Vec<_> = slower.map(|entry| format!("{}, caches {}", entry.part, entry.caches)).collect();
    let percent = 100.0 * threshold;
    let text = match names.len() {
        _ if entries.is_empty() => return Ok(()),
        0 => format!("no first result is slower by more than {percent} %"),
        _ => format!("first results slower by more than {percent} %: {}", names.join(" · ")),
    };
    writeln!(out, "{}", wrap(&text, 0))
}

fn row([old, new, ratio, interval]: [String; 4]) -> String {
    format!("{old:>9} {new:>9} {ratio:>8} {interval:>16}").trim_end().to_owned()
}
