//! Tuning: what it measures is right and kept, plans take it and say so, and files that are not this device's count for nothing.

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use common::{Subject, Verdict, each_device, each_of, run};
use libtest_mimic::Completion;
use regard::capabilities::Backend;
use regard::ops::MatMul;
use regard::tuning::TuningFile;
use regard::{Attention, Cache, Device, DeviceOptions, Dtype, Graph, Plan, PlanOptions, Result, Select, TensorDesc};

fn main() -> ExitCode {
    let mut trials = each_of(&[Backend::Gpu], "a tuned plan takes what was fastest", tuned_plans);
    trials.extend(each_of(&[Backend::Gpu], "files that count for nothing", other_files));
    trials.extend(each_device("a device without a folder", without_a_folder));
    run(trials)
}

/// A folder of the trial's own, taken away at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(subject: &Subject, name: &str) -> Self {
        let name = format!("regard-{name}-{}-{}", std::process::id(), subject.name.replace(' ', "-"));
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn open(subject: &Subject, cache: Cache) -> Result<Device> {
    let select = if subject.name == "cpu" { Select::Cpu } else { Select::Named(subject.device.name()) };
    Device::new(&DeviceOptions { select, cache, ..DeviceOptions::default() })
}

/// A product, attention and softmax, of which the last two have several techniques.
fn graph(rows: usize) -> Result<Graph> {
    let mut graph = Graph::new();
    let x = graph.input("x", TensorDesc::new(Dtype::F32, [1, 2, rows, 16]))?;
    let w = graph.input("w", TensorDesc::new(Dtype::F32, [16, 16]))?;
    let h = graph.matmul(x, w, None, MatMul::default())?;
    let y = graph.attention(h, h, x, &Attention::default())?;
    let y = graph.softmax(y, 1.0)?;
    graph.output("y", y)?;
    Ok(graph)
}

/// Technique and whether it was tuned, by op.
fn choices(device: &Device, graph: &Graph, options: &PlanOptions) -> Result<Vec<(&'static str, &'static str, bool)>> {
    let steps = Plan::with_options(device, graph, options)?.describe().steps;
    Ok(steps.iter().map(|step| (step.op, step.technique, step.tuned)).collect())
}

fn tuned_plans(subject: &Subject) -> Verdict {
    let folder = Folder::new(subject, "tuned");
    let device = open(subject, Cache::Folder(folder.0.clone()))?;
    let TuningFile::Missing(path) = device.tuning_file() else { panic!("{:?}", device.tuning_file()) };
    let untuned = choices(&device, &graph(20)?, &PlanOptions::default())?;
    assert!(untuned.iter().all(|(.., tuned)| !tuned), "{untuned:?}");
    let tuning = device.tune(&graph(20)?)?;
    assert_eq!(tuning.not_kept, None);
    for op in ["attention_fused", "softmax"] {
        let entry = tuning.entries.iter().find(|entry| entry.problem.op == op).expect(op);
        assert!(entry.candidates.len() > 1, "{entry:?}");
        assert!(entry.candidates.iter().all(|candidate| candidate.wrong.is_none()), "{entry:?}");
        let time = |name: &str| entry.candidates.iter().find(|c| c.technique == name).and_then(|c| c.milliseconds);
        let chosen = time(&entry.chosen).expect("the chosen one was timed");
        // The first stays where others are hardly faster.
        let least = entry.candidates.iter().filter_map(|c| c.milliseconds).fold(f64::INFINITY, f64::min);
        assert!(chosen * 0.95 <= least, "{entry:?}");
    }
    // The next process, and a problem of the same class.
    for (device, rows) in [(&device, 20), (&open(subject, Cache::Folder(folder.0.clone()))?, 31)] {
        assert_eq!(device.tuning_file(), TuningFile::Read(path.clone(), tuning.entries.len()));
        let tuned = choices(device, &graph(rows)?, &PlanOptions::default())?;
        // The product has one technique; attention comes before the softmax, in one step or several.
        let (op, technique, is_tuned) = tuned.last().expect("three steps at least");
        let of_op = || tuning.entries.iter().filter(|entry| entry.problem.op == *op);
        assert!(*is_tuned && of_op().any(|entry| entry.chosen == *technique), "{op} {technique}");
        assert!(tuned[1..].iter().all(|(.., is_tuned)| *is_tuned), "{tuned:?}");
        let text = Plan::preview(device, &graph(rows)?, &PlanOptions::default())?.to_string();
        assert!(text.contains("(tuned)"), "{text}");
        let forced = choices(device, &graph(rows)?, &PlanOptions::technique("softmax", "softmax_row"))?;
        assert!(forced.contains(&("softmax", "softmax_row", false)), "{forced:?}");
        // Another class.
        assert_eq!(choices(device, &graph(3)?, &PlanOptions::default())?.iter().filter(|(.., t)| *t).count(), 0);
    }
    Ok(Completion::Completed)
}

