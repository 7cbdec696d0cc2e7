//! `regard run FILE.safetensors`: the layer in a golden-style file, with the file's weights and inputs; or a model, with the
//! file's sentences.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use regard::compare::Comparison;
use regard::models::SentenceEncoder;
use regard::nn::golden::Golden;
use regard::plan::Outputs;
use regard::{Device, DeviceOptions, Dtype, Error, HostTensor, Plan, Select, Strategy};
use serde_json::{Map, Value, json};

use super::bench_tasks::parse_strategy;
use super::{Ending, Result, parse_select};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A layer with its weights (w.*) and inputs (in.*), and a `case` in its metadata
    file: PathBuf,
    /// Folder with config.json, tokenizer.json and model.safetensors, for a file of kind minilm, which has no weights
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// auto, gpu, cpu, or part of an adapter's name
    #[arg(long, default_value = "auto", value_parser = parse_select)]
    device: Select,
    /// auto, fused or unfused; unfused also gives scores and weights
    #[arg(long, default_value = "auto", value_parser = parse_strategy)]
    strategy: Strategy,
    /// Writes the outputs to this safetensors file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result {
    let golden = Golden::open(&args.file)?;
    let Run { device, outputs, description } = match &args.model {
        Some(folder) if golden.is_model() => model(args, &golden, folder)?,
        None if golden.is_model() => {
            let fetch = "scripts/fetch-minilm fetches all-MiniLM-L6-v2";
            let message = format!("kind `{}` needs its model's folder: --model DIR; {fetch}", golden.kind);
            return Err(Error::File { path: golden.path, message }.into());
        }
        folder => layer(args, &golden, folder.as_deref())?,
    };
    let checks = golden.compare(&outputs)?;
    if let Some(path) = &args.out {
        save(path, &outputs)?;
    }
    if args.json {
        writeln!(out, "{}", as_json(&golden, &device, &outputs, &checks))?;
    } else {
        writeln!(out, "{} ({})\ndevice: {device}\n{description}", golden.path, golden.kind)?;
        print_outputs(out, &outputs, &checks)?;
    }
    let failed = checks.iter().any(|(_, check)| check.as_ref().is_some_and(|check| !check.passed()));
    Ok(if failed { Ending::CheckFailed } else { Ending::Good })
}

/// What came of a file.
struct Run {
    device: Device,
    outputs: Outputs,
    /// What was run.
    description: String,
}

fn open(args: &Args) -> regard::Result<Device> {
    Device::new(&DeviceOptions { select: args.device.clone(), ..DeviceOptions::default() })
}

fn layer(args: &Args, golden: &Golden, model: Option<&Path>) -> regard::Result<Run> {
    let layer = golden.graph(args.strategy)?;
    if let Some(folder) = model {
        let message = format!("kind `{}` is no model, and --model is {}", golden.kind, folder.display());
        return Err(Error::File { path: golden.path.clone(), message });
    }
    let device = open(args)?;
    let mut plan = Plan::new(&device, &layer.graph)?;
    let inputs: Vec<_> = layer.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
    Ok(Run { outputs: plan.run(&inputs)?, description: plan.describe().to_string(), device })
}

fn model(args: &Args, golden: &Golden, folder: &Path) -> regard::Result<Run> {
    let device = open(args)?;
    let mut encoder = SentenceEncoder::open(&device, folder)?;
    Ok(Run { outputs: encoder.run_golden(golden)?, description: format!("model: {}", folder.display()), device })
}

type Checks = [(String, Option<Comparison>)];

fn print_outputs(out: &mut dyn Write, outputs: &Outputs, checks: &Checks) -> std::io::Result<()> {
    for (name, tensor) in outputs {
        writeln!(out, "{name} = {}: {}", tensor.desc(), head(tensor))?;
    }
    for (name, check) in checks {
        match check {
            Some(check) if check.passed() => writeln!(out, "{name}: agrees with the file, {check}")?,
            Some(check) => writeln!(out, "{name}: DIFFERS from the file, {check}")?,
            None => writeln!(out, "{name}: not compared, this strategy does not expose it (see --strategy unfused)")?,
        }
    }
    if checks.is_empty() {
        writeln!(out, "the file expects nothing, so nothing was compared")?;
    }
    Ok(())
}

/// The first elements.
fn head(tensor: &HostTensor) -> String {
    let values = tensor.to_f64();
    let first: Vec<_> = values.iter().take(6).map(|x| format!("{x:.6}")).collect();
    format!("[{}{}]", first.join(", "), if values.len() > first.len() { ", …" } else { "" })
}

fn as_json(golden: &Golden, device: &Device, outputs: &Outputs, checks: &Checks) -> Value {
    let output = |tensor: &HostTensor| {
        let desc = tensor.desc();
        json!({ "dtype": desc.dtype.to_string(), "shape": desc.shape, "values": tensor.to_f64() })
    };
    let check = |check: &Option<Comparison>| match check {
        Some(check) => {
            json!({ "passed": check.passed(), "worst_error": check.worst_error, "tolerance": check.worst_tolerance })
        }
        None => Value::Null,
    };
    let outputs: Map<_, _> = outputs.iter().map(|(name, tensor)| (name.clone(), output(tensor))).collect();
    let checks: Map<_, _> = checks.iter().map(|(name, outcome)| (name.clone(), check(outcome))).collect();
    json!({ "file": golden.path, "kind": golden.kind, "device": device.name(), "checks": checks, "outputs": outputs })
}

fn save(path: &Path, outputs: &Outputs) -> regard::Result<()> {
    let fail = |message: String| Error::File { path: path.display().to_string(), message };
    let mut views = HashMap::new();
    for (name, tensor) in outputs {
        let dtype = match tensor.desc().dtype {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::F64 => safetensors::Dtype::F64,
            Dtype::Bool => safetensors::Dtype::BOOL,
            Dtype::U32 => safetensors::Dtype::U32,
            Dtype::BF16 => safetensors::Dtype::BF16,
            Dtype::I8 => safetensors::Dtype::I8,
        };
        let view = safetensors::tensor::TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes());
        views.insert(name.clone(), view.map_err(|error| fail(error.to_string()))?);
    }
    safetensors::serialize_to_file(views, None, path).map_err(|error| fail(error.to_string()))
}
