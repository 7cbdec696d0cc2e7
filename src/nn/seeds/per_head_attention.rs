//! Multi-head attention with kernels for each head: the second layer of seed document 003, "SelfAttention 理解".

use crate::attention::{Attention, Strategy};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::MatMul;

/// Attention over heads whose kernels are separate, over any number of leading axes.
///
/// The query is divided by `√head_size` before it meets the keys. The original has a `projection_bias` among its
/// weights that it never adds, so it is no field here. Sources: that document, and tensorflow-addons' `MultiHeadAttention`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerHeadAttention {
    /// `[heads, features, head_size]`.
    pub query: Tensor,
    /// `[heads, features, head_size]`.
    pub key: Tensor,
    /// `[heads, features, head_size]`.
    pub value: Tensor,
    /// `[heads, head_size, out]`.
    pub projection: Tensor,
    /// How attention is computed.
    pub strategy: Strategy,
}

/// Every tensor that the layer computes; `batch` are all axes of the input before its last two, folded into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerHeadAttentionTensors {
    /// Scaled query, key and value, `[batch, heads, seq, head_size]`.
    pub qkv: [Tensor; 3],
    /// Scores and attention weights, `[batch, heads, seq_q, seq_kv]`; unfused attention only.
    pub scores_and_weights: Option<[Tensor; 2]>,
    /// What the heads return, side by side, `[batch, seq_q, heads × head_size]`.
    pub merged: Tensor,
    /// The result, `[.., seq_q, out]`, with the leading axes of the query.
    pub output: Tensor,
}

impl PerHeadAttention {
    /// Adds the layer: `query` `[.., seq_q, features]`, `key` and `value` `[.., seq_kv, features]`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, inputs: [Tensor; 3]) -> Result<PerHeadAttentionTensors> {
        let leading = self.leading(graph, inputs)?;
        let kernels = [self.query, self.key, self.value];
        let head_size = graph.desc(self.query)?.row_length();
        let scale = (1.0 / (head_size.max(1) as f64).sqrt()) as f32;
        let mut qkv = inputs;
        for ((tensor, kernel), alpha) in qkv.iter_mut().zip(kernels).zip([scale, 1.0, 1.0]) {
            // One product for each batch element and head: the kernels broadcast over the batch.
            let shape = &graph.desc(*tensor)?.shape[leading.len()..];
            let folded = [&[leading.iter().product(), 1], shape].concat();
            let rows = graph.reshape(*tensor, &folded)?;
            *tensor = graph.matmul(rows, kernel, None, MatMul { alpha, ..MatMul::default() })?;
        }
        let [q, k, v] = qkv;
        let options = Attention { scale: Some(1.0), strategy: self.strategy, ..Attention::default() };
        let (attended, scores_and_weights) = match self.strategy {
            Strategy::Unfused => {
                let steps = graph.attention_steps(qkv, &options)?;
                (steps.output, Some([steps.scores, steps.weights]))
            }
            Strategy::Auto | Strategy::Fused => (graph.attention(q, k, v, &options)?, None),
        };
        let merged = graph.merge_heads(attended)?;
        let desc = graph.desc(self.projection)?;
        let (rows, out) = (desc.rows(), desc.row_length());
        let projection = graph.reshape(self.projection, &[rows, out])?;
        let output = graph.matmul(merged, projection, None, MatMul::default())?;
        let shape = [&leading[..], &graph.desc(output)?.shape[1..]].concat();
        let output = graph.reshape(output, &shape)?;
        Ok(PerHeadAttentionTensors { qkv, scores_and_weights, merged, output })
    }

    /// The axes of the inputs before their last two, which are the same for all.
    fn leading(&self, graph: &Graph, inputs: [Tensor; 3]) -> Result<Vec<usize>> {
        let wrong = |message: String| Err(Error::shape("per_head_attention", message));
        let query = graph.desc(inputs[0])?;
        let Some(axes) = query.rank().checked_sub(2) else {
            return wrong(format!("query is {query}, rank 2 at least was expected"));
        };
        for (name, input) in [("key", inputs[1]), ("value", inputs[2])] {
            let desc = graph.desc(input)?;
            if desc.rank() != query.rank() || desc.shape[..axes] != query.shape[..axes] {
                return wrong(format!("query is {query}, {name} is {desc}; they differ before the last two axes"));
            }
        }
        for kernel in [self.query, self.key, self.value, self.projection] {
            let desc = graph.desc(kernel)?;
            if desc.rank() != 3 {
                return wrong(format!("a kernel is {desc}, three axes were expected"));
            }
        }
        Ok(query.shape[..axes].to_vec())
    }
}
