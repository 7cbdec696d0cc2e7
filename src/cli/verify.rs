//! `regard verify`.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::io::{self, Write};
use std::sync::mpsc;

use rayon::prelude::*;
use regard::capabilities::Capabilities;
use regard::case::Case;
use regard::gpu::adapters;
use regard::ops::REGISTRY;
use regard::verify::{Outcome, Prepared, cases, kernels};
use regard::{Checks, Device, DeviceOptions, Error, Select};
use serde::Serialize;

use super::bench::progress;
use super::text::wrap;
use super::{Ending, Result, verify_table};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// auto, gpu, cpu, part of an adapter's name, or all (the CPU backend and every adapter)
    #[arg(long, default_value = "auto")]
    device: String,
    /// Only this op
    #[arg(long)]
    op: Option<String>,
    /// Only cases whose name contains this
    #[arg(long)]
    case: Option<String>,
    /// Compiles shaders with bounds checks and loop counters
    #[arg(long)]
    checked: bool,
    /// One JSON object a line for each op, case and technique
    #[arg(long)]
    json: bool,
}

/// One technique on one case on one device.
#[derive(Debug)]
pub(crate) struct Finding {
    /// Number of the case.
    pub number: usize,
    /// Number of the device.
    pub device: usize,
    pub op: &'static str,
    pub case: String,
    /// `none` where the device offers nothing.
    pub technique: String,
    pub outcome: Outcome,
}

#[derive(Debug, Serialize)]
struct JsonLine<'a> {
    schema: &'static str,
    version: &'static str,
    device: &'a str,
    op: &'a str,
    case: &'a str,
    technique: &'a str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_error: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tolerance: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_of_scale: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worst_at: Option<&'a [usize]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> Result {
    let cases = selected(args)?;
    let devices = devices(args)?;
    if !args.json {
        for (index, device) in devices.iter().enumerate() {
            let number = if devices.len() > 1 { format!(" {index}") } else { String::new() };
            writeln!(out, "{}", wrap(&format!("device{number}: {}", device.0[0]), 0))?;
        }
    }
    let progress = progress(cases.len() as u64);
    let mut findings = Vec::new();
    let groups = groups(&cases, &devices);
    // Most of the time drivers compile, some kernels a hundred times as long as others, so that lines come as they are found.
    let (sender, found) = mpsc::channel();
    std::thread::scope(|scope| -> io::Result<()> {
        let check = |sender: &mut mpsc::Sender<Vec<Finding>>, group: &Vec<usize>| {
            let found = group.iter().flat_map(|&number| {
                let case = &cases[number];
                progress.set_message(format!("{} {}", case.op.name(), case.name));
                let found = on_devices(number, case, &devices);
                progress.inc(1);
                found
            });
            let found = found.collect();
            devices.iter().for_each(|device| device.mine().forget_pipelines());
            // Nobody receives where the output has failed.
            sender.send(found).ok()
        };
        let groups = &groups;
        scope.spawn(move || groups.par_iter().try_for_each_with(sender, check));
        for finding in found.into_iter().flatten() {
            if args.json {
                progress.suspend(|| json(out, &finding, &devices[finding.device].name()))?;
            }
            findings.push(finding);
        }
        Ok(())
    })?;
    findings.sort_by_key(|finding| finding.number);
    progress.finish_and_clear();
    if !args.json {
        verify_table::print(out, &findings, devices.len())?;
    }
    Ok(ending(&findings))
}

/// Numbers of cases, together where they have the same kernels.
fn groups(cases: &[Case], devices: &[Adapter]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut known: HashMap<Vec<String>, usize> = HashMap::new();
    for (number, case) in cases.iter().enumerate() {
        let texts: Vec<_> = devices.iter().flat_map(|device| kernels(case, device.capabilities())).collect();
        match known.entry(texts) {
            // Without a kernel there is nothing to share.
            Entry::Occupied(group) if !group.key().is_empty() => groups[*group.get()].push(number),
            entry => {
                entry.insert_entry(groups.len());
                groups.push(vec![number]);
            }
        }
    }
    groups
}

fn on_devices(number: usize, case: &Case, devices: &[Adapter]) -> Vec<Finding> {
    let prepared = Prepared::new(case.clone());
    let on = |(device, of): (usize, &Adapter)| {
        let findings =
            prepared.run(of.mine()).into_iter().map(move |(technique, outcome)| (device, technique, outcome));
        findings.collect::<Vec<_>>()
    };
    let found = devices.iter().enumerate().flat_map(on);
    let finding = |(device, technique, outcome)| Finding {
        number,
        device,
        op: case.op.name(),
        case: case.name.clone(),
        technique,
        outcome,
    };
    found.map(finding).collect()
}

