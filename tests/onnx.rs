//! Every file in `tests/onnx` and in the folder named by `REGARD_ONNX`, on every device, fused and unfused, against what it
//! expects; an operator that this crate lacks is a counted skip; and files that are broken.

mod common;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::{Completion, Trial};
use regard::nn::onnx::OnnxNode;
use regard::{Device, HostTensor, Plan, Strategy};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for path in files() {
        let name = path.file_stem().expect("a file has a name").to_string_lossy().into_owned();
        match OnnxNode::open(&path) {
            Err(error) => trials.push(Trial::test(name, move || Err(error.into()))),
            Ok(node) if !node.is_known() => {
                let reason = format!("operator {}", node.operator);
                trials.push(Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason))));
            }
            Ok(node) => trials.extend(node_trials(&name, &node)),
        }
    }
    trials.extend(broken_files());
    trials.extend(controls());
    run(trials)
}

fn files() -> Vec<PathBuf> {
    let folders = [Some(own_folder()), std::env::var_os("REGARD_ONNX").map(PathBuf::from)];
    let mut files = Vec::new();
    for folder in folders.into_iter().flatten() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let paths = entries.map(|entry| entry.expect("a readable folder").path());
        files.extend(paths.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors")));
    }
    assert!(!files.is_empty(), "there are no node files");
    files.sort();
    files
}

fn own_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/onnx")
}

fn node_trials(name: &str, node: &OnnxNode) -> Vec<Trial> {
    let trials = [Strategy::Fused, Strategy::Unfused].map(|strategy| {
        let name = format!("{name}/{strategy:?}");
        // Heads too wide for the fused kernel are no failure of it, and no pass either.
        let refused = node.graph(strategy).err().map(|error| error.to_string());
        match refused.filter(|error| error.contains("the fused kernel takes")) {
            Some(reason) => {
                vec![Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason)))]
            }
            None => {
                let node = node.clone();
                each_device(&name, move |subject| check(subject, &node, strategy))
            }
        }
    });
    trials.into_iter().flatten().collect()
}

fn check(subject: &Subject, node: &OnnxNode, strategy: Strategy) -> Verdict {
    let built = node.graph(strategy)?;
    let mut plan = Plan::new(&subject.device, &built.graph)?;
    let inputs: Vec<_> = built.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let comparisons = node.compare(&plan.run(&inputs)?)?;
    for (what, comparison) in &comparisons {
        if !comparison.passed() {
            return Err(format!("{}: {what}, {strategy:?} on {}: {comparison}", node.path, subject.name).into());
        }
    }
    if comparisons.is_empty() { Err("the file expects nothing".into()) } else { Ok(Completion::Completed) }
}

/// An output that is off, and how: the comparison must say so.
type Off = (&'static str, &'static str, fn(f32) -> f32);

const OFF: &[Off] = &[
    (PAST, "Y", |y| y + 1e-4),
    (PAST, "Y", |_| f32::NAN),
    (PAST, "present_key", |key| f32::from_bits(key.to_bits() ^ 1)),
    (HALF, "Y", |y| y + 2e-2),
];

fn controls() -> impl Iterator<Item = Trial> {
    OFF.iter().enumerate().map(|(number, &(file, output, change))| {
        Trial::test(format!("control/{number}/{file}/{output}"), move || {
            let node = OnnxNode::open(&own_folder().join(format!("{file}.safetensors")))?;
            let built = node.graph(Strategy::Auto)?;
            let inputs: Vec<_> = built.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
            let mut outputs = Plan::new(&Device::cpu(), &built.graph)?.run(&inputs)?;
            let value = &outputs[output];
            let mut data: Vec<f32> = value.to_f64().into_iter().map(|x| x as f32).collect();
            let last = data.last_mut().ok_or("the output is empty")?;
            *last = change(*last);
            let changed = HostTensor::f32(value.shape(), data)?.cast(value.desc().dtype);
            outputs.insert(output.into(), changed);
            let failed = node.compare(&outputs)?.into_iter().filter(|(_, comparison)| !comparison.passed());
            let failed: Vec<String> = failed.map(|(what, _)| what).collect();
            if failed.iter().any(|what| what.ends_with(&format!(".{output}"))) {
                return Ok(());
            }
            Err(format!("the changed `{output}` passed; what failed is {failed:?}").into())
        })
    })
}

