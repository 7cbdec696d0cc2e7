//! A real sentence-embedding model end to end, against golden files of kind `minilm`.
//!
//! The model's folder is `REGARD_MINILM`, or where `scripts/fetch-minilm` puts it. Without it there is one skip that says so.

mod common;
#[path = "common/goldens.rs"]
mod files;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use common::{Subject, Verdict, each_device, run};
use files::File;
use libtest_mimic::{Completion, Failed, Trial};
use regard::compare::{NanMeans, Tolerance, compare};
use regard::models::{EncoderOptions, SentenceEncoder};
use regard::weights::WeightFile;
use regard::{Device, Dtype, HostTensor};
use safetensors::SafeTensors;

fn main() -> ExitCode {
    let mut trials = Vec::new();
    match model() {
        Some(folder) => {
            for file in files::files().into_iter().filter(File::is_model) {
                trials.extend(model_trials(&folder, &file));
            }
        }
        None => {
            let reason = "the model is not here; scripts/fetch-minilm fetches it, REGARD_MINILM names another folder";
            trials.push(Trial::ignorable_test("minilm", move || Ok(Completion::ignored_with(reason))));
        }
    }
    run(trials)
}

/// The model's folder where it exists.
fn model() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let folder = variable("REGARD_MINILM").or_else(|| cache.map(|cache| cache.join("regard/all-MiniLM-L6-v2")))?;
    folder.join("model.safetensors").exists().then_some(folder)
}

/// What is looked at, and how.
type Check = (&'static str, fn(&Subject, &Path, &File) -> Verdict);

fn model_trials(folder: &Path, file: &File) -> Vec<Trial> {
    let checks: [Check; 4] = [("ids", ids), ("embeddings", embeddings), ("states", states), ("f16", half_precision)];
    let trials = checks.into_iter().map(|(what, check)| {
        let (folder, file) = (folder.to_owned(), file.clone());
        each_device(&format!("{}/{what}", file.name()), move |subject| check(subject, &folder, &file))
    });
    trials.flatten().collect()
}

fn sentences(file: &File) -> Vec<&str> {
    let sentences = file.case["config"]["sentences"].as_array().expect("a model's file has sentences");
    sentences.iter().map(|sentence| sentence.as_str().expect("a sentence is text")).collect()
}

fn expected(file: &File, name: &str) -> Result<HostTensor, Failed> {
    Ok(WeightFile::open(&file.path)?.tensor(name)?)
}

/// Rows of `in.input_ids` without their padding.
fn ids(_: &Subject, folder: &Path, file: &File) -> Verdict {
    let bytes = std::fs::read(&file.path)?;
    let stored = SafeTensors::deserialize(&bytes)?;
    let numbers = |name: &str| -> Result<Vec<i64>, Failed> {
        let data = stored.tensor(name)?.data();
        Ok(data.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().expect("eight bytes"))).collect())
    };
    let (ids, mask) = (numbers("in.input_ids")?, numbers("in.attention_mask")?);
    let encoder = SentenceEncoder::open(&Device::cpu(), folder)?;
    let got = encoder.tokenize(&sentences(file))?;
    let width = ids.len() / got.len();
    for (number, got) in got.iter().enumerate() {
        let row = number * width..(number + 1) * width;
        let wanted = ids[row.clone()].iter().zip(&mask[row]).filter(|(_, mask)| **mask == 1).map(|(id, _)| *id as u32);
        assert_eq!(got, &wanted.collect::<Vec<_>>(), "sentence {number}");
    }
    Ok(Completion::Completed)
}

