//! `regard bench`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use git_version::git_version;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use regard::bench::latency::Latency;
use regard::bench::{Bench, CacheState, Line, Problem, Roofline, Run, Settings, Suite, Task, html};
use regard::{Cache, Device, DeviceOptions, Error, Select, Strategy};

use super::bench_output::{self, Form, Target, Trace};
use super::bench_tasks::{self, Pair, SuiteChoice, parse_pair, parse_strategy, parse_suite, parse_technique};
use super::{Ending, Result, bench_table, parse_select};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// auto, gpu, cpu, or part of an adapter's name; lavapipe is the software Vulkan device
    #[arg(long, default_value = "auto", value_parser = parse_select)]
    device: Select,
    /// quick, fa, triton, cubek, decode, memory, kernels, layer, layers, latency, or a TOML file; quick when no problem is given either
    ///
    /// A file has `problems = ["b=1,h=8,s=1024,d=64", ...]`, and [[sweep]] tables of the same keys, whose lists of values are
    /// combined: `s = [1024, 2048]`, `causal = [true, false]`.
    #[arg(long, value_name = "SUITE", value_parser = parse_suite)]
    pub suite: Option<SuiteChoice>,
    /// An attention problem of your own, such as b=1,h=8,s=1024,d=64,causal
    ///
    /// Keys: b, h, s, d; kvh (key heads), sq and skv (lengths), dv (value width), dtype=f16|f32,
    /// causal[=bottom-right|top-left|past:KEYS] (bottom-right as in FlashAttention), window=LEFT[:RIGHT],
    /// strategy=auto|fused|unfused.
    #[arg(long = "problem", value_name = "PROBLEM", verbatim_doc_comment)]
    pub problems: Vec<Problem>,
    /// auto, fused or unfused, for every attention problem
    #[arg(long, value_parser = parse_strategy)]
    pub strategy: Option<Strategy>,
    /// Forces a technique for every node of an op, such as matmul=matmul_tiled
    #[arg(long = "technique", value_name = "OP=TECHNIQUE", value_parser = parse_technique)]
    pub techniques: Vec<(String, String)>,
    /// Times each attention problem in two ways, in turns, and prints the ratio: strategies (auto, fused, unfused) or techniques
    /// of attention_fused, such as attention_lanes,split
    #[arg(long, value_name = "A,B", value_parser = parse_pair, conflicts_with_all = ["strategy", "techniques"])]
    pub compare: Option<Pair>,
    /// Measures this many runs of each problem, whatever time they take
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    runs: Option<u32>,
    /// Time for the measured runs of each problem; 1.5 by default
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    budget: Option<Duration>,
    /// Leaves the caches as the run before left them; by default they are overwritten between runs
    #[arg(long)]
    warm: bool,
    /// Runs every problem of a suite, however long it takes
    #[arg(long)]
    all: bool,
    /// One JSON object a line instead of the table
    #[arg(long)]
    json: bool,
    /// One line of comma-separated values a problem instead of the table, after one of titles
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// Writes a trace of each problem's steps to this file, for Perfetto or chrome://tracing
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Writes the JSON lines to this file too, each as soon as it is known
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Writes an HTML page with plots of these lines too
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

/// Where this program was built from; empty outside of a repository, as from a package.
const COMMIT: &str = git_version!(args = ["--always", "--dirty=-modified", "--abbrev=12"], fallback = "");

pub(crate) fn run(args: &Args, out: &mut impl Write) -> Result {
    check_files(args)?;
    let device = Device::new(&DeviceOptions { select: args.device.clone(), ..DeviceOptions::default() })?;
    if let Some(SuiteChoice::Named(Suite::Latency)) = args.suite {
        return latency(args, &device, out);
    }
    for (op, technique) in &args.techniques {
        bench_tasks::check_technique(op, technique, device.capabilities())?;
    }
    let tasks = bench_tasks::tasks(args, &device)?;
    let mut file = args.out.as_deref().map(Target::create).transpose()?;
    let mut trace = args.profile.as_deref().map(Trace::create).transpose()?;
    // Made before anything runs, so that nobody waits for a page that cannot be written.
    let mut page = args.report.as_deref().map(Target::create).transpose()?;
    let mut bench = Bench::new(device.clone(), settings(args))?;
    bench.commit = Some(COMMIT.to_owned()).filter(|commit| !commit.is_empty());
    bench.roofline = Some(Roofline::cached(&device, &Cache::User)?);
    let form = form(args);
    match form {
        Form::Table => bench_table::header(out, &device, &bench)?,
        Form::Csv => out.write_all(&bench_output::titles()?)?,
        Form::Json => {}
    }
    let progress = progress(tasks.len() as u64);
    let mut lines = Vec::new();
    for tasks in &tasks {
        progress.set_message(tasks[0].problem.clone());
        for line in measure(&mut bench, tasks)? {
            progress.suspend(|| bench_output::write(out, form, &line))?;
            if let Some(file) = &mut file {
                file.write(&format!("{}\n", serde_json::to_string(&line).map_err(io::Error::from)?))?;
            }
            trace.as_mut().map_or(Ok(()), |trace| trace.line(&line))?;
            lines.push(line);
        }
        progress.inc(1);
    }
    progress.finish_and_clear();
    trace.as_mut().map_or(Ok(()), Trace::finish)?;
    if form == Form::Table {
        bench_table::summary(out, &lines)?;
    }
    let ending = ending(&lines);
    if let Some(page) = &mut page {
        page.write(&html(&[this_run(lines, Vec::new())]))?;
    }
    Ok(ending)
}

