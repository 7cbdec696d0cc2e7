//! Attention whose weights multiply element by element: the layer of seed document 004, "在Keras中自定义Attention层".

use crate::attention::{Attention, Strategy};
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::{Binary, MatMul};

/// `softmax(q · kᵀ / √key_size) · v` with `q = x × query` and so on, element by element.
///
/// `key_size` is a setting of its own, 8 by default in the original, whatever the width is. An input of width 1
/// broadcasts against the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionAttention {
    /// Scores are divided by its square root.
    pub key_size: usize,
    /// qw, `[seq, out_dim]`, which fixes the length of a sequence, or `[1, out_dim]`.
    pub query: Tensor,
    /// kw, likewise.
    pub key: Tensor,
    /// vw, likewise.
    pub value: Tensor,
    /// How attention is computed.
    pub strategy: Strategy,
}

/// Every tensor that the layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionAttentionTensors {
    /// Query, key and value, `[batch, seq, out_dim]`.
    pub qkv: [Tensor; 3],
    /// `q · kᵀ`, unscaled, and attention weights, `[batch, seq, seq]`; unfused attention only.
    pub scores_and_weights: Option<[Tensor; 2]>,
    /// The result, `[batch, seq, out_dim]`.
    pub output: Tensor,
}

impl PositionAttention {
    /// Adds the layer: `x` `[batch, seq, out_dim]` or `[batch, seq, 1]`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<PositionAttentionTensors> {
        let mut qkv = [self.query, self.key, self.value];
        for tensor in &mut qkv {
            *tensor = graph.binary(x, *tensor, Binary::Mul)?;
        }
        let [q, k, v] = qkv;
        let scale = (1.0 / (self.key_size as f64).sqrt()) as f32;
        if self.strategy != Strategy::Unfused {
            let options = Attention { scale: Some(scale), strategy: self.strategy, ..Attention::default() };
            let output = graph.attention(q, k, v, &options)?;
            return Ok(PositionAttentionTensors { qkv, scores_and_weights: None, output });
        }
        let scores = graph.matmul(q, k, None, MatMul { transpose_b: true, ..MatMul::default() })?;
        let weights = graph.softmax(scores, scale)?;
        let output = graph.matmul(weights, v, None, MatMul::default())?;
        Ok(PositionAttentionTensors { qkv, scores_and_weights: Some([scores, weights]), output })
    }
}
