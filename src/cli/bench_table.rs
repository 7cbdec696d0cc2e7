//! Bench lines for people: one row of numbers a problem, and below it what ran.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use regard::Device;
use regard::bench::{Bench, Bound, Check, Line, Roofline, Timing, Versus, Work};

use super::text::{bytes, counted, duration, rate, significant, wrap};

/// Columns before the numbers; a longer problem has a line of its own.
const PROBLEM: usize = 36;

const BOLD: Style = Style::new().bold();
const FAINT: Style = Style::new().dimmed();
const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default();

/// Device, driver, interface and clock, then the column titles.
pub(crate) fn header(out: &mut impl Write, device: &Device, bench: &Bench) -> io::Result<()> {
    match bench.adapter() {
        Some([adapter, driver, interface]) => {
            writeln!(out, "adapter    {adapter}")?;
            writeln!(out, "driver     {driver}")?;
            writeln!(out, "interface  {interface}")?;
        }
        None => writeln!(out, "device     {}", device.name())?,
    }
    writeln!(out, "because    {}", wrap(device.reason(), 11).trim_start())?;
    writeln!(out, "clock      {}", wrap(&bench.clock(), 11).trim_start())?;
    if let Some(roofline) = &bench.roofline {
        writeln!(out, "peaks      {}", wrap(&peaks(roofline), 11).trim_start())?;
    }
    writeln!(out)?;
    let titles = ["median", "spread", "TFLOP/s", "exact", "GB/s", "error"];
    writeln!(out, "{BOLD}{:PROBLEM$} {}{BOLD:#}", "problem", row(titles.map(str::to_owned)))
}

/// A device's peaks in words.
pub(crate) fn peaks(roofline: &Roofline) -> String {
    let Roofline { flops_f32, flops_f16, flops_matrices, bytes_copied, bytes_read, date, .. } = roofline;
    let more = |flops: &Option<f64>, what: &str| {
        flops.map_or_else(String::new, |flops| format!(", {} {what}", rate(flops, "FLOP/s")))
    };
    let (f16, matrices) = (more(flops_f16, "in f16"), more(flops_matrices, "on matrices"));
    let f32 = rate(*flops_f32, "FLOP/s");
    let (copied, read) = (rate(*bytes_copied, "B/s"), rate(*bytes_read, "B/s"));
    format!("{f32} in f32{f16}{matrices}; {copied} copied (in and out), {read} read; measured {date}")
}

fn row([median, spread, tflops, exact, gbps, error]: [String; 6]) -> String {
    format!("{median:>8} {spread:>7} {tflops:>8} {exact:>8} {gbps:>7} {error:>9}").trim_end().to_owned()
}

/// One problem.
pub(crate) fn line(out: &mut impl Write, line: &Line) -> io::Result<()> {
    match (&line.timing, &line.check) {
        (Some(timing), Some(check)) => writeln!(out, "{}", beside(&line.problem, &numbers(timing, check)))?,
        _ if line.failed.is_some() => writeln!(out, "{}", beside(&line.problem, &format!("  {RED}WRONG{RED:#}")))?,
        _ => writeln!(out, "{}", beside(&line.problem, &format!("  {FAINT}skipped{FAINT:#}")))?,
    }
    if let Some(work) = &line.work {
        writeln!(out, "{FAINT}{}{FAINT:#}", wrap(&details(work, line.check.as_ref(), line.timing.as_ref()), 4))?;
    }
    if let Some(versus) = &line.versus {
        writeln!(out, "{}", wrap(&ratio(versus), 4))?;
    }
    if let Some(failed) = &line.failed {
        writeln!(out, "{RED}{}{RED:#}", wrap(&format!("failed: {failed}"), 4))?;
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
        format!("{:.1} %", 100.0 * timing.spread()),
        significant(timing.tflops),
        significant(timing.tflops_exact),
        significant(timing.gbps),
        format!("{:.1e}", check.error_of_scale),
    ])
}

fn ratio(Versus { versus, ratio, ratio_low, ratio_high }: &Versus) -> String {
    let names: Vec<_> = versus.split(" + ").collect();
    let [ratio, low, high] = [ratio, ratio_low, ratio_high].map(|ratio| significant(*ratio));
    format!("takes {ratio} × as long as {}, 95 % between {low} and {high}", counted(&names))
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
        let (runs, cache) = (timing.runs, &timing.cache);
        text += &format!("; {runs} runs{outliers}, caches {cache}, 90 % within {low} and {high}");
        if let Some(bound) = &timing.bound {
            let Bound { bound_share, bound_per_second, .. } = bound;
            let unit = if bound.bound == "bandwidth" { "B/s" } else { "FLOP/s" };
            text += &format!("; {:.0} % of {} at {}", 100.0 * bound_share, bound.name(), rate(*bound_per_second, unit));
        }
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
        writeln!(out, "{YELLOW}{}{YELLOW:#}", wrap(&format!("warning: {warning} ({whose})"), 0))?;
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