/// Two outputs in one file would be neither. What is no ordinary file, such as /dev/null, takes any number.
fn check_files(args: &Args) -> regard::Result<()> {
    let files = [("--out", &args.out), ("--report", &args.report), ("--profile", &args.profile)];
    for (at, (first, path)) in files.iter().enumerate() {
        for (second, other) in &files[at + 1..] {
            let ordinary = path.as_ref().is_some_and(|path| !path.exists() || path.is_file());
            if let Some(path) = path.as_ref().filter(|_| path == other && ordinary) {
                return Err(Error::Parse(format!(
                    "{first} and {second} are both {}; they must differ",
                    path.display()
                )));
            }
        }
    }
    Ok(())
}

/// The suite `latency`, whose processes measure themselves.
fn latency(args: &Args, device: &Device, out: &mut impl Write) -> Result {
    let refused = [
        ("--problem", !args.problems.is_empty()),
        ("--strategy", args.strategy.is_some()),
        ("--technique", !args.techniques.is_empty()),
        ("--compare", args.compare.is_some()),
        ("--runs", args.runs.is_some()),
        ("--budget", args.budget.is_some()),
        ("--warm", args.warm),
        ("--all", args.all),
        ("--csv", args.csv),
        ("--profile", args.profile.is_some()),
    ];
    if let Some((option, _)) = refused.into_iter().find(|(_, given)| *given) {
        let why = format!("suite: latency is one layer in processes of its own, and {option} says nothing about it");
        return Err(Error::Parse(why).into());
    }
    let mut file = args.out.as_deref().map(Target::create).transpose()?;
    let mut page = args.report.as_deref().map(Target::create).transpose()?;
    let latency = super::latency::run(device, args.json, file.as_mut(), out)?;
    if let Some(page) = &mut page {
        page.write(&html(&[this_run(Vec::new(), vec![latency])]))?;
    }
    Ok(Ending::Good)
}

/// What a report says of lines that were not read from a file.
fn this_run(lines: Vec<Line>, latencies: Vec<Latency>) -> Run {
    Run { name: "this run".into(), lines, latencies }
}

fn form(args: &Args) -> Form {
    match (args.json, args.csv) {
        (true, _) => Form::Json,
        (_, true) => Form::Csv,
        _ => Form::Table,
    }
}

/// One way to compute a problem alone, or two in turns.
fn measure(bench: &mut Bench, tasks: &[Task]) -> regard::Result<Vec<Line>> {
    match tasks {
        [first, second] => Ok(bench.run_against(&[first.clone(), second.clone()])?.into()),
        tasks => tasks.iter().map(|task| bench.run(task)).collect(),
    }
}

fn settings(args: &Args) -> Settings {
    let default = Settings::default();
    let (longest_run, total) = match bench_tasks::suite(args) {
        Some(SuiteChoice::Named(suite)) => (Some(suite.longest_run()), suite.total()),
        _ => (default.longest_run, None),
    };
    Settings {
        runs: args.runs.map(|runs| runs as usize),
        budget: args.budget.unwrap_or(default.budget),
        cache: if args.warm { CacheState::Warm } else { CacheState::Cold },
        longest_run: longest_run.filter(|_| !args.all),
        total: total.filter(|_| !args.all),
        ..default
    }
}

/// A failed check fails; so does a bench in which nothing ran.
fn ending(lines: &[Line]) -> Ending {
    let failed = lines.iter().any(|line| line.failed.is_some());
    if failed || lines.iter().all(|line| line.skipped.is_some()) { Ending::CheckFailed } else { Ending::Good }
}

/// A time that makes sense to wait.
fn parse_seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds: &f64| (0.0..=86_400.0).contains(seconds));
    let seconds = seconds.ok_or_else(|| format!("`{text}` is not a number of seconds from 0 to 86400"))?;
    Ok(Duration::from_secs_f64(seconds))
}

/// A bar on stderr, when somebody looks at it.
pub(crate) fn progress(length: u64) -> ProgressBar {
    let hidden = !io::stderr().is_terminal();
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    bar.set_style(ProgressStyle::with_template("{pos}/{len} {elapsed} {msg}").expect("the template is right"));
    if !hidden {
        bar.enable_steady_tick(std::time::Duration::from_millis(250));
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_seconds() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "-1", "NaN", "inf", "1e9", "2s"] {
            assert!(parse_seconds(text).unwrap_err().contains(&format!("`{text}` is not a number")), "{text}");
        }
    }
}
