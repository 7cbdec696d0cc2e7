//! What `regard bench` measures: tasks of suites and problems, with the techniques that were asked for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regard::bench::{Problem, Refusal, Suite, SuiteFile, Task};
use regard::capabilities::Capabilities;
use regard::ops::REGISTRY;
use regard::{Device, Error, PlanOptions, Result, Strategy};

use super::bench::Args;

/// A suite of the crate's or of the user's.
#[derive(Debug, Clone)]
pub(crate) enum SuiteChoice {
    Named(Suite),
    File(PathBuf),
}

impl Default for SuiteChoice {
    fn default() -> Self {
        Self::Named(Suite::default())
    }
}

pub(super) fn parse_suite(text: &str) -> Result<SuiteChoice> {
    let path = Path::new(text);
    if path.extension().is_some_and(|extension| extension == "toml") {
        return Ok(SuiteChoice::File(path.into()));
    }
    text.parse().map(SuiteChoice::Named)
}

/// The suite that was asked for, or the default one when nothing was.
pub(super) fn suite(args: &Args) -> Option<SuiteChoice> {
    args.suite.clone().or(args.problems.is_empty().then(SuiteChoice::default))
}

fn suite_tasks(suite: &SuiteChoice, args: &Args, device: &Device) -> Result<Vec<Task>> {
    match suite {
        SuiteChoice::Named(suite) => suite.tasks(device.capabilities(), args.strategy),
        SuiteChoice::File(path) => {
            let source = path.display().to_string();
            let text = std::fs::read_to_string(path)
                .map_err(|error| Error::File { path: source.clone(), message: error.to_string() })?;
            SuiteFile::parse(&source, &text)?.tasks(args.strategy)
        }
    }
}

/// What to measure: a task alone, or two ways to compute one problem.
pub(super) fn tasks(args: &Args, device: &Device) -> Result<Vec<Vec<Task>>> {
    let mut tasks = Vec::new();
    if let Some(suite) = suite(args) {
        tasks.extend(suite_tasks(&suite, args, device)?);
    }
    for problem in &args.problems {
        let strategy = args.strategy.unwrap_or(problem.strategy);
        let task = Task::attention("problem", &Problem { strategy, ..*problem })?;
        tasks.push(Task { refusal: Refusal::Fail, ..task });
    }
    for (op, technique) in &args.techniques {
        tasks = force(tasks, op, technique);
    }
    match &args.compare {
        None => Ok(tasks.into_iter().map(|task| vec![task]).collect()),
        Some(pair) => pairs(&tasks, pair, device.capabilities()),
    }
}

/// Each attention problem in both ways.
fn pairs(tasks: &[Task], Pair(ways): &Pair, capabilities: &Capabilities) -> Result<Vec<Vec<Task>>> {
    for technique in ways.iter().filter(|way| parse_strategy(way).is_err()) {
        check_technique(FUSED, technique, capabilities)?;
    }
    let mut pairs: Vec<Vec<Task>> = Vec::new();
    for task in tasks {
        let Ok(problem) = task.problem.parse::<Problem>() else { continue };
        let [first, second] = ways.each_ref().map(|way| one_way(task, &problem, way));
        let both = vec![first?, second?];
        // A suite may have a problem in both strategies already.
        if pairs.iter().all(|known| known[0].problem != both[0].problem || known[1].problem != both[1].problem) {
            pairs.push(both);
        }
    }
    if pairs.is_empty() {
        return Err(Error::Parse("--compare is about attention problems, and there is none".into()));
    }
    Ok(pairs)
}

/// The op whose strategies and techniques are compared.
const FUSED: &str = "attention_fused";

/// A problem computed in the way that this strategy or technique says.
fn one_way(task: &Task, problem: &Problem, way: &str) -> Result<Task> {
    let strategy = parse_strategy(way);
    let of = Task::attention(&task.suite, &Problem { strategy: strategy.clone().unwrap_or_default(), ..*problem })?;
    let techniques = if strategy.is_ok() { Vec::new() } else { vec![(FUSED.to_owned(), way.to_owned())] };
    Ok(Task { refusal: task.refusal, options: PlanOptions { techniques, ..PlanOptions::default() }, ..of })
}

/// Two different ways to compute attention.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pair([String; 2]);

pub(super) fn parse_pair(text: &str) -> std::result::Result<Pair, String> {
    match text.split(',').collect::<Vec<_>>()[..] {
        [first, second] if first != second && !first.is_empty() && !second.is_empty() => {
            Ok(Pair([first.into(), second.into()]))
        }
        _ => Err(format!("`{text}` is not two different ways with a comma between, such as fused,unfused")),
    }
}

/// A technique that the device offers for some case of the op.
pub(super) fn check_technique(op: &str, technique: &str, capabilities: &Capabilities) -> Result<()> {
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

pub(crate) fn parse_strategy(text: &str) -> std::result::Result<Strategy, String> {
    match text {
        "auto" => Ok(Strategy::Auto),
        "fused" => Ok(Strategy::Fused),
        "unfused" => Ok(Strategy::Unfused),
        other => Err(format!("`{other}` is not one of auto, fused, unfused")),
    }
}

pub(super) fn parse_technique(text: &str) -> std::result::Result<(String, String), String> {
    let (op, technique) = text.split_once('=').ok_or_else(|| format!("`{text}` is not op=technique"))?;
    let ops: Vec<_> = REGISTRY.iter().map(|entry| entry.name).collect();
    if !ops.contains(&op) {
        return Err(format!("there is no op `{op}`; ops are {}", ops.join(", ")));
    }
    Ok((op.to_owned(), technique.to_owned()))
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
        let is_rival = |(op, technique): &(String, String)| op == "matmul" && technique != "matmul_tiled";
        let rivals = all.iter().filter(|task| task.options.techniques.iter().any(is_rival)).count();
        assert!(rivals > 0);
        let kept = force(all.clone(), "matmul", "matmul_tiled");
        assert_eq!(kept.len(), all.len() - rivals);
    }

    #[test]
    fn pairs_are_two_ways() {
        assert_eq!(parse_pair("fused,split"), Ok(Pair(["fused".into(), "split".into()])));
        for text in ["fused", "fused,fused", "fused,", "a,b,c", ""] {
            assert!(parse_pair(text).unwrap_err().contains("is not two different ways"), "{text}");
        }
    }

    #[test]
    fn one_way_is_a_strategy_or_a_technique() {
        let problem: Problem = "b=1,h=2,s=8,d=4,strategy=fused".parse().unwrap();
        let task = Task::attention("problem", &problem).unwrap();
        let way = |way: &str| one_way(&task, &problem, way).unwrap();
        assert_eq!(way("unfused").problem, "b=1,h=2,s=8,d=4,strategy=unfused");
        assert!(way("unfused").options.techniques.is_empty());
        assert_eq!(way("split").problem, "b=1,h=2,s=8,d=4");
        assert_eq!(way("split").options.techniques, [("attention_fused".into(), "split".into())]);
    }
}
