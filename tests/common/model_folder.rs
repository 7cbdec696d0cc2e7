//! A small sentence encoder's folder: two layers, eight words, seeded weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use libtest_mimic::Failed;
use regard::case::CaseInput;
use regard::{Dtype, HostTensor};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// Size of a vector.
pub const HIDDEN: usize = 8;
const INNER: usize = 12;
/// Most tokens of a sentence.
pub const POSITIONS: usize = 16;
/// The vocabulary.
pub const WORDS: [&str; 8] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "mat", "the", "##s"];
/// One of the weights, `[HIDDEN, HIDDEN]`.
pub const QUERY: &str = "encoder.layer.1.attention.self.query.weight";

/// A model folder before it is written.
pub struct Folder {
    /// `config.json`.
    pub config: Value,
    /// `tokenizer.json`.
    pub tokenizer: Value,
    /// `model.safetensors`.
    pub weights: BTreeMap<String, HostTensor>,
}

impl Folder {
    /// One that works.
    pub fn good() -> Self {
        let config = json!({
            "model_type": "bert", "hidden_size": HIDDEN, "num_attention_heads": 2, "num_hidden_layers": 2,
            "intermediate_size": INNER, "vocab_size": WORDS.len(), "max_position_embeddings": POSITIONS,
            "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
        });
        let vocabulary: BTreeMap<&str, usize> = WORDS.iter().copied().zip(0..).collect();
        let tokenizer = json!({
            "version": "1.0", "added_tokens": [],
            // Both are to be switched off.
            "truncation": { "max_length": 4, "strategy": "LongestFirst", "stride": 0, "direction": "Right" },
            "padding": { "strategy": { "Fixed": 9 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                         "pad_type_id": 0, "pad_token": "[PAD]" },
            "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                            "strip_accents": null, "lowercase": true },
            "pre_tokenizer": { "type": "BertPreTokenizer" },
            "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
            "decoder": null,
            "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                       "max_input_chars_per_word": 100, "vocab": vocabulary },
        });
        Self { config, tokenizer, weights: weights() }
    }

    /// Writes it under this name.
    pub fn write(&self, name: &str) -> Result<PathBuf, Failed> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("model_{}", name.replace([' ', '/'], "_")));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("config.json"), self.config.to_string())?;
        std::fs::write(folder.join("tokenizer.json"), self.tokenizer.to_string())?;
        let views = self.weights.iter().map(|(name, tensor)| {
            let dtype = match tensor.desc().dtype {
                Dtype::F16 => safetensors::Dtype::F16,
                Dtype::U32 => safetensors::Dtype::U32,
                _ => safetensors::Dtype::F32,
            };
            Ok((name.clone(), TensorView::new(dtype, tensor.shape().to_vec(), tensor.bytes())?))
        });
        let views = views.collect::<Result<BTreeMap<_, _>, safetensors::SafeTensorError>>()?;
        safetensors::serialize_to_file(views, None, &folder.join("model.safetensors"))?;
        Ok(folder)
    }
}

fn weights() -> BTreeMap<String, HostTensor> {
    let mut weights = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let seed = weights.len() as u64;
        weights.insert(name, CaseInput::normal(Dtype::F32, shape, 0.5).draw(seed));
    };
    add("embeddings.word_embeddings.weight".into(), &[WORDS.len(), HIDDEN]);
    add("embeddings.position_embeddings.weight".into(), &[POSITIONS, HIDDEN]);
    add("embeddings.token_type_embeddings.weight".into(), &[2, HIDDEN]);
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in ["encoder.layer.0", "encoder.layer.1"] {
        for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            add(format!("{layer}.{part}.weight"), &[HIDDEN, HIDDEN]);
            add(format!("{layer}.{part}.bias"), &[HIDDEN]);
        }
        for (part, [rows, columns]) in [("intermediate", [INNER, HIDDEN]), ("output", [HIDDEN, INNER])] {
            add(format!("{layer}.{part}.dense.weight"), &[rows, columns]);
            add(format!("{layer}.{part}.dense.bias"), &[rows]);
        }
        norms.extend(["attention.output.LayerNorm", "output.LayerNorm"].map(|norm| format!("{layer}.{norm}")));
    }
    for norm in norms {
        add(format!("{norm}.weight"), &[HIDDEN]);
        add(format!("{norm}.bias"), &[HIDDEN]);
    }
    weights
}

/// Half of a file.
pub fn cut(folder: &Path, file: &str) {
    let bytes = std::fs::read(folder.join(file)).expect("the file is there");
    std::fs::write(folder.join(file), &bytes[..bytes.len() / 2]).expect("the folder takes files");
}
