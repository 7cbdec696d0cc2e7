//! Multi-head attention with its four projections.

use crate::attention::{Attention, Strategy};
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::MatMul;

/// An affine map as PyTorch stores it: `x · weightᵀ + bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `[.., in]` into `[.., out]`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<Tensor> {
        graph.matmul(x, self.weight, self.bias, MatMul { transpose_b: true, ..MatMul::default() })
    }
}

/// Attention over heads of projected inputs, projected back.
///
/// `query` `[batch, seq_q, width]`, `key` and `value` `[batch, seq_kv, width]`, result `[batch, seq_q, out]`.
/// Source: Vaswani et al., arXiv:1706.03762, section 3.2.2. Dropout is the identity: this is inference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MultiHeadAttention {
    /// Number of heads; divides the projected width of the query.
    pub heads: usize,
    /// Number of heads of key and value; divides `heads` and their projected widths.
    pub kv_heads: usize,
    /// Projection of the query.
    pub query: Linear,
    /// Projection of the key.
    pub key: Linear,
    /// Projection of the value.
    pub value: Linear,
    /// Projection of the merged heads.
    pub output: Linear,
    /// Scale, masks and strategy. The default scale is `1 / √head_dim`.
    pub attention: Attention,
}

/// Every tensor that the layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultiHeadAttentionTensors {
    /// Projected query, key and value, `[batch, seq, width]`.
    pub features: [Tensor; 3],
    /// The same by heads, `[batch, heads, seq, head_dim]`; key and value have `kv_heads`.
    pub split: [Tensor; 3],
    /// Masked scores and attention weights, `[batch, heads, seq_q, seq_kv]`; unfused attention only.
    pub scores_and_weights: Option<(Tensor, Tensor)>,
    /// What the heads return, `[batch, heads, seq_q, head_dim]`.
    pub attended: Tensor,
    /// The same merged, `[batch, seq_q, width]`.
    pub merged: Tensor,
    /// The result, `[batch, seq_q, out]`.
    pub output: Tensor,
}

impl MultiHeadAttention {
    /// Adds the layer to a graph.
    ///
    /// # Errors
    /// Sizes that do not fit, a projected width that the heads do not divide.
    pub fn add(&self, graph: &mut Graph, [query, key, value]: [Tensor; 3]) -> Result<MultiHeadAttentionTensors> {
        let features = [self.query.add(graph, query)?, self.key.add(graph, key)?, self.value.add(graph, value)?];
        let [q, k, v] = features;
        let [k, v] = [graph.split_heads(k, self.kv_heads)?, graph.split_heads(v, self.kv_heads)?];
        let split = [graph.split_heads(q, self.heads)?, k, v];
        let [q, k, v] = split;
        let (attended, scores_and_weights) = match self.attention.strategy {
            Strategy::Unfused => {
                let steps = graph.attention_steps(split, &self.attention)?;
                (steps.output, Some((steps.scores, steps.weights)))
            }
            Strategy::Auto | Strategy::Fused => (graph.attention(q, k, v, &self.attention)?, None),
        };
        let merged = graph.merge_heads(attended)?;
        let output = self.output.add(graph, merged)?;
        Ok(MultiHeadAttentionTensors { features, split, scores_and_weights, attended, merged, output })
    }
}
