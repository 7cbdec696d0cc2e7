//! Multi-head attention with its four projections.

#[cfg(test)]
mod tests;

use super::Linear;
use crate::attention::{Attention, Strategy};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::{AxisSlice, Binary, Layout, Operand, Step};
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
    /// Scale, masks and strategy. The default scale is `1 / √head_dim`. The layouts are the layer's: heads are read and written
    /// where the products have them.
    pub attention: Attention,
}

/// How query, key and value are projected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Projections {
    /// Each by a map of its own, in this order. Weights of maps that share an input are joined as the layer is added, so that one
    /// product computes them; graphs that are to share weights on a device join them once and take `Joined`.
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

/// Every tensor that the layer has, in the forms that others return. A plan computes those that are asked for: attention reads
/// the products as they are.
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

/// What attention reads, and the same in a form that has a name.
struct Projected {
    operands: [Tensor; 3],
    q_layout: Layout,
    kv_layout: Layout,
    features: [Tensor; 3],
}

impl MultiHeadAttention {
    /// Adds the layer to a graph.
    ///
    /// # Errors
    /// Sizes that do not fit, a projected width that the heads do not divide.
    pub fn add(&self, graph: &mut Graph, inputs: [Tensor; 3]) -> Result<MultiHeadAttentionTensors> {
        let Projected { operands, q_layout, kv_layout, features } = self.project(graph, inputs)?;
        let attention = Attention { q_layout, kv_layout, ..self.attention };
        let (merged, scores_and_weights) = match attention.strategy {
            Strategy::Unfused => {
                let steps = graph.attention_steps(operands, &attention)?;
                (steps.output, Some((steps.scores, steps.weights)))
            }
            Strategy::Auto | Strategy::Fused => {
                (graph.attention(operands[0], operands[1], operands[2], &attention)?, None)
            }
        };
        let output = self.output.add(graph, merged)?;
        let [q, k, v] = features;
        let [k, v] = [graph.split_heads(k, self.kv_heads)?, graph.split_heads(v, self.kv_heads)?];
        let split = [graph.split_heads(q, self.heads)?, k, v];
        let attended = graph.split_heads(merged, self.heads)?;
        Ok(MultiHeadAttentionTensors { features, split, scores_and_weights, attended, merged, output })
    }

    fn project(&self, graph: &mut Graph, inputs: [Tensor; 3]) -> Result<Projected> {
        let [query, key, value] = inputs;
        let parts = match self.projections {
            Projections::Joined(_) if query != key || query != value => {
                let message = "joined projections are for self-attention, and query, key and value are not one tensor";
                return Err(Error::option("multi_head_attention", message));
            }
            Projections::Joined(joined) => return self.of_one(graph, query, joined),
            Projections::Separate(parts) => parts,
        };
        // Keys that are appended are appended to tensors of their own.
        if self.appended.count() == 0 {
            if query == key
                && query == value
                && let Some(joined) = self.join(graph, &parts, self.heads)?
            {
                return self.of_one(graph, query, joined);
            }
            if key == value
                && let Some(joined) = self.join(graph, &parts[1..], 0)?
            {
                return self.of_two(graph, [query, key], [parts[0], joined]);
            }
        }
        let [q, k, v] = [parts[0].add(graph, query)?, parts[1].add(graph, key)?, parts[2].add(graph, value)?];
        self.apart(graph, q, Layout::Merged { heads: self.heads }, [q, k, v])
    }

    /// One map in place of several, of which the last two are of key and value, where their heads are of one width.
    fn join(&self, graph: &mut Graph, parts: &[Linear], heads: usize) -> Result<Option<Linear>> {
        let mut each = Vec::new();
        for (at, part) in parts.iter().rev().enumerate() {
            let heads = if at < 2 { self.kv_heads } else { heads };
            let width = part.width(graph)?;
            each.push(width.and_then(|width| (width.checked_rem(heads)? == 0).then_some(width / heads)));
        }
        match each[0] {
            Some(_) if each.iter().all(|width| *width == each[0]) => Linear::joined(graph, parts),
            _ => Ok(None),
        }
    }

    /// All three in one product.
    fn of_one(&self, graph: &mut Graph, input: Tensor, joined: Linear) -> Result<Projected> {
        let Self { heads, kv_heads, .. } = *self;
        let all = joined.add(graph, input)?;
        let [q, k, v] = columns(graph, all, [heads, kv_heads, kv_heads])?;
        let layout = Layout::Joined { heads, kv_heads };
        if self.appended.count() > 0 {
            return self.apart(graph, all, layout, [q, k, v]);
        }
        Ok(Projected { operands: [all; 3], q_layout: layout, kv_layout: layout, features: [q, k, v] })
    }

    /// Key and value in one product.
    fn of_two(&self, graph: &mut Graph, inputs: [Tensor; 2], [of_query, of_both]: [Linear; 2]) -> Result<Projected> {
        let Self { heads, kv_heads, .. } = *self;
        let [q, both] = [of_query.add(graph, inputs[0])?, of_both.add(graph, inputs[1])?];
        let [_, k, v] = columns(graph, both, [0, kv_heads, kv_heads])?;
        Ok(Projected {
            operands: [q, both, both],
            q_layout: Layout::Merged { heads },
            kv_layout: Layout::Joined { heads: 0, kv_heads },
            features: [q, k, v],
        })
    }

    /// Key and value in tensors of their own, with the keys that are appended.
    fn apart(&self, graph: &mut Graph, read: Tensor, q_layout: Layout, [q, k, v]: [Tensor; 3]) -> Result<Projected> {
        let [k, v] = self.appended.add(graph, [k, v])?;
        let kv_layout = Layout::Merged { heads: self.kv_heads };
        Ok(Projected { operands: [read, k, v], q_layout, kv_layout, features: [q, k, v] })
    }
}

/// Parts of so many heads each of the last axis of `[batch, seq, heads × head_dim]`.
fn columns(graph: &mut Graph, all: Tensor, heads: [usize; 3]) -> Result<[Tensor; 3]> {
    let desc = graph.desc(all)?.clone();
    let (width, sum) = (desc.row_length(), heads.iter().sum::<usize>());
    if sum == 0 || !width.is_multiple_of(sum) {
        let message =
            format!("the joined projection is {desc}, which {sum} heads of query, key and value do not divide");
        return Err(Error::shape("multi_head_attention", message));
    }
    let (axis, mut end) = (desc.rank() - 1, 0);
    let mut parts = [all; 3];
    for (part, heads) in parts.iter_mut().zip(heads) {
        let start = end;
        end += (heads * (width / sum)) as i64;
        *part = graph.slice(all, &[AxisSlice { axis, start, end, step: 1 }])?;
    }
    Ok(parts)
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
