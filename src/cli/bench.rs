//! `regard bench`.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;

use git_version::git_version;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use regard::bench::{Bench, Line, Problem, Refusal, Settings, Suite, Task};
use regard::capabilities::Capabilities;
use regard::ops::REGISTRY;
use regard::{Device, DeviceOptions, Error, Select, Strategy};

use super::{Ending, Failure, Result, bench_table, parse_select};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// auto, gpu, cpu, or part of an adapter's name; lavapipe is the software Vulkan device
    #[arg(long, default_value = "auto", value_parser = parse_select)]
    device: Select,
    /// quick, kernels, layer, layers or decode; quick when no problem is given either
    #[arg(long)]
    suite: Option<Suite>,
    /// An attention problem of your own, such as b=1,h=8,s=1024,d=64,causal
    ///
    /// Keys: b, h, s, d; kvh (key heads), sq and skv (lengths), dv (value width), dtype=f16|f32,
    /// causal[=bottom-right|top-left|past:KEYS] (bottom-right as in FlashAttention), window=LEFT[:RIGHT],
    /// strategy=auto|fused|unfused.
    #[arg(long = "problem", value_name = "PROBLEM", verbatim_doc_comment)]
    problems: Vec<Problem>,
    /// auto, fused or unfused, for every attention problem
    #[arg(long, value_parser = parse_strategy)]
    strategy: Option<Strategy>,
    /// Forces a technique for every node of an op, such as matmul=matmul_tiled
    #[arg(long = "technique", value_name = "OP=TECHNIQUE", value_parser = parse_technique)]
    techniques: Vec<(String, String)>,
    /// One JSON object a line instead of the table
    #[arg(long)]
    json: bool,
    /// Writes the JSON lines to this file too
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Where this program was built from; empty outside of a repository, as from a package.
const COMMIT: &str = git_version!(args = ["--always", "--dirty=-modified", "--abbrev=12"], fallback = "");

pub(crate) fn parse_strategy(text: &str) -> std::result::Result<Strategy, String> {
    match text {
        "auto" => Ok(Strategy::Auto),
        "fused" => Ok(Strategy::Fused),
        "unfused" => Ok(Strategy::Unfused),
        other => Err(format!("`{other}` is not one of auto, fused, unfused")),
    }
}

