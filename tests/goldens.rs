//! Every file in `tests/goldens` and in the folder named by `REGARD_GOLDENS`, on every device, fused and unfused, against
//! its `f64.*` tensors at its own tolerance; and files that are broken.

mod common;
#[path = "common/goldens.rs"]
mod files;

use std::path::Path;
use std::process::ExitCode;

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::{Completion, Trial};
use regard::nn::golden::Golden;
use regard::{Plan, Strategy};

fn main() -> ExitCode {
    let mut trials = Vec::new();
    // Models are in tests/minilm.rs.
    for file in files::files().into_iter().filter(|file| !file.is_model()) {
        let name = file.name();
        if let Some(reason) = Golden::open(&file.path).ok().and_then(|golden| golden.lacking()) {
            trials.push(Trial::ignorable_test(name, move || Ok(Completion::ignored_with(reason))));
            continue;
        }
        for strategy in [Strategy::Fused, Strategy::Unfused] {
            let path = file.path.clone();
            trials.extend(each_device(&format!("{name}/{strategy:?}"), move |subject| check(subject, &path, strategy)));
        }
    }
    trials.extend(broken_files());
    run(trials)
}

fn check(subject: &Subject, path: &Path, strategy: Strategy) -> Verdict {
    let golden = Golden::open(path)?;
    let layer = match golden.graph(strategy) {
        // Heads too wide for the fused kernel are no failure of it, and no pass either.
        Err(error) if strategy == Strategy::Fused && error.to_string().contains("the fused kernel takes head_dim") => {
            return Ok(Completion::ignored_with(error.to_string()));
        }
        layer => layer?,
    };
    let mut plan = Plan::new(&subject.device, &layer.graph)?;
    let inputs: Vec<_> = layer.inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let checks = golden.compare(&plan.run(&inputs)?)?;
    let mut compared = 0;
    for (name, comparison) in &checks {
        // Scores and weights are what fused attention does not have; all else must be there.
        let Some(comparison) = comparison else {
            let intermediate = ["scores", "attention", "p", "weights"].contains(&name.as_str());
            if strategy == Strategy::Fused && intermediate {
                continue;
            }
            return Err(format!("`f64.{name}` has no counterpart among the outputs").into());
        };
        compared += 1;
        if !comparison.passed() {
            return Err(format!("{}: {name}, {strategy:?} on {}: {comparison}", golden.path, subject.name).into());
        }
    }
    if compared == 0 { Err("the file expects nothing that was computed".into()) } else { Ok(Completion::Completed) }
}

/// What is wrong with a file, how to break a good one, and what the message must say.
type Broken = (&'static str, fn(Vec<u8>) -> Vec<u8>, &'static [&'static str]);

const BROKEN: &[Broken] = &[
    ("empty", |_| Vec::new(), &["broken_empty"]),
    ("truncated in the header", |bytes| bytes[..100].to_vec(), &["broken_truncated"]),
    ("truncated in the data", |bytes| bytes[..bytes.len() - 7].to_vec(), &["broken_truncated"]),
    ("header of 2^60 bytes", |bytes| [&(1_u64 << 60).to_le_bytes(), &bytes[8..]].concat(), &["broken_header"]),
    ("not JSON", |bytes| [&bytes[..8], &vec![b'x'; bytes.len() - 8][..]].concat(), &["broken_not"]),
    ("integer weight", |bytes| replace(bytes, "\"F32\"", "\"I32\""), &["in.K", "I32", "float or bool"]),
    ("unknown kind", |bytes| replace(bytes, "seed2_mha\\\"", "seed9_mha\\\""), &["seed9_mha", "unknown", "seed2_mha"]),
    ("missing weight", |bytes| replace(bytes, "w.lin_K.weight", "w.lin_X.weight"), &["w.lin_K.weight", "missing"]),
    ("heads that do not divide", |bytes| replace(bytes, "\\\"n_head\\\": 4", "\\\"n_head\\\": 3"), &["20", "3 heads"]),
    ("no case", |bytes| replace(bytes, "\"case\"", "\"cage\""), &["no `case`"]),
];

/// The same for other files.
const BROKEN_KERAS: &[(&str, Broken)] = &[
    (DOT, ("another class", |bytes| replace(bytes, "\\\"Attention\\\"", "\\\"Attrition\\\""), &["Keras Attrition"])),
    (DOT, ("an unknown mask", |bytes| replace(bytes, "in.value_mask", "in.value_cask"), &["`in.value_cask` is none"])),
    (GQA, ("an unknown weight", |bytes| replace(bytes, "w.key.bias", "w.kex.bias"), &["`w.kex.bias` is none"])),
    (
        GQA,
        (
            "key heads that do not divide",
            |bytes| replace(bytes, "value_heads\\\": 4", "value_heads\\\": 3"),
            &["3 heads"],
        ),
    ),
    (
        GQA,
        ("a mask of other sizes", |bytes| replace(bytes, "[2, 7, 9]", "[2, 9, 7]"), &["attention_mask", "[2, 7, 9]"]),
    ),
];

const SEED2: &str = "seed2_mha__cross_q1_k129_d20_h4";
const DOT: &str = "keras_attention__dot_masks_7x33_d64_v12";
const GQA: &str = "keras_gqa__cross_7x9_q4_kv4_d40_mask";

fn broken_files() -> impl Iterator<Item = Trial> {
    let all = BROKEN.iter().map(|broken| (SEED2, *broken)).chain(BROKEN_KERAS.iter().copied());
    all.map(|(good, (what, damage, messages))| {
        Trial::test(format!("broken/{what}"), move || {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
            let bytes = std::fs::read(folder.join(format!("{good}.safetensors")))?;
            let damaged = damage(bytes.clone());
            assert_ne!(bytes, damaged, "the damage must change the file");
            let name = format!("broken_{}.safetensors", what.replace([' ', '^'], "_"));
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
            std::fs::write(&path, damaged)?;
            let outcome = Golden::open(&path).and_then(|golden| golden.graph(Strategy::Auto));
            let Err(error) = outcome else { return Err("the damaged file was accepted".into()) };
            let message = error.to_string();
            let lacking = [path.to_str().expect("the path is UTF-8")].into_iter().chain(messages.iter().copied());
            match lacking.into_iter().find(|part| !message.contains(part)) {
                Some(part) => Err(format!("`{message}` does not say `{part}`").into()),
                None => Ok(()),
            }
        })
    })
}

/// The file with the first occurrence of some text in its header replaced by another of the same length.
fn replace(bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("the text is in the header");
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}
