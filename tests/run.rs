//! The command `regard run` on layers and on a model: what it prints, its exit code, and what it says of broken files.

#[path = "common/model_folder.rs"]
mod model_folder;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};
use model_folder::{Folder, HIDDEN, QUERY, cut};
use regard::models::SentenceEncoder;
use regard::{Device, Dtype, HostTensor, TensorDesc};
use safetensors::Dtype as StoredDtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

const SENTENCES: [&str; 3] = ["the cat", "cats", "the mats the cat"];
/// Tokens of a row, one more than the longest sentence has.
const COLUMNS: usize = 8;
const LAYER: &str = "tests/goldens/seed0_cnn__16x16_f8_16.safetensors";

fn main() -> ExitCode {
    let good = GOOD.iter().map(|good| Trial::test(format!("run/{}", good.0), move || ends(good)));
    let broken = BROKEN.iter().map(|broken| Trial::test(format!("broken/{}", broken.0), move || refused(broken)));
    let layers = [
        Trial::test("run/a layer", a_layer),
        Trial::test("broken/a layer with a model", a_layer_with_a_model),
        Trial::test("broken/a layer's weight of another shape", a_broken_layer),
    ];
    libtest_mimic::run(&Arguments::from_args(), good.chain(broken).chain(layers).collect()).exit_code()
}

/// A file for the small model, before it is written.
struct File {
    case: Value,
    tensors: BTreeMap<String, (StoredDtype, Vec<usize>, Vec<u8>)>,
}

impl File {
    /// What the model gives, its means taken by hand.
    fn of(folder: &Path) -> Result<Self, Failed> {
        let encoder = SentenceEncoder::open(&Device::cpu(), folder)?;
        let config = json!({ "sentences": SENTENCES });
        let mut file = Self { case: json!({ "kind": "minilm", "config": config }), tensors: BTreeMap::new() };
        let (mut ids, mut mask, mut pooled, mut embedding) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for sentence in SENTENCES {
            let tokens = encoder.tokenize(&[sentence])?.remove(0);
            // Padded with what is no token of the sentence.
            ids.extend((0..COLUMNS).map(|at| tokens.get(at).map_or(1, |&id| i64::from(id))));
            mask.extend((0..COLUMNS).map(|at| i64::from(at < tokens.len())));
            let last = encoder.states(sentence)?.pop().ok_or("a model has states")?.to_f64();
            let sum = |at: usize| last.iter().skip(at).step_by(HIDDEN).sum::<f64>();
            let means: Vec<f64> = (0..HIDDEN).map(|at| sum(at) / tokens.len() as f64).collect();
            let length = means.iter().map(|x| x * x).sum::<f64>().sqrt();
            embedding.extend(means.iter().map(|x| x / length));
            pooled.extend(means);
        }
        file.integers("in.input_ids", &ids);
        file.integers("in.attention_mask", &mask);
        let shape = [SENTENCES.len(), HIDDEN];
        file.floats("f64.pooled", &HostTensor::f64(&shape, pooled)?);
        file.floats("f64.embedding", &HostTensor::f64(&shape, embedding)?);
        let [first, second] = [encoder.states(SENTENCES[0])?, encoder.states(SENTENCES[1])?];
        file.floats("f64.hidden_layer1_1", &second[1].cast(Dtype::F64));
        file.floats("f64.hidden_last_1", &second[2].cast(Dtype::F64));
        file.floats("mid.hidden_last_1", &second[2]);
        file.floats("mid.hidden_embeddings_0", &first[0]);
        for name in ["pooled", "embedding", "hidden_layer1_1", "hidden_last_1"] {
            // Sums of some terms in another order, of numbers around 1.
            file.case["accuracy"][name] = json!({ "suggested_atol": 1e-5, "suggested_rtol": 1e-4 });
        }
        Ok(file)
    }

    fn integers(&mut self, name: &str, values: &[i64]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.insert(name.into(), (StoredDtype::I64, vec![SENTENCES.len(), COLUMNS], bytes));
    }

    fn floats(&mut self, name: &str, tensor: &HostTensor) {
        let dtype = if tensor.desc().dtype == Dtype::F64 { StoredDtype::F64 } else { StoredDtype::F32 };
        self.tensors.insert(name.into(), (dtype, tensor.shape().to_vec(), tensor.bytes().to_vec()));
    }

    /// Overwrites what stands at some place of a tensor.
    fn set(&mut self, name: &str, place: usize, bytes: [u8; 8]) {
        self.tensors.get_mut(name).expect("the tensor is there").2[place * 8..][..8].copy_from_slice(&bytes);
    }

    fn shape(&mut self, name: &str, shape: &[usize]) {
        self.tensors.get_mut(name).expect("the tensor is there").1 = shape.to_vec();
    }

    fn write(&self, name: &str) -> Result<PathBuf, Failed> {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("run_{}.safetensors", name.replace(' ', "_")));
        let views = self
            .tensors
            .iter()
            .map(|(name, (dtype, shape, bytes))| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)));
        let views = views.collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
        safetensors::serialize_to_file(views, Some([("case".into(), self.case.to_string())].into()), &path)?;
        Ok(path)
    }
}

