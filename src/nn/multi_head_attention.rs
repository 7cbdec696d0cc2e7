//! Multi-head attention with its four projections.

use super::Linear;
use crate::attention::{Attention, Strategy};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::{AxisSlice, Binary, Operand, Step};
use crate::tensor::{HostTensor, TensorDesc};

/// Attention over heads of projected inputs, projected back.
///
/// `query` `[batch, seq_q, width]`, `key` and `value` `[batch, seq_kv, width]`, result `[batch, seq_q, out]`; the three
/// widths may differ. Source: Vaswani et al., arXiv:1706.03762, section 3.2.2. Dropout is the identity: this is inference.
///
/// - `torch.nn.MultiheadAttention`: weights in [`WeightOrder::OutIn`](super::WeightOrder), `appended` for `add_bias_kv` and
///   `add_zero_attn`, masks by [`TorchMasks`](super::TorchMasks).
/// - `keras.layers.MultiHeadAttention`: kernels reshaped to `[features, heads × head_dim]` in
///   [`WeightOrder::InOut`](super::WeightOrder), other attended axes than one by [`AttendedAxes`](super::AttendedAxes).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MultiHeadAttention {
    /// Number of heads; divides the projected width of the query.
    pub heads: usize,
    /// Number of heads of key and value; divides `heads` and their projected widths.
    pub kv_heads: usize,
    /// Projections of query, key and value.
    pub projections: Projections,
    /// Projection of the merged heads.
    pub output: Linear,
    /// Keys that come after those of the input, as far as `attention.mask` lets them.
    pub appended: AppendedKeys,
    /// Scale, masks and strategy. The default scale is `1 / √head_dim`.
    pub attention: Attention,
}

/// How query, key and value are projected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projections {
    /// Each by a map of its own, in this order.
    Separate([Linear; 3]),
    /// Self-attention in one product, whose last axis is then cut into query, key and value: `heads`, `kv_heads` and
    /// `kv_heads` times `head_dim`, as PyTorch packs `in_proj_weight`.
    Joined(Linear),
}

/// Projected keys and values that are no projection of an input. Those that are learnt come first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AppendedKeys {
    /// A learnt key and its value, `[1, 1, width]` each.
    pub learnt: Option<[Tensor; 2]>,
    /// A key and a value of zeros.
    pub zero: bool,
}

/// Every tensor that the layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MultiHeadAttentionTensors {
    /// Projected query, key and value, `[batch, seq, width]`, with the keys that are appended.
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
    pub fn add(&self, graph: &mut Graph, inputs: [Tensor; 3]) -> Result<MultiHeadAttentionTensors> {
        let [q, k, v] = self.project(graph, inputs)?;
        let [k, v] = self.appended.add(graph, [k, v])?;
        let [k_heads, v_heads] = [graph.split_heads(k, self.kv_heads)?, graph.split_heads(v, self.kv_heads)?];
        let split = [graph.split_heads(q, self.heads)?, k_heads, v_heads];
        let (attended, scores_and_weights) = match self.attention.strategy {
            Strategy::Unfused => {
                let steps = graph.attention_steps(split, &self.attention)?;
                (steps.output, Some((steps.scores, steps.weights)))
            }
            Strategy::Auto | Strategy::Fused => (graph.attention(split[0], split[1], split[2], &self.attention)?, None),
        };
        let merged = graph.merge_heads(attended)?;
        let output = self.output.add(graph, merged)?;
        Ok(MultiHeadAttentionTensors { features: [q, k, v], split, scores_and_weights, attended, merged, output })
    }

    fn project(&self, graph: &mut Graph, [query, key, value]: [Tensor; 3]) -> Result<[Tensor; 3]> {
        match self.projections {
            Projections::Separate([q, k, v]) => Ok([q.add(graph, query)?, k.add(graph, key)?, v.add(graph, value)?]),
            Projections::Joined(_) if query != key || query != value => {
                let message = "joined projections are for self-attention, and query, key and value are not one tensor";
                Err(Error::option("multi_head_attention", message))
            }
            Projections::Joined(joined) => {
                let all = joined.add(graph, query)?;
                self.cut(graph, all)
            }
        }
    }

    /// Query, key and value out of `[batch, seq, (heads + 2 kv_heads) × head_dim]`.
    fn cut(&self, graph: &mut Graph, all: Tensor) -> Result<[Tensor; 3]> {
        let desc = graph.desc(all)?.clone();
        let (width, heads) = (desc.row_length(), self.heads + 2 * self.kv_heads);
        if heads == 0 || !width.is_multiple_of(heads) {
            let message =
                format!("the joined projection is {desc}, which {heads} heads of query, key and value do not divide");
            return Err(Error::shape("multi_head_attention", message));
        }
        let ends = [self.heads, self.heads + self.kv_heads, heads].map(|heads_so_far| heads_so_far * (width / heads));
        let starts = [0, ends[0], ends[1]];
        let axis = desc.rank() - 1;
        let mut part = |which: usize| {
            let (start, end) = (starts[which] as i64, ends[which] as i64);
            graph.slice(all, &[AxisSlice { axis, start, end, step: 1 }])
        };
        Ok([part(0)?, part(1)?, part(2)?])
    }
}

impl AppendedKeys {
    /// How many there are.
    pub fn count(&self) -> usize {
        usize::from(self.learnt.is_some()) + usize::from(self.zero)
    }

    /// Key and value `[batch, seq_kv, width]`, longer by [`AppendedKeys::count`].
    fn add(&self, graph: &mut Graph, mut features: [Tensor; 2]) -> Result<[Tensor; 2]> {
        for (which, tensor) in features.iter_mut().enumerate() {
            let desc = graph.desc(*tensor)?.clone();
            let [batch, _, width] = desc.shape[..] else {
                return Err(Error::Graph(format!("keys are appended to [batch, seq, width], got {desc}")));
            };
            let row = TensorDesc::new(desc.dtype, [batch, 1, width]);
            if let Some(learnt) = self.learnt {
                // The same row for each batch element.
                let zeros = graph.constant(HostTensor::zeros(row.clone()))?;
                let rows =
                    graph.elementwise(&[zeros, learnt[which]], &[Step::Binary(Binary::Add, Operand::Input(1))])?;
                *tensor = graph.concat(*tensor, rows, 1)?;
            }
            if self.zero {
                let zeros = graph.constant(HostTensor::zeros(row))?;
                *tensor = graph.concat(*tensor, zeros, 1)?;
            }
        }
        Ok(features)
    }
}
