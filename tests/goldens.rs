//! Every file in `tests/goldens` and in the folder named by `REGARD_GOLDENS`, on every device, with run-time checks or without,
//! fused and unfused, against all that it expects, `f64.*` tensors at its own tolerance; and files that are broken.

mod common;
#[path = "common/goldens.rs"]
mod files;
#[path = "common/turns.rs"]
mod turns;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::{Completion, Failed, Trial};
use regard::nn::golden::Golden;
use regard::weights::WeightFile;
use regard::{Dtype, HostTensor, Plan, Strategy};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use turns::in_turn;

fn main() -> ExitCode {
    let (mut trials, mut number) = (Vec::new(), 0);
    // Models are in tests/minilm.rs.
    for file in files::files().into_iter().filter(|file| !file.is_model()) {
        let name = file.name();
        let golden = Golden::open(&file.path).ok();
        // A file that does not open fails in its trial.
        let strategies = golden.map_or(&[Strategy::Auto][..], |golden| golden.strategies());
        for &strategy in strategies {
            let path = file.path.clone();
            let each = each_device(&format!("{name}/{strategy:?}"), move |subject| check(subject, &path, strategy));
            trials.extend(in_turn(number, each));
            number += 1;
        }
    }
    trials.extend(each_device("concat", concat));
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
        // What fused attention does not have, or has only in other places; all else must be there.
        let Some(comparison) = comparison else {
            let base = name.split_once("_batch").map_or(name.as_str(), |(base, _)| base);
            if strategy == Strategy::Fused && FUSED_LACKS.contains(&base) {
                continue;
            }
            return Err(format!("`{name}` has no counterpart among the outputs").into());
        };
        compared += 1;
        if !comparison.passed() {
            return Err(format!("{}: {name}, {strategy:?} on {}: {comparison}", golden.path, subject.name).into());
        }
    }
    if compared == 0 { Err("the file expects nothing that was computed".into()) } else { Ok(Completion::Completed) }
}

/// Scores, weights, and what comes before and after them.
const FUSED_LACKS: &[&str] = &[
    "scores",
    "attention",
    "p",
    "weights",
    "attn_coef",
    "qk",
    "logits",
    "q",
    "k",
    "v",
    "Q_feat",
    "K_feat",
    "V_feat",
    "x_raw",
    "x_rsh2",
];

/// Keras' `Attention` with `score_mode="concat"` is `AdditiveAttention` without a scale where its two numbers are 1, or where
/// one is 2 and query and key are half as large.
fn concat(subject: &Subject) -> Verdict {
    let half = |tensor: &HostTensor| tensor.to_f64().iter().map(|x| (x / 2.0) as f32).collect();
    for (inner, weight, agrees) in [(1.0, 1.0, true), (2.0, 1.0, true), (1.0, 0.5, false)] {
        let name = format!("concat_{inner}_{weight}_{}.safetensors", subject.name.replace(' ', "_"));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let additive = WeightFile::open(&own_folder().join(format!("{ADDITIVE}.safetensors")))?;
        let mut tensors = BTreeMap::new();
        for name in additive.names() {
            tensors.insert(name.clone(), additive.tensor(&name)?);
        }
        let mut case: Value = serde_json::from_str(&additive.metadata().ok_or("the file has metadata")?["case"])?;
        case["config"] = json!({ "class": "Attention", "score_mode": "concat" });
        let value = &tensors["in.value"];
        if inner == 2.0 {
            case["config"]["use_scale"] = json!(true);
            let query = &tensors["in.query"];
            let [query, key] = [query, value].map(|tensor| HostTensor::f32(tensor.shape(), half(tensor)));
            tensors.extend([("in.query".into(), query?), ("in.key".into(), key?)]);
            tensors.insert("w.scale".into(), HostTensor::f32(&[], vec![2.0])?);
        }
        tensors.insert("w.concat_score_weight".into(), HostTensor::f32(&[], vec![weight])?);
        let views = tensors.iter().map(|(name, tensor)| {
            let wide = tensor.desc().dtype == Dtype::F64;
            let dtype = if wide { safetensors::Dtype::F64 } else { safetensors::Dtype::F32 };
            Ok((name, TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes())?))
        });
        let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        safetensors::serialize_to_file(views, Some([("case".into(), case.to_string())].into()), &path)?;
        match check(subject, &path, Strategy::Auto) {
            Err(error) if agrees => return Err(error),
            Ok(_) if !agrees => return Err("the weight of the scores changes nothing".into()),
            _ => {}
        }
    }
    Ok(Completion::Completed)
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
    (
        ADDITIVE,
        ("no scale", |bytes| replace(bytes, "use_scale\\\": false", "use_scale\\\": true "), &["`w.scale`", "missing"]),
    ),
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