fn other_files(subject: &Subject) -> Verdict {
    let folder = Folder::new(subject, "untuned");
    let cache = Cache::Folder(folder.0.clone());
    let TuningFile::Missing(path) = open(subject, cache.clone())?.tuning_file() else { panic!("a file is there") };
    open(subject, cache.clone())?.tune(&graph(20)?)?;
    let whole = fs::read_to_string(&path)?;
    let untuned = choices(&open(subject, Cache::None)?, &graph(20)?, &PlanOptions::default())?;
    let name = serde_json::to_string(&subject.device.name())?;
    for (text, why) in [
        (whole[1..].to_owned(), "it is damaged"),
        (whole[..whole.len() - 2].to_owned(), "it is damaged"),
        (whole.replace(&name, "\"another\""), "it was measured on `another`, this is"),
        (whole.replace("regard.tuning/1", "regard.tuning/9"), "its schema is `regard.tuning/9`"),
        (String::new(), "it is damaged"),
    ] {
        fs::write(&path, text)?;
        let device = open(subject, cache.clone())?;
        let TuningFile::Ignored(_, reason) = device.tuning_file() else { panic!("{}", device.tuning_file()) };
        assert!(reason.starts_with(why), "{reason}");
        assert_eq!(choices(&device, &graph(20)?, &PlanOptions::default())?, untuned);
    }
    // Shaders that have changed since.
    let other = |hash: &str| hash.replace(|c: char| c.is_ascii_hexdigit(), "0");
    let changed: Vec<String> = whole
        .lines()
        .map(|line| if line.contains("\"shader\": \"") { other_hash(line, other) } else { line.to_owned() })
        .collect();
    fs::write(&path, changed.join("\n"))?;
    let device = open(subject, cache)?;
    assert!(matches!(device.tuning_file(), TuningFile::Read(..)), "{}", device.tuning_file());
    assert_eq!(choices(&device, &graph(20)?, &PlanOptions::default())?, untuned);
    Ok(Completion::Completed)
}

/// A line `"shader": "…"` with another hash.
fn other_hash(line: &str, other: impl Fn(&str) -> String) -> String {
    let (key, value) = line.split_once(": ").expect("a key and a value");
    format!("{key}: {}", other(value))
}

fn without_a_folder(subject: &Subject) -> Verdict {
    let device = open(subject, Cache::None)?;
    assert_eq!(device.tuning_file(), TuningFile::Nowhere);
    let tuning = device.tune(&graph(20)?)?;
    // The CPU backend has one technique for each of these ops; what it has more are whole lowerings.
    let tuned = choices(&device, &graph(20)?, &PlanOptions::default())?;
    assert_eq!(tuned.iter().any(|(.., tuned)| *tuned), !tuning.entries.is_empty(), "{tuned:?}");
    assert_eq!(device.tuning_file(), TuningFile::Nowhere);
    Ok(Completion::Completed)
}
