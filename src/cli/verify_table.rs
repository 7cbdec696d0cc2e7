//! What `regard verify` found, for people.

use std::collections::BTreeMap;
use std::io::{self, Write};

use comfy_table::{CellAlignment, Column, ContentArrangement, Table, presets};
use regard::verify::Outcome;

use super::text::{WIDTH, wrap};
use super::verify::Finding;

/// A row for each technique, then every failure in full, then skips by reason, then the counts.
pub(crate) fn print(out: &mut impl Write, findings: &[Finding], devices: usize) -> io::Result<()> {
    writeln!(out, "\n{}", table(findings, devices).trim_fmt())?;
    let failures: Vec<_> = findings.iter().filter(|finding| finding.outcome.failed()).collect();
    if !failures.is_empty() {
        writeln!(out, "\nfailures")?;
    }
    let on = |device: usize| if devices > 1 { format!("device {device} · ") } else { String::new() };
    for Finding { device, op, case, technique, outcome, .. } in &failures {
        writeln!(out, "{}", wrap(&format!("{}{op} · {case} · {technique}: {outcome}", on(*device)), 2))?;
    }
    let skips = skips(findings);
    if !skips.is_empty() {
        writeln!(out, "\nskips")?;
    }
    for ((device, op, reason), count) in &skips {
        writeln!(out, "{}", wrap(&format!("{}{count} of {op}: {reason}", on(*device)), 2))?;
    }
    let skipped: usize = skips.values().sum();
    let passed = findings.len() - failures.len() - skipped;
    writeln!(out, "\n{passed} passed, {} failed, {skipped} skipped", failures.len())?;
    if passed == 0 {
        writeln!(out, "nothing was checked")?;
    }
    Ok(())
}

fn skips(findings: &[Finding]) -> BTreeMap<(usize, &str, &str), usize> {
    let mut counts = BTreeMap::new();
    for finding in findings {
        if let Outcome::Skipped(reason) = &finding.outcome {
            *counts.entry((finding.device, finding.op, reason.as_str())).or_insert(0) += 1;
        }
    }
    counts
}

fn table(findings: &[Finding], devices: usize) -> Table {
    let mut rows: BTreeMap<(usize, &str, &str), Vec<&Finding>> = BTreeMap::new();
    for finding in findings.iter().filter(|finding| !matches!(finding.outcome, Outcome::Skipped(_))) {
        rows.entry((finding.device, finding.op, &finding.technique)).or_default().push(finding);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(WIDTH as u16);
    let device = (devices > 1).then_some("device");
    table.set_header(device.into_iter().chain([
        "technique",
        "cases",
        "failed",
        "error",
        "tolerance",
        "worst case",
        "at",
    ]));
    for ((device, _, technique), findings) in rows {
        let failed = findings.iter().filter(|finding| finding.outcome.failed()).count();
        let device = (devices > 1).then(|| device.to_string());
        let cells = [technique.to_owned(), findings.len().to_string(), failed.to_string()];
        table.add_row(device.into_iter().chain(cells).chain(worst(&findings)));
    }
    for column in table.column_iter_mut().skip(usize::from(devices > 1) + 1).take(4) {
        Column::set_cell_alignment(column, CellAlignment::Right);
    }
    table
}

/// Error, tolerance, case and coordinates of the element that came nearest to its tolerance, or was farthest beyond it.
fn worst(findings: &[&Finding]) -> [String; 4] {
    let compared = findings.iter().filter_map(|finding| Some((finding, finding.outcome.comparison()?)));
    let share = |error: f64, tolerance: f64| if error == 0.0 { 0.0 } else { error / tolerance };
    let worst = compared.max_by(|(_, a), (_, b)| {
        share(a.worst_error, a.worst_tolerance).total_cmp(&share(b.worst_error, b.worst_tolerance))
    });
    match worst {
        Some((finding, comparison)) => [
            format!("{:.1e}", comparison.worst_error),
            format!("{:.1e}", comparison.worst_tolerance),
            finding.case.clone(),
            format!("{:?}", comparison.worst_at),
        ],
        None => ["-".into(), "-".into(), findings[0].case.clone(), "-".into()],
    }
}