/// A failure fails; so does a run in which nothing was checked.
fn ending(findings: &[Finding]) -> Ending {
    let checked = findings.iter().any(|finding| matches!(finding.outcome, Outcome::Passed(_)));
    let failed = findings.iter().any(|finding| finding.outcome.failed());
    if checked && !failed { Ending::Good } else { Ending::CheckFailed }
}

fn selected(args: &Args) -> regard::Result<Vec<Case>> {
    let names: Vec<_> = REGISTRY.iter().map(|entry| entry.name).collect();
    if let Some(op) = args.op.as_ref().filter(|op| !names.contains(&op.as_str())) {
        return Err(Error::Parse(format!("there is no op `{op}`; ops are {}", names.join(", "))));
    }
    let found = cases(args.op.as_deref(), args.case.as_deref());
    if found.is_empty() {
        let all = cases(args.op.as_deref(), None);
        let names: BTreeSet<_> = all.iter().map(|case| format!("  {}: {}", case.op.name(), case.name)).collect();
        let (wanted, names) = (args.case.as_deref().unwrap_or(""), names.into_iter().collect::<Vec<_>>().join("\n"));
        return Err(Error::Parse(format!("no case's name contains `{wanted}`; cases are\n{names}")));
    }
    Ok(found)
}

/// What is checked: a device, or one for each thread where it is a software device, which compiles for one thread at a time.
#[derive(Debug)]
struct Adapter(Vec<Device>);

impl Adapter {
    fn open(options: &DeviceOptions) -> regard::Result<Self> {
        let first = Device::new(options)?;
        let others = if first.capabilities().software { rayon::current_num_threads() - 1 } else { 0 };
        let others = (0..others).map(|_| Device::new(options));
        Ok(Self(std::iter::once(Ok(first)).chain(others).collect::<regard::Result<_>>()?))
    }

    /// The device of this thread.
    fn mine(&self) -> &Device {
        &self.0[rayon::current_thread_index().unwrap_or(0) % self.0.len()]
    }

    fn name(&self) -> String {
        self.0[0].name()
    }

    fn capabilities(&self) -> &Capabilities {
        self.0[0].capabilities()
    }
}

fn devices(args: &Args) -> regard::Result<Vec<Adapter>> {
    let checks = if args.checked { Checks::Checked } else { Checks::Unchecked };
    let open = |select| Adapter::open(&DeviceOptions { select, checks, ..DeviceOptions::default() });
    if args.device != "all" {
        return Ok(vec![open(args.device.parse().unwrap_or_default())?]);
    }
    // An adapter is found by its whole description, which contains its name.
    let named = adapters().into_iter().map(|adapter| open(Select::Named(adapter.describe())));
    std::iter::once(Ok(Adapter(vec![Device::cpu()]))).chain(named).collect()
}

fn json(out: &mut impl Write, finding: &Finding, device: &str) -> io::Result<()> {
    let comparison = finding.outcome.comparison();
    let line = JsonLine {
        schema: "regard.verify/1",
        version: env!("CARGO_PKG_VERSION"),
        device,
        op: finding.op,
        case: &finding.case,
        technique: &finding.technique,
        outcome: match finding.outcome {
            Outcome::Passed(_) => "passed",
            Outcome::Wrong(_) => "wrong",
            Outcome::Overrun => "overrun",
            Outcome::Refused(_) => "refused",
            Outcome::Skipped(_) => "skipped",
        },
        max_error: comparison.map(|comparison| comparison.worst_error),
        tolerance: comparison.map(|comparison| comparison.worst_tolerance),
        error_of_scale: comparison.map(|comparison| comparison.error_of_scale),
        worst_at: comparison.map(|comparison| &comparison.worst_at[..]),
        message: (!matches!(finding.outcome, Outcome::Passed(_))).then(|| finding.outcome.to_string()),
    };
    writeln!(out, "{}", serde_json::to_string(&line).map_err(io::Error::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(op: Option<&str>, case: Option<&str>) -> Args {
        Args { device: "cpu".into(), op: op.map(Into::into), case: case.map(Into::into), checked: false, json: false }
    }

    #[test]
    fn bad_filters_name_what_there_is() {
        let message = |args: &Args| selected(args).unwrap_err().to_string();
        assert!(message(&args(Some("conv"), None)).contains("ops are matmul, softmax"));
        assert!(message(&args(Some("softmax"), Some("no such"))).contains("softmax: f32 [3, 1]"));
        assert!(!selected(&args(Some("softmax"), Some("f16"))).unwrap().is_empty());
    }

    #[test]
    fn nothing_checked_is_no_success() {
        let finding =
            |outcome| Finding { number: 0, device: 0, op: "x", case: "y".into(), technique: "z".into(), outcome };
        assert_eq!(ending(&[]), Ending::CheckFailed);
        assert_eq!(ending(&[finding(Outcome::Skipped("s".into()))]), Ending::CheckFailed);
        assert_eq!(ending(&[finding(Outcome::Overrun)]), Ending::CheckFailed);
    }
}
