//! `regard tune`.

use std::io::{self, Write};

use regard::bench::{Problem, Suite, Task};
use regard::tuning::{Entry, Tuning};
use regard::{Device, DeviceOptions, Error, Select};

use super::text::{duration, wrap};
use super::{Ending, Result, parse_select};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// auto, gpu, cpu, or part of an adapter's name; lavapipe is the software Vulkan device
    #[arg(long, default_value = "auto", value_parser = parse_select)]
    device: Select,
    /// The nodes of a suite's problems, as `regard bench` has them; quick when no problem is given either
    #[arg(long)]
    suite: Option<Suite>,
    /// The nodes of an attention problem of your own, as `regard bench` takes it
    #[arg(long = "problem", value_name = "PROBLEM")]
    problems: Vec<Problem>,
    /// One JSON object a line for each problem instead of the table
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> Result {
    let device = Device::new(&DeviceOptions { select: args.device.clone(), ..DeviceOptions::default() })?;
    if !args.json {
        writeln!(out, "{}", wrap(&device.to_string(), 0))?;
        writeln!(out, "{}\n", wrap(&device.tuning_file().to_string(), 0))?;
    }
    let mut without_choice = 0;
    let mut wrong = false;
    let mut not_kept = None;
    for task in tasks(args, &device)? {
        let tuning = match device.tune(&task.graph) {
            Ok(tuning) => tuning,
            // What a suite asks for and the device lacks.
            Err(Error::Unsupported { .. } | Error::TooLarge { .. }) if args.problems.is_empty() => continue,
            Err(error) => return Err(error.into()),
        };
        for entry in &tuning.entries {
            wrong |= entry.candidates.iter().any(|candidate| candidate.wrong.is_some());
            print(args, entry, out)?;
        }
        let Tuning { without_choice: more, not_kept: why, .. } = tuning;
        without_choice += more;
        not_kept = why.or(not_kept);
    }
    if let Some(why) = not_kept {
        super::complain(&format!("the choices last as long as this process: {why}"));
    }
    if !args.json {
        writeln!(out, "\n{without_choice} problems have one technique only")?;
        writeln!(out, "{}", wrap(&device.tuning_file().to_string(), 0))?;
    }
    Ok(if wrong { Ending::CheckFailed } else { Ending::Good })
}

/// A suite has problems that differ in the technique that is asked for; their nodes are the same.
fn tasks(args: &Args, device: &Device) -> regard::Result<Vec<Task>> {
    let mut tasks = Vec::new();
    if let Some(suite) = args.suite.or(args.problems.is_empty().then(Suite::default)) {
        tasks = suite.tasks(device.capabilities(), None)?;
    }
    for problem in &args.problems {
        tasks.push(Task::attention("problem", problem)?);
    }
    let mut seen = std::collections::HashSet::new();
    tasks.retain(|task| seen.insert(task.problem.clone()));
    Ok(tasks)
}

fn print(args: &Args, entry: &Entry, out: &mut impl Write) -> io::Result<()> {
    if args.json {
        return writeln!(out, "{}", serde_json::to_string(entry).map_err(io::Error::from)?);
    }
    writeln!(out, "{}", wrap(&entry.problem.to_string(), 2))?;
    for candidate in &entry.candidates {
        let chosen = if candidate.technique == entry.chosen { "chosen" } else { "" };
        let time = candidate.milliseconds.map_or_else(|| "not timed".into(), duration);
        writeln!(out, "{}", format!("    {:<24} {time:>10}  {chosen}", candidate.technique).trim_end())?;
        for why in candidate.wrong.iter().chain(&candidate.skipped) {
            writeln!(out, "{}", wrap(why, 8))?;
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_with_a_line_for_each_technique_has_each_problem_once() {
        let args = Args { device: Select::Cpu, suite: Some(Suite::Kernels), problems: Vec::new(), json: false };
        let tasks = tasks(&args, &Device::cpu()).unwrap();
        let problems: std::collections::HashSet<_> = tasks.iter().map(|task| &task.problem).collect();
        assert!(tasks.len() > 20 && problems.len() == tasks.len());
    }
}