/// Exit code, what was printed, and what was complained of.
fn regard(arguments: &[&str]) -> Result<(i32, String, String), Failed> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_regard"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("run").args(arguments).args(["--device", "cpu"]);
    let output = command.output()?;
    let code = output.status.code().ok_or("the command was ended by a signal")?;
    Ok((code, String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?))
}

fn says(text: &str, parts: &[&str]) -> Result<(), Failed> {
    match parts.iter().find(|part| !text.contains(**part)) {
        Some(part) => Err(format!("`{text}` does not say `{part}`").into()),
        None => Ok(()),
    }
}

/// What a file is, how it differs from a good one, the exit code and what is printed.
type Good = (&'static str, fn(&mut File), i32, &'static [&'static str]);

const ALL: &[&str] = &[
    "(minilm)",
    "device: ",
    "model: ",
    "embedding = f32 [3, 8]",
    "input_ids: agrees",
    "attention_mask: agrees",
    "hidden_embeddings_0: agrees",
    "hidden_layer1_1: agrees",
    "hidden_last_1: agrees",
    "pooled: agrees",
    "embedding: agrees",
];

const GOOD: &[Good] = &[
    ("sentences", |_| {}, 0, ALL),
    ("ids", |file| file.case["config"] = json!({}), 0, ALL),
    ("another id", |file| file.set("in.input_ids", 2, 5_i64.to_le_bytes()), 1, &["input_ids: DIFFERS"]),
    (
        "a token too many",
        |file| file.set("in.attention_mask", 4, 1_i64.to_le_bytes()),
        1,
        &["attention_mask: DIFFERS", "input_ids: agrees"],
    ),
    (
        "another state",
        |file| file.set("f64.hidden_layer1_1", 3, 0.125_f64.to_le_bytes()),
        1,
        &["hidden_layer1_1: DIFFERS", "hidden_last_1: agrees"],
    ),
    ("NaN", |file| file.set("f64.embedding", 0, f64::NAN.to_le_bytes()), 1, &["embedding: DIFFERS", "pooled: agrees"]),
];

fn ends((what, change, wanted, parts): &Good) -> Result<(), Failed> {
    let folder = Folder::good().write(&format!("run {what}"))?;
    let mut file = File::of(&folder)?;
    change(&mut file);
    let path = file.write(what)?;
    let (code, printed, complaint) = regard(&[text(&path), "--model", text(&folder)])?;
    assert_eq!((code, complaint.as_str()), (*wanted, ""), "{printed}");
    assert_eq!(printed.contains("DIFFERS"), *wanted == 1, "{printed}");
    says(&printed, parts)
}

fn a_layer() -> Result<(), Failed> {
    let (code, printed, complaint) = regard(&[LAYER])?;
    assert_eq!((code, complaint.as_str()), (0, ""), "{printed}");
    assert!(!printed.contains("not compared"), "{printed}");
    says(&printed, &[LAYER, "(seed0_cnn)", "conv4: agrees", "probs: agrees"])
}

fn a_layer_with_a_model() -> Result<(), Failed> {
    let (code, printed, complaint) = regard(&[LAYER, "--model", "some-folder"])?;
    assert_eq!((code, printed.as_str()), (2, ""), "{complaint}");
    says(&complaint, &[LAYER, "kind `seed0_cnn` is no model, and --model is some-folder"])
}

fn a_broken_layer() -> Result<(), Failed> {
    let mut bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(LAYER))?;
    let shape = b"[8, 10]";
    let at = bytes.windows(shape.len()).position(|window| window == shape).ok_or("a weight has this shape")?;
    bytes[at..at + shape.len()].copy_from_slice(b"[10, 8]");
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("run_broken_layer.safetensors");
    std::fs::write(&path, bytes)?;
    let (code, printed, complaint) = regard(&[text(&path)])?;
    assert_eq!((code, printed.as_str()), (2, ""), "{complaint}");
    says(&complaint, &[text(&path), "`w.dense.kernel`", "[10, 8]", "[8, 10] was expected"])
}

/// What is wrong, how to break the file, the folder, and the files in it, and what the message must say. Text in braces is the
/// path of the file or of the folder.
type Broken = (&'static str, fn(&mut File), fn(&mut Folder), fn(&Path), &'static [&'static str]);

const SOUND: fn(&mut File) = |_| {};
const AS_MADE: fn(&mut Folder) = |_| {};
const AS_IS: fn(&Path) = |_| {};

const BROKEN: &[Broken] = &[
    ("no folder", SOUND, AS_MADE, |folder| remove(folder), &["{folder}", "config.json"]),
    (
        "weights are cut short",
        SOUND,
        AS_MADE,
        |folder| cut(folder, "model.safetensors"),
        &["{folder}", "model.safetensors"],
    ),
    (
        "a weight of another shape",
        SOUND,
        |folder| {
            folder.weights.insert(QUERY.into(), HostTensor::zeros(TensorDesc::new(Dtype::F32, [8, 9])));
        },
        AS_IS,
        &["{folder}", "model.safetensors", QUERY, "[8, 9], [8, 8] was expected"],
    ),
    (
        "a vocabulary too small for the tokenizer",
        SOUND,
        |folder| {
            folder.config["vocab_size"] = json!(7);
            let words = HostTensor::zeros(TensorDesc::new(Dtype::F32, [7, HIDDEN]));
            folder.weights.insert("embeddings.word_embeddings.weight".into(), words);
        },
        AS_IS,
        &["{folder}", "tokenizer.json", "id 7", "7 rows"],
    ),
    (
        "a vocabulary too small for the file",
        |file| file.set("in.input_ids", 1, 8_i64.to_le_bytes()),
        AS_MADE,
        AS_IS,
        &["{file}", "`in.input_ids` has an id of 8, the table has 8 rows"],
    ),
    (
        "ids of one axis",
        |file| file.shape("in.input_ids", &[24]),
        AS_MADE,
        AS_IS,
        &["{file}", "`in.input_ids` is u32 [24], [sentences, tokens] was expected"],
    ),
    (
        "a mask of another shape",
        |file| file.shape("in.attention_mask", &[COLUMNS, SENTENCES.len()]),
        AS_MADE,
        AS_IS,
        &["{file}", "`in.attention_mask` is u32 [8, 3], [3, 8] was expected"],
    ),
    (
        "a mask with a hole",
        |file| {
            file.case["config"] = json!({});
            file.set("in.attention_mask", COLUMNS + 1, 0_i64.to_le_bytes());
        },
        AS_MADE,
        AS_IS,
        &["{file}", "`in.attention_mask` has padding in front of a token in row 1"],
    ),
    (
        "neither sentences nor ids",
        |file| {
            file.case["config"] = json!({});
            file.tensors.remove("in.input_ids");
        },
        AS_MADE,
        AS_IS,
        &["{file}", "neither config `sentences` nor a tensor `in.input_ids`"],
    ),
    (
        "sentences that are no texts",
        |file| file.case["config"]["sentences"] = json!(["a", 1]),
        AS_MADE,
        AS_IS,
        &["{file}", "`sentences` is [\"a\",1], a list of texts was expected"],
    ),
    (
        "a state of no layer",
        |file| file.floats("mid.hidden_layer3_0", &HostTensor::zeros(TensorDesc::new(Dtype::F32, [4, HIDDEN]))),
        AS_MADE,
        AS_IS,
        &["{file}", "`hidden_layer3_0` is none of 2 layers and 3 sentences"],
    ),
    (
        "a state of no sentence",
        |file| file.floats("mid.hidden_last_3", &HostTensor::zeros(TensorDesc::new(Dtype::F32, [4, HIDDEN]))),
        AS_MADE,
        AS_IS,
        &["{file}", "`hidden_last_3` is none of 2 layers and 3 sentences"],
    ),
    (
        "no tolerance",
        |file| file.case["accuracy"]["pooled"] = Value::Null,
        AS_MADE,
        AS_IS,
        &["{file}", "`accuracy.pooled` has no suggested_atol and suggested_rtol"],
    ),
    (
        "a result of another shape",
        |file| file.shape("f64.pooled", &[HIDDEN, SENTENCES.len()]),
        AS_MADE,
        AS_IS,
        &["{file}", "`f64.pooled` is f64 [8, 3], the run gives f32 [3, 8]"],
    ),
    (
        "another kind",
        |file| file.case["kind"] = json!("maxilm"),
        AS_MADE,
        AS_IS,
        &["{file}", "`maxilm` is unknown", "minilm"],
    ),
];

fn refused((what, change, damage, break_files, parts): &Broken) -> Result<(), Failed> {
    let good = Folder::good().write(&format!("run good {what}"))?;
    let mut file = File::of(&good)?;
    change(&mut file);
    let path = file.write(&format!("broken {what}"))?;
    let mut folder = Folder::good();
    damage(&mut folder);
    let folder = folder.write(&format!("run broken {what}"))?;
    break_files(&folder);
    let (code, printed, complaint) = regard(&[text(&path), "--model", text(&folder)])?;
    assert_eq!((code, printed.as_str()), (2, ""), "{complaint}");
    let parts = parts.iter().map(|part| match *part {
        "{file}" => text(&path),
        "{folder}" => text(&folder),
        part => part,
    });
    says(&complaint, &parts.collect::<Vec<_>>())?;
    // Without the folder, the file says that one is needed, whatever else is wrong.
    let (code, _, complaint) = regard(&[text(&path)])?;
    assert_eq!(code, 2);
    if *what == "another kind" {
        Ok(())
    } else {
        says(&complaint, &[text(&path), "kind `minilm` needs", "--model DIR"])
    }
}

fn remove(folder: &Path) {
    std::fs::remove_dir_all(folder).expect("the folder is there");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the path is UTF-8")
}