fn parse_technique(text: &str) -> std::result::Result<(String, String), String> {
    let (op, technique) = text.split_once('=').ok_or_else(|| format!("`{text}` is not op=technique"))?;
    let ops: Vec<_> = REGISTRY.iter().map(|entry| entry.name).collect();
    if !ops.contains(&op) {
        return Err(format!("there is no op `{op}`; ops are {}", ops.join(", ")));
    }
    Ok((op.to_owned(), technique.to_owned()))
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> Result {
    let device = Device::new(&DeviceOptions { select: args.device.clone(), ..DeviceOptions::default() })?;
    for (op, technique) in &args.techniques {
        check_technique(op, technique, device.capabilities())?;
    }
    let tasks = tasks(args, &device)?;
    let mut file = args.out.as_ref().map(create).transpose()?;
    if !args.json {
        bench_table::header(out, &device)?;
    }
    let total = suite(args).and_then(Suite::total);
    let mut bench = Bench::new(device, Settings { total, ..Settings::default() });
    bench.commit = Some(COMMIT.to_owned()).filter(|commit| !commit.is_empty());
    let progress = progress(tasks.len() as u64);
    let mut lines = Vec::new();
    for task in &tasks {
        progress.set_message(task.problem.clone());
        let line = bench.run(task)?;
        let json = serde_json::to_string(&line).map_err(io::Error::from)?;
        progress.suspend(|| if args.json { writeln!(out, "{json}") } else { bench_table::line(out, &line) })?;
        out.flush()?;
        if let Some(file) = &mut file {
            writeln!(file, "{json}")?;
            file.flush()?;
        }
        progress.inc(1);
        lines.push(line);
    }
    progress.finish_and_clear();
    if !args.json {
        bench_table::summary(out, &lines)?;
    }
    Ok(ending(&lines))
}

/// A failed check fails; so does a bench in which nothing ran.
fn ending(lines: &[Line]) -> Ending {
    let failed = lines.iter().any(|line| line.failed.is_some());
    if failed || lines.iter().all(|line| line.skipped.is_some()) { Ending::CheckFailed } else { Ending::Good }
}

/// The suite that was asked for, or the default one when nothing was.
fn suite(args: &Args) -> Option<Suite> {
    args.suite.or(args.problems.is_empty().then(Suite::default))
}

fn tasks(args: &Args, device: &Device) -> regard::Result<Vec<Task>> {
    let mut tasks = Vec::new();
    if let Some(suite) = suite(args) {
        tasks.extend(suite.tasks(device.capabilities(), args.strategy)?);
    }
    for problem in &args.problems {
        let strategy = args.strategy.unwrap_or(problem.strategy);
        let task = Task::attention("problem", &Problem { strategy, ..*problem })?;
        tasks.push(Task { refusal: Refusal::Fail, ..task });
    }
    for (op, technique) in &args.techniques {
        tasks = force(tasks, op, technique);
    }
    Ok(tasks)
}

/// A technique that the device offers for some case of the op.
fn check_technique(op: &str, technique: &str, capabilities: &Capabilities) -> regard::Result<()> {
    let cases = REGISTRY.iter().filter(|entry| entry.name == op).flat_map(|entry| (entry.cases)());
    let techniques = cases.flat_map(|case| case.op.techniques(&case.descs(), capabilities));
    let mut names: BTreeSet<_> = techniques.map(|technique| technique.name()).collect();
    // Several steps in the place of one.
    names.extend(if op == "attention_fused" { &["split", "unfused"][..] } else { &[] });
    if names.contains(technique) {
        return Ok(());
    }
    let names: Vec<_> = names.into_iter().collect();
    Err(Error::Parse(format!("{op} has no technique `{technique}` on this device; there are: {}", names.join(", "))))
}

/// Forces a technique. Lines of the suite `kernels` that are about another technique of that op are left out.
fn force(tasks: Vec<Task>, op: &str, technique: &str) -> Vec<Task> {
    let about_another =
        |task: &Task| task.options.techniques.iter().any(|(own, other)| own == op && other != technique);
    let all_are = tasks.iter().all(about_another);
    let kept = tasks.into_iter().filter(|task| all_are || !about_another(task));
    kept.map(|mut task| {
        task.options.techniques.retain(|(own, _)| own != op);
        task.options.techniques.push((op.to_owned(), technique.to_owned()));
        task
    })
    .collect()
}

fn create(path: &PathBuf) -> std::result::Result<BufWriter<File>, Failure> {
    let file = File::create(path);
    let fail = |error: io::Error| Error::File { path: path.display().to_string(), message: error.to_string() };
    Ok(BufWriter::new(file.map_err(fail)?))
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
    fn techniques_are_op_and_name() {
        assert_eq!(parse_technique("matmul=x").unwrap(), ("matmul".into(), "x".into()));
        assert!(parse_technique("matmul").unwrap_err().contains("is not op=technique"));
        let capabilities = Capabilities::cpu();
        assert!(check_technique("matmul", "matmul_native", &capabilities).is_ok());
        let error = check_technique("matmul", "matmul_tiled", &capabilities).unwrap_err();
        assert!(error.to_string().contains("there are: matmul_native"), "{error}");
        assert!(parse_technique("conv=x").unwrap_err().contains("ops are matmul, softmax"));
    }

    #[test]
    fn a_forced_technique_leaves_out_its_rivals() {
        let capabilities = Capabilities::baseline();
        let all = Suite::Kernels.tasks(&capabilities, None).unwrap();
        let rivals =
            all.iter().filter(|task| task.options.techniques[..] == [("matmul".into(), "matmul_vector".into())]);
        let rivals = rivals.count();
        assert!(rivals > 0);
        let kept = force(all.clone(), "matmul", "matmul_tiled");
        assert_eq!(kept.len(), all.len() - rivals);
    }
}