/// The same for the settings and inputs of the other seed documents.
const BROKEN_SEEDS: &[(&str, Broken)] = &[
    (CNN, ("images of another size", |bytes| replace(bytes, "[16, 16, 3]", "[16, 15, 3]"), &["in.images", "15"])),
    (CNN, ("a third size of filters", |bytes| replace(bytes, "[8, 16]", "[8,1,6]"), &["`filters`", "[8, 1, 6]"])),
    (RNN, ("ids that are floats", |bytes| replace(bytes, "\"I32\"", "\"F32\""), &["in.ids", "F32", "integers"])),
    (
        RNN,
        (
            "an unknown gate",
            |bytes| replace(bytes, "_activation\\\": \\\"hard", "_activation\\\": \\\"harm"),
            &["harm"],
        ),
    ),
    (
        RNN,
        (
            "a vocabulary too small",
            |bytes| in_tensor(bytes, "w.embedding", "[30, 16]", "[1, 480]"),
            &["in.ids", "id of", "table has 1 rows"],
        ),
    ),
    (RNN, ("a mask that the case lists", |bytes| replace(bytes, "in.mask", "in.cask"), &["`in.mask` is missing"])),
    (
        RNN,
        ("a mask of other sizes", |bytes| in_tensor(bytes, "in.mask", "[3, 33]", "[33, 3]"), &["in.mask", "[3, 33]"]),
    ),
    (
        LSTM,
        ("a layer too many", |bytes| replace(bytes, "n_layer\\\": 1", "n_layer\\\": 2"), &["weight_ih_l1", "missing"]),
    ),
    (
        PER_HEAD,
        (
            "keys of another batch",
            |bytes| in_tensor(bytes, "in.key", "[1, 129", "[129, 1"),
            &["per_head_attention", "[129, 1, 6]"],
        ),
    ),
    (
        POSITION,
        ("a width of neither", |bytes| in_tensor(bytes, "in.x", "[2, 7, 5]", "[2, 5, 7]"), &["in.x", "[2, 5, 7]", "5"]),
    ),
];

/// One weight of each kind: how its shape stands in the file, how another one would, and what was expected.
const WEIGHTS: &[(&str, &str, &str, &str, &str)] = &[
    (HEADS, "w.key", "[7, 5]", "[5, 7]", "[7, 5]"),
    (CNN, "w.attention.value", "[64, 16]", "[16, 64]", "[64, 16]"),
    (CNN, "w.conv4.kernel", "[3, 3, 16, 16]", "[16, 3, 3, 16]", "[3, 3, 16, 16]"),
    (CNN, "w.dense.kernel", "[8, 10]", "[10, 8]", "[8, 10]"),
    (FEED_FORWARD, "w.W", "[5]", "[1, 5]", "[5]"),
    (CONTEXT, "w.u", "[16]", "[4, 4]", "[16]"),
    (MAP, "w.local.kernel", "[1, 4, 1]", "[4, 1, 1]", "[1, 4, 1]"),
    (MAP, "w.bn.mean", "[8]", "[2, 4]", "[8]"),
    (RNN, "w.lstm_bwd.recurrent", "[24, 96]", "[96, 24]", "[24, 96]"),
    (RNN, "w.attention.b", "[33]", "[3, 11]", "[33]"),
    (LSTM, "w.rnn.weight_hh_l0", "[160, 40]", "[40, 160]", "[160, 40]"),
    (DIAGONAL, "w.value_kernel", "[3, 3, 5]", "[5, 3, 3]", "[3, 3, 5]"),
    (PER_HEAD, "w.projection_kernel", "[4, 3, 5]", "[5, 4, 3]", "[4, 3, 5]"),
    (POSITION, "w.kw", "[7, 5]", "[5, 7]", "[7, 5]"),
];

