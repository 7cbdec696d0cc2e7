//! Writes the inputs of attention problems and what the f64 definition makes of them, for other programs to run.
//!
//!     cargo run --release --example peer_inputs -- benches/peers/problems.json FOLDER
//!
//! The list holds objects with the keys of `regard bench --problem`. The folder gets one safetensors file for each, with `q`, `k`
//! and `v` as `regard bench` draws them and `expected` in f64, in which rows that are not checked are NaN, and `manifest.json`,
//! which says what they are. What is there already is kept, so that a second run costs nothing.

use std::error::Error;
use std::fs;
use std::path::Path;

use regard::bench::{Problem, Task};
use regard::op::Rows;
use regard::{Causal, Dtype, HostTensor};
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Map, Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [list, folder] = &arguments[..] else {
        return Err("usage: peer_inputs PROBLEMS.json FOLDER".into());
    };
    let list: Vec<Map<String, Value>> = serde_json::from_str(&fs::read_to_string(list)?)?;
    let folder = Path::new(folder);
    fs::create_dir_all(folder)?;
    let mut manifest = Vec::new();
    for problem in &list {
        let problem: Problem = text(problem).parse()?;
        let task = Task::attention("problem", &problem)?;
        let entry = describe(&problem, &task)?;
        let file = entry["file"].as_str().ok_or("a file's name is text")?;
        if !folder.join(file).exists() {
            write(&folder.join(file), &task)?;
            eprintln!("{}", folder.join(file).display());
        }
        manifest.push(entry);
    }
    fs::write(folder.join("manifest.json"), serde_json::to_string_pretty(&manifest)? + "\n")?;
    Ok(())
}

/// A problem's text from its object: a key and its value, or the key alone where the value is `true`.
fn text(problem: &Map<String, Value>) -> String {
    let part = |(key, value): (&String, &Value)| match value {
        Value::Bool(true) => key.clone(),
        Value::String(value) => format!("{key}={value}"),
        value => format!("{key}={value}"),
    };
    problem.iter().map(part).collect::<Vec<_>>().join(",")
}

/// Everything about a problem that a peer needs besides its tensors.
fn describe(problem: &Problem, task: &Task) -> Result<Value, Box<dyn Error>> {
    if problem.window.is_some() {
        return Err(format!("{problem}: a window is not in the manifest, as no peer takes one").into());
    }
    let causal = problem.causal.map(|causal| match causal {
        Causal::BottomRight => "bottom-right".to_owned(),
        Causal::TopLeft => "top-left".to_owned(),
        Causal::Past(past) => format!("past:{past}"),
    });
    Ok(json!({
        "problem": task.problem,
        "file": format!("{}.safetensors", task.problem.replace([',', ':'], "_")),
        "batch": problem.batch,
        "heads": problem.heads,
        "kv_heads": problem.kv_heads,
        "seq_q": problem.seq_q,
        "seq_kv": problem.seq_kv,
        "head_dim": problem.head_dim,
        "head_dim_v": problem.head_dim_v,
        "causal": causal,
        "dtype": problem.dtype.to_string(),
        "flops": problem.flops(),
        "tolerance_of_scale": task.tolerance.of_scale,
        "checked_rows": match task.rows() {
            Rows::All => "all".to_owned(),
            Rows::Every(n) => format!("1 in {n}"),
        },
    }))
}

fn write(path: &Path, task: &Task) -> Result<(), Box<dyn Error>> {
    let inputs = task.draw();
    let expected = task.expected(&inputs)?;
    let names = task.inputs.iter().map(|(name, _)| name.as_str());
    let tensors = names.zip(&inputs).chain([("expected", &expected)]);
    let views = tensors.map(|(name, tensor)| Ok((name, view(tensor)?))).collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    // Under another name first: a run that is stopped must not leave half a file that the next one keeps.
    let unfinished = path.with_extension("unfinished");
    serialize_to_file(views, None, &unfinished)?;
    fs::rename(unfinished, path)?;
    Ok(())
}

fn view(tensor: &HostTensor) -> Result<TensorView<'_>, Box<dyn Error>> {
    let dtype = match tensor.desc().dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::F16 => safetensors::Dtype::F16,
        Dtype::F64 => safetensors::Dtype::F64,
        other => return Err(format!("problems are f32 or f16, not {other}").into()),
    };
    Ok(TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes())?)
}