/// A file, what is replaced in its header by text of the same length, and what the message must say.
type Broken = (&'static str, &'static str, &'static str, &'static [&'static str]);

const CAUSAL: &str = "test_attention_3d_causal";
const WINDOW: &str = "test_attention_local_window";
const PAST: &str = "test_attention_4d_with_past_and_present";
const HALF: &str = "test_attention_4d_causal_fp16";
const NONPAD: &str = "test_attention_4d_gqa_causal_nonpad_decode";

const BROKEN: &[Broken] = &[
    (CAUSAL, "\"case\"", "\"cage\"", &["no `case`"]),
    (
        CAUSAL,
        "\\\"op_type\\\": \\\"Attention\\\"",
        "\\\"op_type\\\": \\\"Attrition\\\"",
        &["Attrition", "known are Attention"],
    ),
    (CAUSAL, "\\\"opset\\\": 23", "\\\"opset\\\": 22", &["opset 22", "23 to 25"]),
    (CAUSAL, "is_causal", "is_casual", &["Attention-23 has no attribute `is_casual`"]),
    (CAUSAL, "\\\"is_causal\\\": 1", "\\\"is_causal\\\": 2", &["`is_causal` is 2", "0 to 1"]),
    (CAUSAL, "\\\"q_num_heads\\\": 3", "\\\"q_num_heads\\\": 5", &["5 heads"]),
    (CAUSAL, "\\\"q_num_heads\\\": 3", "\\\"q_num_heads\\\": 0", &["`q_num_heads` is 0"]),
    (CAUSAL, "\"in.K\"", "\"in.X\"", &["`in.X` is in no input slot"]),
    (CAUSAL, "\"out.Y\"", "\"in.Q2\"", &["`in.Q2` is in no input slot"]),
    (WINDOW, "\\\"opset\\\": 25", "\\\"opset\\\": 24", &["Attention-24 has no attribute `left_window_size`"]),
    (WINDOW, "\\\"left_window_size\\\": 2", "\\\"left_window_size\\\":-2", &["`left_window_size` is -2", "from -1"]),
    (PAST, "\\\"past_key\\\", \\\"past_value\\\"]", "\\\"past_key\\\", \\\"\\\"          ]", &["past_value"]),
    (NONPAD, "\\\"opset\\\": 24", "\\\"opset\\\": 23", &["Attention-23 has no slot for `nonpad_kv_seqlen`"]),
    (NONPAD, "\"I64\"", "\"F64\"", &["nonpad_kv_seqlen is F64"]),
];

fn broken_files() -> impl Iterator<Item = Trial> {
    BROKEN.iter().enumerate().map(|(number, (file, from, to, messages))| {
        Trial::test(format!("broken/{file}/{to}"), move || {
            assert_eq!(from.len(), to.len());
            let mut bytes = std::fs::read(own_folder().join(format!("{file}.safetensors")))?;
            let at = bytes.windows(from.len()).position(|window| window == from.as_bytes());
            let at = at.ok_or_else(|| format!("the file does not say {from}"))?;
            bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("broken_onnx_{number}.safetensors"));
            std::fs::write(&path, bytes)?;
            let outcome = OnnxNode::open(&path).and_then(|node| node.graph(Strategy::Auto));
            let Err(error) = outcome else { return Err("the damaged file was accepted".into()) };
            let message = error.to_string();
            let wanted = [path.to_str().expect("the path is UTF-8")].into_iter().chain(messages.iter().copied());
            match wanted.into_iter().find(|part| !message.contains(part)) {
                Some(part) => Err(format!("`{message}` does not say `{part}`").into()),
                None => Ok(()),
            }
        })
    })
}
