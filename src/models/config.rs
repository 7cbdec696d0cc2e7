//! `config.json` of a BERT encoder.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::ops::Unary;

/// Sizes and constants of a BERT encoder.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Config {
    pub hidden: usize,
    pub heads: usize,
    pub layers: usize,
    pub inner: usize,
    pub vocabulary: usize,
    pub positions: usize,
    pub token_types: usize,
    pub epsilon: f32,
    pub activation: Unary,
}

/// The file's object, for messages that name it.
struct Settings<'a> {
    path: &'a Path,
    object: Value,
}

impl Config {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// A file that cannot be read or is no such configuration; each names the file and the setting.
    pub fn read(path: &Path) -> Result<Self> {
        let fail = |message: String| Error::File { path: path.display().to_string(), message };
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        let object: Value = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
        let settings = Settings { path, object };
        settings.expect("model_type", "bert")?;
        settings.expect("position_embedding_type", "absolute")?;
        let config = Self {
            hidden: settings.size("hidden_size")?,
            heads: settings.size("num_attention_heads")?,
            layers: settings.size("num_hidden_layers")?,
            inner: settings.size("intermediate_size")?,
            vocabulary: settings.size("vocab_size")?,
            positions: settings.size("max_position_embeddings")?,
            token_types: settings.size("type_vocab_size")?,
            epsilon: settings.epsilon()?,
            activation: settings.activation()?,
        };
        if !config.hidden.is_multiple_of(config.heads) {
            let Self { hidden, heads, .. } = config;
            return Err(fail(format!("hidden_size {hidden} is not divisible by num_attention_heads {heads}")));
        }
        Ok(config)
    }
}

impl Settings<'_> {
    fn fail(&self, message: String) -> Error {
        Error::File { path: self.path.display().to_string(), message }
    }

    /// A setting that must be this where it is given.
    fn expect(&self, name: &str, only: &str) -> Result<()> {
        match &self.object[name] {
            Value::Null => Ok(()),
            Value::String(given) if given == only => Ok(()),
            given => Err(self.fail(format!("`{name}` is {given}, \"{only}\" was expected"))),
        }
    }

    fn size(&self, name: &str) -> Result<usize> {
        let value = &self.object[name];
        // Larger sizes than these are mistakes, and their products would not fit a usize.
        let size = value.as_u64().filter(|size| (1..1 << 24).contains(size));
        let size = size.and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.fail(format!("`{name}` is {value}, a size of 1 or more was expected")))
    }

    fn epsilon(&self) -> Result<f32> {
        let value = &self.object["layer_norm_eps"];
        let epsilon = value.as_f64().filter(|epsilon| (0.0..1.0).contains(epsilon));
        let epsilon = epsilon.ok_or_else(|| self.fail(format!("`layer_norm_eps` is {value}, 0 to 1 was expected")))?;
        Ok(epsilon as f32)
    }

    fn activation(&self) -> Result<Unary> {
        match self.object["hidden_act"].as_str() {
            Some("gelu") => Ok(Unary::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Unary::GeluTanh),
            Some("relu") => Ok(Unary::Relu),
            _ => {
                let value = &self.object["hidden_act"];
                Err(self.fail(format!("`hidden_act` is {value}; gelu, gelu_new or relu was expected")))
            }
        }
    }
}