fn embeddings(subject: &Subject, folder: &Path, file: &File) -> Verdict {
    let mut encoder = SentenceEncoder::open(&subject.device, folder)?;
    let sentences = sentences(file);
    let got = encoder.encode(&sentences)?;
    // What the issue asks for, an absolute difference for components of a vector of length 1.
    agrees(&got, &expected(file, "f64.embedding")?, Tolerance { of_scale: 0.0, relative: 0.0, absolute: 1e-5 })?;
    let pooled = encoder.encode_pooled(&sentences)?;
    agrees(&pooled, &expected(file, "f64.pooled")?, tolerance(file, "pooled"))?;
    // Alone or in company, sentences give the same but for the rounding of sums in another order.
    let alone = encoder.encode(&sentences[..1])?;
    let first = HostTensor::f32(alone.shape(), got.as_f32().expect("f32")[..encoder.width()].to_vec())?;
    agrees(&alone, &first.cast(Dtype::F64), Tolerance { of_scale: 0.0, relative: 0.0, absolute: 1e-6 })?;
    assert_eq!(encoder.encode(&[])?.shape(), [0, encoder.width()]);
    Ok(Completion::Completed)
}

/// `hidden_<where>_<i>`: the states of sentence i, where being `embeddings`, `layer<n>` or `last`.
fn states(subject: &Subject, folder: &Path, file: &File) -> Verdict {
    let encoder = SentenceEncoder::open(&subject.device, folder)?;
    let (stored, sentences) = (WeightFile::open(&file.path)?, sentences(file));
    let mut compared = 0;
    for name in stored.names() {
        let Some((source, name)) = name.split_once('.').filter(|(_, name)| name.starts_with("hidden_")) else {
            continue;
        };
        // Those that the file has in double precision need no second look in single precision.
        if source == "mid" && stored.shape(&format!("f64.{name}")).is_ok() {
            continue;
        }
        let (place, sentence) = name["hidden_".len()..].rsplit_once('_').ok_or("hidden states of a sentence")?;
        let states = encoder.states(sentences[sentence.parse::<usize>()?])?;
        let layer = match place {
            "embeddings" => 0,
            "last" => states.len() - 1,
            layer => layer.trim_start_matches("layer").parse::<usize>()?,
        };
        let wanted = stored.tensor(&format!("{source}.{name}"))?.cast(Dtype::F64);
        // Those in single precision have no tolerance in the file; they are off by roundings of their own.
        let tolerance = if source == "f64" { tolerance(file, name) } else { Tolerance::of_scale(1e-5) };
        agrees(&states[layer], &wanted, tolerance)
            .map_err(|error| format!("{name}: {}", error.message().unwrap_or("")))?;
        compared += 1;
    }
    if compared == 0 { Err("the file has no hidden states".into()) } else { Ok(Completion::Completed) }
}

fn half_precision(subject: &Subject, folder: &Path, file: &File) -> Verdict {
    if !subject.device.capabilities().f16 {
        return Ok(Completion::ignored_with("the device has no f16"));
    }
    let options = EncoderOptions { dtype: Dtype::F16 };
    let mut encoder = SentenceEncoder::with_options(&subject.device, folder, &options)?;
    let (got, wanted) = (encoder.encode(&sentences(file))?.to_f64(), expected(file, "f64.embedding")?.to_f64());
    let rows = got.chunks_exact(encoder.width()).zip(wanted.chunks_exact(encoder.width()));
    for (number, (got, wanted)) in rows.enumerate() {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = dot(got, wanted) / (dot(got, got) * dot(wanted, wanted)).sqrt();
        if !(cosine >= 0.9999) {
            return Err(format!("sentence {number} has cosine {cosine} to what is expected").into());
        }
    }
    Ok(Completion::Completed)
}

fn tolerance(file: &File, name: &str) -> Tolerance {
    let accuracy = |what: &str| file.case["accuracy"][name][what].as_f64().expect("the file has a tolerance");
    Tolerance { of_scale: 0.0, relative: accuracy("suggested_rtol"), absolute: accuracy("suggested_atol") }
}

fn agrees(got: &HostTensor, wanted: &HostTensor, tolerance: Tolerance) -> Result<(), Failed> {
    let comparison = compare(got, wanted, tolerance, NanMeans::Nan);
    if comparison.passed() { Ok(()) } else { Err(comparison.to_string().into()) }
}
