//! The problems that `examples/peer_inputs.rs` wrote.

use std::error::Error;
use std::fs;
use std::path::Path;

use half::f16;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

/// One entry of the manifest.
#[derive(Debug, Clone, Deserialize)]
pub struct Problem {
    /// In canonical text.
    pub problem: String,
    /// Its tensors, in the manifest's folder.
    pub file: String,
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Queries.
    pub seq_q: usize,
    /// Keys.
    pub seq_kv: usize,
    /// Width of a query and of a key.
    pub head_dim: usize,
    /// Width of a value.
    pub head_dim_v: usize,
    /// Alignment of the causal mask, where there is one.
    pub causal: Option<String>,
    /// `f32` or `f16`.
    pub dtype: String,
    /// By FlashAttention's formula.
    pub flops: u64,
    /// What `regard bench` accepts.
    pub tolerance_of_scale: f64,
    /// Rows of `expected` that are not NaN.
    pub checked_rows: String,
}

/// A problem's tensors, `(batch, heads, seq, width)`; f16 is widened.
#[derive(Debug)]
pub struct Tensors {
    /// Queries.
    pub q: Vec<f32>,
    /// Keys.
    pub k: Vec<f32>,
    /// Values.
    pub v: Vec<f32>,
    /// The result in f64; rows that are not checked are NaN.
    pub expected: Vec<f64>,
}

impl Problem {
    pub(crate) fn list(folder: &Path) -> Result<Vec<Self>, Box<dyn Error>> {
        let path = folder.join("manifest.json");
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(serde_json::from_str(&text)?)
    }

    pub(crate) fn tensors(&self, folder: &Path) -> Result<Tensors, Box<dyn Error>> {
        let bytes = fs::read(folder.join(&self.file))?;
        let file = SafeTensors::deserialize(&bytes)?;
        let floats = |name: &str| -> Result<Vec<f32>, Box<dyn Error>> {
            let tensor = file.tensor(name)?;
            let data = tensor.data();
            Ok(match tensor.dtype() {
                Dtype::F32 => data.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
                Dtype::F16 => data.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
                other => return Err(format!("{name} is {other:?}").into()),
            })
        };
        let expected = file.tensor("expected")?;
        if expected.dtype() != Dtype::F64 {
            return Err(format!("`expected` is {:?}", expected.dtype()).into());
        }
        let expected = expected.data().as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect();
        Ok(Tensors { q: floats("q")?, k: floats("k")?, v: floats("v")?, expected })
    }

    /// Shapes of q, k and v.
    pub fn shapes(&self) -> [[usize; 4]; 3] {
        [
            [self.batch, self.heads, self.seq_q, self.head_dim],
            [self.batch, self.kv_heads, self.seq_kv, self.head_dim],
            [self.batch, self.kv_heads, self.seq_kv, self.head_dim_v],
        ]
    }

    /// Whether a causal mask hides anything, and if so whether it is the square one, for which every alignment is the same.
    ///
    /// # Errors
    /// A mask that only some alignment has.
    pub fn square_causal(&self) -> Result<bool, String> {
        match self.causal.as_deref() {
            None => Ok(false),
            // A single last query sees every key.
            Some("bottom-right") if self.seq_q == 1 => Ok(false),
            Some("bottom-right" | "top-left") if self.seq_q == self.seq_kv => Ok(true),
            Some(other) => {
                Err(format!("causal={other} with {} queries on {} keys is not tried", self.seq_q, self.seq_kv))
            }
        }
    }
}
