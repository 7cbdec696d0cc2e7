//! Bench lines for people: one row of numbers a problem, and below it what ran.

use std::io::{self, Write};

use regard::Device;
use regard::bench::{Check, Line, Timing, Work};
use regard::capabilities::{Backend, Capabilities};
use regard::gpu::adapters;
use regard::plan::Clock;

use super::text::{bytes, counted, duration, significant, wrap};

/// Columns before the numbers; a longer problem has a line of its own.
const PROBLEM: usize = 36;

/// Device, driver, interface and clock, then the column titles.
pub(crate) fn header(out: &mut impl Write, device: &Device) -> io::Result<()> {
    let name = device.name();
    let on_gpu = device.capabilities().backend == Backend::Gpu;
    let listed = if on_gpu { adapters() } else { Vec::new() };
    match listed.into_iter().find(|adapter| adapter.describe() == name) {
        Some(adapter) => {
            writeln!(out, "adapter    {}", adapter.name)?;
            writeln!(out, "driver     {}", adapter.driver)?;
            writeln!(out, "interface  {}", adapter.interface)?;
        }
        None => writeln!(out, "device     {name}")?,
    }
    writeln!(out, "because    {}", wrap(device.reason(), 11).trim_start())?;
    writeln!(out, "clock      {}", clock(device.capabilities()).describe())?;
    writeln!(out)?;
    let titles = ["median", "spread", "TFLOP/s", "exact", "GB/s", "error"];
    writeln!(out, "{:PROBLEM$} {}", "problem", row(titles.map(str::to_owned)))
}

fn row([median, spread, tflops, exact, gbps, error]: [String; 6]) -> String {
    format!("{median:>8} {spread:>7} {tflops:>8} {exact:>8} {gbps:>7} {error:>9}").trim_end().to_owned()
}

/// What a plan on this device is timed with.
fn clock(capabilities: &Capabilities) -> Clock {
    match (capabilities.backend, capabilities.timestamps) {
        (Backend::Cpu, _) => Clock::Host,
        (Backend::Gpu, true) => Clock::Gpu,
        (Backend::Gpu, false) => Clock::HostNoTimestamps,
    }
}

/// One problem.
pub(crate) fn line(out: &mut impl Write, line: &Line) -> io::Result<()> {
    match (&line.timing, &line.check) {
        (Some(timing), Some(check)) => writeln!(out, "{}", beside(&line.problem, &numbers(timing, check)))?,
        _ if line.failed.is_some() => writeln!(out, "{}", beside(&line.problem, "  WRONG"))?,
        _ => writeln!(out, "{}", beside(&line.problem, "  skipped"))?,
    }
    if let Some(work) = &line.work {
        writeln!(out, "{}", wrap(&details(work, line.check.as_ref(), line.timing.as_ref()), 4))?;
    }
    if let Some(failed) = &line.failed {
        writeln!(out, "{}", wrap(&format!("failed: {failed}"), 4))?;
    }
    if let Some(skipped) = &line.skipped {
        writeln!(out, "{}", wrap(&format!("skipped: {skipped}"), 4))?;
    }
    Ok(())
}

fn beside(problem: &str, numbers: &str) -> String {
    if problem.chars().count() > PROBLEM {
        return format!("{problem}\n{:PROBLEM$} {numbers}", "");
    }
    format!("{problem:PROBLEM$} {numbers}")
}

fn numbers(timing: &Timing, check: &Check) -> String {
    row([
        duration(timing.median_ms),
        format!("{:.1} %", 100.0 * timing.iqr_ms / timing.median_ms),
        significant(timing.tflops),
        significant(timing.tflops_exact),
        significant(timing.gbps),
        format!("{:.1e}", check.error_of_scale),
    ])
}

fn details(work: &Work, check: Option<&Check>, timing: Option<&Timing>) -> String {
    let names: Vec<_> = work.path.split(" + ").collect();
    let plural = if work.dispatches == 1 { "" } else { "es" };
    let mut text =
        format!("{}; {} dispatch{plural}, peak {}", counted(&names), work.dispatches, bytes(work.peak_bytes));
    if let Some(timing) = timing {
        let outliers = match timing.outliers {
            0 => String::new(),
            1 => " (1 outlier)".into(),
            more => format!(" ({more} outliers)"),
        };
        let (low, high) = (duration(timing.p05_ms), duration(timing.p95_ms));
        text += &format!("; {} runs{outliers}, 90 % within {low} and {high}", timing.runs);
    }
    if let Some(check) = check {
        text += &format!("; tolerance {:.1e}, rows checked: {}", check.tolerance_of_scale, check.checked_rows);
    }
    text
}

/// What the columns mean, counts, and each warning once.
pub(crate) fn summary(out: &mut impl Write, lines: &[Line]) -> io::Result<()> {
    let count = |of: fn(&Line) -> bool| lines.iter().filter(|line| of(line)).count();
    let (failed, skipped) = (count(|line| line.failed.is_some()), count(|line| line.skipped.is_some()));
    writeln!(out)?;
    let legend = "spread: middle half of the runs, of the median. TFLOP/s: FlashAttention's formula (causal counts half); \
                  exact: operations that the plan does. GB/s: bytes that must move at least. error: largest, of the \
                  largest magnitude of the f64 reference.";
    writeln!(out, "{}", wrap(legend, 0))?;
    let measured = lines.len() - failed - skipped;
    for (warning, problems) in warnings(lines) {
        let whose = if problems.len() == measured { "every line".into() } else { problems.join(" · ") };
        writeln!(out, "{}", wrap(&format!("warning: {warning} ({whose})"), 0))?;
    }
    writeln!(out, "{measured} measured, {failed} wrong, {skipped} skipped")
}

fn warnings(lines: &[Line]) -> Vec<(&str, Vec<&str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in lines {
        for warning in &line.warnings {
            match found.iter_mut().find(|(known, _)| known == warning) {
                Some((_, problems)) => problems.push(&line.problem),
                None => found.push((warning, vec![&line.problem])),
            }
        }
    }
    found
}
