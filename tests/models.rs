//! Model folders: a small one that is made here and works, and the same one broken in the ways that a user may meet.

mod common;
#[path = "common/model_folder.rs"]
mod model_folder;

use std::path::Path;
use std::process::ExitCode;

use common::{Subject, Verdict, each_device, run};
use libtest_mimic::{Completion, Failed, Trial};
use model_folder::{Folder, HIDDEN, POSITIONS, QUERY, WORDS, cut};
use regard::compare::{NanMeans, Tolerance, compare};
use regard::models::{EncoderOptions, SentenceEncoder};
use regard::{Device, Dtype, HostTensor};
use serde_json::{Value, json};

fn main() -> ExitCode {
    let mut trials = each_device("company changes nothing", company);
    trials.extend(each_device("f16", half_precision));
    trials.push(Trial::test("tokens", tokens));
    trials.push(Trial::test("a model inside of another", inside));
    trials.push(Trial::test("a dtype that no model has", other_dtype));
    trials.extend(BROKEN.iter().map(|broken| Trial::test(format!("broken/{}", broken.0), move || refused(broken))));
    run(trials)
}

/// 70 sentences of 2 to 16 tokens; the longest are cut off.
fn sentences() -> Vec<String> {
    (0..70).map(|number| ["the", "cats", "mat", "dog"].repeat(5)[..number * 7 % 20].join(" ")).collect()
}

/// A sentence has the same vector alone and in a batch, of length 1, in its own place.
fn company(subject: &Subject) -> Verdict {
    let folder = Folder::good().write(&format!("company {}", subject.name))?;
    let mut encoder = SentenceEncoder::open(&subject.device, &folder)?;
    let sentences = sentences();
    let sentences: Vec<&str> = sentences.iter().map(String::as_str).collect();
    let together = encoder.encode(&sentences)?;
    assert_eq!(together.shape(), [sentences.len(), HIDDEN]);
    let alone = sentences.iter().map(|sentence| Ok(encoder.encode(&[sentence])?.to_f64()));
    let alone: Vec<f64> = alone.collect::<Result<Vec<_>, Failed>>()?.concat();
    let alone = HostTensor::f64(together.shape(), alone)?;
    // Two layers of sums of up to 16 terms in another order, each off by a few roundings.
    let comparison = compare(&together, &alone, Tolerance::of_scale(1e-5), NanMeans::Nan);
    assert!(comparison.passed(), "{comparison}");
    for row in together.to_f64().chunks_exact(HIDDEN) {
        let length = row.iter().map(|x| x * x).sum::<f64>();
        assert!((length - 1.0).abs() < 1e-6, "{length}");
    }
    // The definition of the last step, by hand: the mean of the last states, brought to length 1.
    let states = encoder.states(sentences[3])?.pop().ok_or("states")?;
    let data = states.to_f64();
    let means: Vec<f64> = (0..HIDDEN).map(|at| data.iter().skip(at).step_by(HIDDEN).sum::<f64>()).collect();
    let length = means.iter().map(|x| x * x).sum::<f64>().sqrt();
    let wanted = HostTensor::f64(&[1, HIDDEN], means.iter().map(|x| x / length).collect())?;
    let comparison = compare(&encoder.encode(&sentences[3..4])?, &wanted, Tolerance::of_scale(1e-5), NanMeans::Nan);
    assert!(comparison.passed(), "{comparison}");
    Ok(Completion::Completed)
}

fn half_precision(subject: &Subject) -> Verdict {
    if !subject.device.capabilities().f16 {
        return Ok(Completion::ignored_with("the device has no f16"));
    }
    let folder = Folder::good().write(&format!("f16 {}", subject.name))?;
    let options = EncoderOptions { dtype: Dtype::F16 };
    let mut half = SentenceEncoder::with_options(&subject.device, &folder, &options)?;
    let mut single = SentenceEncoder::open(&subject.device, &folder)?;
    let sentences = ["the cat", "cats", "the mats the cat"];
    // Ten stages, each rounded to f16, on values that reach a few times their own deviation.
    let tolerance = Tolerance { of_scale: 0.0, relative: 0.0, absolute: 0.02 };
    let wanted = single.encode(&sentences)?.cast(Dtype::F64);
    let comparison = compare(&half.encode(&sentences)?, &wanted, tolerance, NanMeans::Nan);
    assert!(comparison.passed(), "{comparison}");
    Ok(Completion::Completed)
}

/// The tokenizer's own padding and truncation are off; the model's positions cut sentences off.
fn tokens() -> Result<(), Failed> {
    let encoder = SentenceEncoder::open(&Device::cpu(), &Folder::good().write("tokens")?)?;
    let long = "cat ".repeat(40);
    let ids = encoder.tokenize(&["", "The CATS", &long])?;
    let cut: Vec<u32> = [vec![2], vec![4; POSITIONS - 2], vec![3]].concat();
    assert_eq!(ids, [vec![2, 3], vec![2, 6, 4, 7, 3], cut]);
    Ok(())
}

/// Names of a `BertModel` that is part of a larger model.
fn inside() -> Result<(), Failed> {
    let mut folder = Folder::good();
    let plain = SentenceEncoder::open(&Device::cpu(), &folder.write("plain")?)?.encode(&["the cat"])?;
    folder.weights = folder.weights.into_iter().map(|(name, tensor)| (format!("bert.{name}"), tensor)).collect();
    let inside = SentenceEncoder::open(&Device::cpu(), &folder.write("inside")?)?.encode(&["the cat"])?;
    assert_eq!(plain, inside);
    Ok(())
}