const SEED2: &str = "seed2_mha__cross_q1_k129_d20_h4";
const ADDITIVE: &str = "keras_attention__additive_noscale_1x129_d3";
const DOT: &str = "keras_attention__dot_masks_7x33_d64_v12";
const GQA: &str = "keras_gqa__cross_7x9_q4_kv4_d40_mask";
const HEADS: &str = "seed0_attention__b1_f7_h1u5";
const CNN: &str = "seed0_cnn__16x16_f8_16";
const FEED_FORWARD: &str = "seed1_feedforward__b3_t7_f5_mask";
const CONTEXT: &str = "seed1_context__b3_t9_f16_mask";
const MAP: &str = "seed1_cnn__1x1_c8_local";
const RNN: &str = "seed1_rnn__b3_t33_h24_masked_hard";
const LSTM: &str = "seed2_lstm__b2_t33_x12_h40_l1";
const DIAGONAL: &str = "seed3_self_attention__ones_10x3";
const PER_HEAD: &str = "seed3_mha__list2_q1_k129";
const POSITION: &str = "seed4_attention__b2_t7_d5";

fn broken_files() -> impl Iterator<Item = Trial> {
    let tables = BROKEN_KERAS.iter().chain(BROKEN_SEEDS).copied();
    let tables = BROKEN.iter().map(|broken| (SEED2, *broken)).chain(tables);
    let tables = tables.map(|(good, (what, damage, messages))| {
        let trial = if good == SEED2 { what.to_owned() } else { format!("{good} {what}") };
        Trial::test(format!("broken/{trial}"), move || refused(good, &trial, damage, messages))
    });
    tables.chain(WEIGHTS.iter().flat_map(|&(good, name, shape, other, wanted)| {
        let missing = move |bytes| {
            let quoted = format!("\"{name}\"");
            replace(bytes, &quoted, &quoted.replace("w.", "v."))
        };
        let misshapen = move |bytes| in_tensor(bytes, name, shape, other);
        let (without, turned) = (format!("{good} without {name}"), format!("{good} with another {name}"));
        [
            Trial::test(format!("broken/{without}"), move || {
                refused(good, &without, missing, &[&format!("`{name}`"), "missing"])
            }),
            Trial::test(format!("broken/{turned}"), move || {
                refused(good, &turned, misshapen, &[&format!("`{name}`"), other, &format!("{wanted} was expected")])
            }),
        ]
    }))
}

fn own_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// Damages a good file and asks for an error that names the damaged one and says these words.
fn refused(good: &str, what: &str, damage: impl Fn(Vec<u8>) -> Vec<u8>, messages: &[&str]) -> Result<(), Failed> {
    let bytes = std::fs::read(own_folder().join(format!("{good}.safetensors")))?;
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
}

/// Text that stands in one tensor's entry of the header replaced by another, the header staying as long as it was.
fn in_tensor(bytes: Vec<u8>, name: &str, from: &str, to: &str) -> Vec<u8> {
    let quoted = format!("\"{name}\": {{");
    let entry =
        bytes.windows(quoted.len()).position(|window| window == quoted.as_bytes()).expect("the tensor is there");
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let header = std::str::from_utf8(&bytes[entry..8 + length]).expect("the header is text");
    let header = format!("{}{}", std::str::from_utf8(&bytes[8..entry]).expect("text"), header.replacen(from, to, 1));
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]].concat()
}

/// The file with the first occurrence of some text in its header replaced by another of the same length.
fn replace(bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).expect("the text is in the header");
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}
