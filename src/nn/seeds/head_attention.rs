//! Attention over the heads of one position: the layer of seed document 000, "multihead attention in cifar10".

use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::MatMul;

/// `softmax(q · kᵀ)ᵀ · v` over the heads of each position.
///
/// The heads of one position attend to each other, positions do not. No scale, no biases, no output projection. The
/// weights are transposed before they meet the values, as `K.batch_dot(x, value, axes=[1, 1])` does, so that a row of
/// the result is no average of values; hence no fused kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadAttention {
    /// `head_num`; divides the width of the projections.
    pub heads: usize,
    /// `[features, heads × head_unit]`.
    pub query: Tensor,
    /// `[features, heads × head_unit]`.
    pub key: Tensor,
    /// `[features, heads × head_unit]`.
    pub value: Tensor,
}

/// Every tensor that the layer computes; `positions` are all leading axes of the input, folded into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadAttentionTensors {
    /// Query, key and value, `[positions, heads, head_unit]`.
    pub qkv: [Tensor; 3],
    /// `[positions, heads, heads]`.
    pub scores: Tensor,
    /// Softmax of the scores, `[positions, heads, heads]`.
    pub weights: Tensor,
    /// The result, `[positions, heads, head_unit]`.
    pub output: Tensor,
}

impl HeadAttention {
    /// Adds the layer: `x` `[.., features]`.
    ///
    /// # Errors
    /// Sizes that do not fit, a projected width that the heads do not divide.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<HeadAttentionTensors> {
        let (positions, features) = (graph.desc(x)?.rows(), graph.desc(x)?.row_length());
        let x = graph.reshape(x, &[positions, features])?;
        let mut qkv = [self.query, self.key, self.value];
        for tensor in &mut qkv {
            let projected = graph.matmul(x, *tensor, None, MatMul::default())?;
            let unit = graph.desc(projected)?.row_length() / self.heads.max(1);
            *tensor = graph.reshape(projected, &[positions, self.heads, unit])?;
        }
        let [q, k, v] = qkv;
        let scores = graph.matmul(q, k, None, MatMul { transpose_b: true, ..MatMul::default() })?;
        let weights = graph.softmax(scores, 1.0)?;
        let turned = graph.transpose(weights, &[0, 2, 1])?;
        let output = graph.matmul(turned, v, None, MatMul::default())?;
        Ok(HeadAttentionTensors { qkv, scores, weights, output })
    }
}