fn other_dtype() -> Result<(), Failed> {
    let options = EncoderOptions { dtype: Dtype::BF16 };
    let error = SentenceEncoder::with_options(&Device::cpu(), &Folder::good().write("bf16")?, &options);
    let message = error.err().ok_or("bf16 was accepted")?.to_string();
    assert_eq!(message, "sentence_encoder: dtype is bf16, f32 or f16 was expected");
    Ok(())
}

/// What is wrong with a folder, how to break a good one, and what the message must say, the file first.
type Broken = (&'static str, fn(&mut Folder), fn(&Path), &'static [&'static str]);

const NOTHING: fn(&mut Folder) = |_| {};
const AS_IS: fn(&Path) = |_| {};

const BROKEN: &[Broken] = &[
    ("no config", NOTHING, |folder| remove(folder, "config.json"), &["config.json"]),
    ("no tokenizer", NOTHING, |folder| remove(folder, "tokenizer.json"), &["tokenizer.json"]),
    ("no weights", NOTHING, |folder| remove(folder, "model.safetensors"), &["model.safetensors"]),
    ("config is not JSON", NOTHING, |folder| cut(folder, "config.json"), &["config.json", "EOF"]),
    ("tokenizer is cut short", NOTHING, |folder| cut(folder, "tokenizer.json"), &["tokenizer.json"]),
    ("weights are cut short", NOTHING, |folder| cut(folder, "model.safetensors"), &["model.safetensors"]),
    (
        "a setting is missing",
        |folder| set(folder, "hidden_size", Value::Null),
        AS_IS,
        &["config.json", "`hidden_size` is null, a size of 1 or more was expected"],
    ),
    ("a size of zero", |folder| set(folder, "num_hidden_layers", json!(0)), AS_IS, &["`num_hidden_layers` is 0"]),
    ("a negative size", |folder| set(folder, "hidden_size", json!(-8)), AS_IS, &["config.json", "-8"]),
    ("a huge size", |folder| set(folder, "intermediate_size", json!(u64::MAX)), AS_IS, &["config.json", "18446744073"]),
    (
        "another model",
        |folder| set(folder, "model_type", json!("gpt2")),
        AS_IS,
        &["config.json", "`model_type` is \"gpt2\", \"bert\" was expected"],
    ),
    ("another activation", |folder| set(folder, "hidden_act", json!("mish")), AS_IS, &["config.json", "mish", "gelu"]),
    (
        "heads that do not divide",
        |folder| set(folder, "num_attention_heads", json!(3)),
        AS_IS,
        &["config.json", "hidden_size 8 is not divisible by num_attention_heads 3"],
    ),
    ("an epsilon below zero", |folder| set(folder, "layer_norm_eps", json!(-1.0)), AS_IS, &["config.json", "-1.0"]),
    (
        "a tensor is missing",
        |folder| drop(folder.weights.remove(QUERY)),
        AS_IS,
        &["model.safetensors", QUERY, "is missing"],
    ),
    (
        "a tensor has another shape",
        |folder| put(folder, QUERY, HostTensor::zeros(regard::TensorDesc::new(Dtype::F32, [8, 9]))),
        AS_IS,
        &["model.safetensors", QUERY, "[8, 9]", "[8, 8] was expected"],
    ),
    (
        "a tensor has another dtype",
        |folder| put(folder, QUERY, HostTensor::zeros(regard::TensorDesc::new(Dtype::U32, [8, 8]))),
        AS_IS,
        &["model.safetensors", QUERY, "U32", "a float was expected"],
    ),
    (
        "fewer rows than the configuration says",
        |folder| set(folder, "vocab_size", json!(WORDS.len() + 1)),
        AS_IS,
        &["model.safetensors", "word_embeddings", "[8, 8]", "[9, 8] was expected"],
    ),
    (
        "a vocabulary that is too small",
        |folder| {
            set(folder, "vocab_size", json!(7));
            let shape = regard::TensorDesc::new(Dtype::F32, [7, HIDDEN]);
            put(folder, "embeddings.word_embeddings.weight", HostTensor::zeros(shape));
        },
        AS_IS,
        &["tokenizer.json", "`##s` has id 7", "word_embeddings.weight` has 7 rows", "config.json"],
    ),
];

fn refused((what, damage, break_files, messages): &Broken) -> Result<(), Failed> {
    let mut folder = Folder::good();
    damage(&mut folder);
    let path = folder.write(&format!("broken {what}"))?;
    break_files(&path);
    let Err(error) = SentenceEncoder::open(&Device::cpu(), &path) else {
        return Err("the broken folder was accepted".into());
    };
    let message = error.to_string();
    let place = path.to_str().expect("the path is UTF-8");
    match [place].iter().chain(messages.iter()).find(|part| !message.contains(**part)) {
        Some(part) => Err(format!("`{message}` does not say `{part}`").into()),
        None => Ok(()),
    }
}

fn set(folder: &mut Folder, setting: &str, value: Value) {
    folder.config[setting] = value;
}

fn put(folder: &mut Folder, name: &str, tensor: HostTensor) {
    folder.weights.insert(name.into(), tensor).expect("it replaces one");
}

fn remove(folder: &Path, file: &str) {
    std::fs::remove_file(folder.join(file)).expect("the file is there");
}
