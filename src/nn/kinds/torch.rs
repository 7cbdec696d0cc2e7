//! `torch.nn.MultiheadAttention` and `torch.nn.TransformerEncoderLayer`.

use serde_json::Value;

use super::Builder;
use crate::attention::{Attention, Strategy};
use crate::error::Result;
use crate::graph::Tensor;
use crate::nn::golden::{Golden, GoldenGraph};
use crate::nn::{
    AppendedKeys, Linear, MaskedScores, MultiHeadAttention, Norm, NormOrder, Projections, TorchMasks,
    TransformerEncoderLayer, WeightOrder,
};
use crate::ops::{Binary, ReducedAxes, Reduction, Unary};
use crate::tensor::HostTensor;

/// The layer with `need_weights=True`, and `y_need_weights_false` where the file expects it: the two differ in rows that may
/// see no key.
pub(super) fn multihead_attention(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let query = builder.float_input("query")?;
    let key = if golden.optional("in.key").is_some() { builder.float_input("key")? } else { query };
    let value = if golden.optional("in.value").is_some() { builder.float_input("value")? } else { key };
    let order = AxisOrder::of(golden, builder.graph.desc(query)?.rank());
    let batched = builder.each_once([query, key, value], |builder, x| order.to_batch_first(builder, x))?;
    let [heads, width] = [golden.size("num_heads")?, golden.size("embed_dim")?];
    let projection = Projection { prefix: "w.", width };
    let appended = projection.appended(&mut builder)?;
    let scores = projection.scores(&builder, [batched[0], batched[1]], heads, appended)?;
    let padding = padding_mask(golden, "in.key_padding_mask", scores)?;
    let masks = TorchMasks::new(scores, golden.optional("in.attn_mask"), padding.as_ref())?;
    let attention = masked(&mut builder, &masks, strategy)?;
    let layer = projection.layer(&mut builder, heads, batched, appended, attention)?;
    let tensors = layer.add(&mut builder.graph, batched)?;
    let empty_rows = match masks.empty_rows {
        Some(rows) if golden.config()["need_weights"] != Value::Bool(false) => Some(builder.input("empty_rows", rows)?),
        _ => None,
    };
    let plain = order.restore(&mut builder, tensors.output)?;
    if golden.optional("f64.y_need_weights_false").is_some() {
        builder.graph.output("y_need_weights_false", plain)?;
    }
    let y = match empty_rows {
        Some(rows) => {
            let y = with_empty_rows(&mut builder, tensors.output, rows)?;
            order.restore(&mut builder, y)?
        }
        None => plain,
    };
    builder.graph.output("y", y)?;
    if let Some((_, weights)) = tensors.scores_and_weights {
        let weights = match empty_rows {
            Some(rows) => builder.graph.binary(weights, rows, Binary::Add)?,
            None => weights,
        };
        let weights = returned_weights(&mut builder, weights, order)?;
        builder.graph.output("weights", weights)?;
    }
    Ok(builder.finish())
}

/// The encoder layer; a row that may see no key attends to nothing.
pub(super) fn encoder_layer(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let x = builder.float_input("src")?;
    let order = AxisOrder::of(golden, builder.graph.desc(x)?.rank());
    let x = order.to_batch_first(&mut builder, x)?;
    let [heads, width] = [golden.size("nhead")?, golden.size("d_model")?];
    let projection = Projection { prefix: "w.self_attn.", width };
    let scores = projection.scores(&builder, [x, x], heads, AppendedKeys::default())?;
    let padding = padding_mask(golden, "in.src_key_padding_mask", scores)?;
    let masks = TorchMasks::new(scores, golden.optional("in.src_mask"), padding.as_ref())?;
    let attention = masked(&mut builder, &masks, strategy)?;
    let epsilon = golden.config()["layer_norm_eps"].as_f64().unwrap_or(1e-5) as f32;
    let layer = TransformerEncoderLayer {
        attention: projection.layer(&mut builder, heads, [x; 3], AppendedKeys::default(), attention)?,
        feed_forward: [builder.linear("linear1")?, builder.linear("linear2")?],
        activation: activation(golden)?,
        norms: [norm(&mut builder, "norm1", epsilon)?, norm(&mut builder, "norm2", epsilon)?],
        norm_order: match golden.config()["norm_first"] {
            Value::Bool(true) => NormOrder::First,
            _ => NormOrder::Last,
        },
    };
    let tensors = layer.add(&mut builder.graph, x)?;
    let named = [("self_attn", tensors.self_attn), ("after_attn", tensors.after_attn), ("y", tensors.output)];
    for (name, tensor) in named {
        let tensor = order.restore(&mut builder, tensor)?;
        builder.graph.output(name, tensor)?;
    }
    Ok(builder.finish())
}

/// Where the batch lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AxisOrder {
    /// `[batch, seq, width]`.
    BatchFirst,
    /// `[seq, batch, width]`.
    SeqFirst,
    /// `[seq, width]`.
    Unbatched,
}

impl AxisOrder {
    fn of(golden: &Golden, rank: usize) -> Self {
        match golden.config()["batch_first"] {
            _ if rank == 2 => Self::Unbatched,
            Value::Bool(false) => Self::SeqFirst,
            _ => Self::BatchFirst,
        }
    }

    fn to_batch_first(self, builder: &mut Builder<'_>, x: Tensor) -> Result<Tensor> {
        match self {
            Self::BatchFirst => Ok(x),
            Self::SeqFirst => builder.graph.transpose(x, &[1, 0, 2]),
            Self::Unbatched => {
                let shape = [&[1], &builder.graph.desc(x)?.shape[..]].concat();
                builder.graph.reshape(x, &shape)
            }
        }
    }

    /// Undoes [`AxisOrder::to_batch_first`].
    fn restore(self, builder: &mut Builder<'_>, x: Tensor) -> Result<Tensor> {
        match self {
            Self::BatchFirst => Ok(x),
            Self::SeqFirst => builder.graph.transpose(x, &[1, 0, 2]),
            Self::Unbatched => self.without_batch(builder, x),
        }
    }

    fn without_batch(self, builder: &mut Builder<'_>, x: Tensor) -> Result<Tensor> {
        if self != Self::Unbatched {
            return Ok(x);
        }
        let shape = builder.graph.desc(x)?.shape[1..].to_vec();
        builder.graph.reshape(x, &shape)
    }
}

/// Names and sizes of an attention layer's weights: `in_proj_weight`, or `q_proj_weight` and its like where key or value are
/// of another width.
struct Projection {
    prefix: &'static str,
    width: usize,
}

impl Projection {
    /// `inputs` are query, key and value.
    fn layer(
        &self,
        builder: &mut Builder<'_>,
        heads: usize,
        inputs: [Tensor; 3],
        appended: AppendedKeys,
        attention: Attention,
    ) -> Result<MultiHeadAttention> {
        let output = builder.linear(&format!("{}out_proj", self.prefix.trim_start_matches("w.")))?;
        let projections = self.projections(builder, inputs)?;
        Ok(MultiHeadAttention { heads, kv_heads: heads, projections, output, appended, attention })
    }

    /// One product where weights are packed and the inputs are one tensor.
    fn projections(&self, builder: &mut Builder<'_>, [query, key, value]: [Tensor; 3]) -> Result<Projections> {
        let golden = builder.golden;
        let (packed, bias) = (format!("{}in_proj_weight", self.prefix), format!("{}in_proj_bias", self.prefix));
        let bias = golden.optional(&bias).map(|_| golden.floats(&bias)).transpose()?;
        if golden.optional(&packed).is_some() && query == key && key == value {
            let weight = golden.floats(&packed)?;
            return Ok(Projections::Joined(self.linear(builder, &packed, weight, bias)?));
        }
        let mut each = |which: usize| {
            let separate = format!("{}{}_proj_weight", self.prefix, ["q", "k", "v"][which]);
            let weight = match golden.optional(&packed) {
                Some(_) => self.third(golden, &golden.floats(&packed)?, which)?,
                None => golden.floats(&separate)?,
            };
            let bias = bias.as_ref().map(|bias| self.third(golden, bias, which)).transpose()?;
            self.linear(builder, &separate, weight, bias)
        };
        Ok(Projections::Separate([each(0)?, each(1)?, each(2)?]))
    }

    fn linear(
        &self,
        builder: &mut Builder<'_>,
        name: &str,
        weight: HostTensor,
        bias: Option<HostTensor>,
    ) -> Result<Linear> {
        let weight = builder.graph.weight(name, weight)?;
        let bias = bias.map(|bias| builder.graph.weight(&format!("{name} bias"), bias)).transpose()?;
        Ok(Linear { weight, bias, order: WeightOrder::OutIn })
    }

    /// The rows of a packed weight or bias that belong to query, key or value.
    fn third(&self, golden: &Golden, packed: &HostTensor, which: usize) -> Result<HostTensor> {
        let mut shape = packed.shape().to_vec();
        if shape.first() != Some(&(3 * self.width)) {
            let rows = 3 * self.width;
            return Err(golden.fail(format!("a packed projection is {}, {rows} rows were expected", packed.desc())));
        }
        shape[0] = self.width;
        let size = shape.iter().product::<usize>();
        let rows = packed.as_f32().expect("floats are f32")[which * size..(which + 1) * size].to_vec();
        HostTensor::f32(&shape, rows)
    }

    fn appended(&self, builder: &mut Builder<'_>) -> Result<AppendedKeys> {
        let golden = builder.golden;
        let names = [format!("{}bias_k", self.prefix), format!("{}bias_v", self.prefix)];
        let learnt = match golden.optional(&names[0]) {
            Some(_) => {
                let [key, value] = names.map(|name| builder.graph.weight(&name, golden.floats(&name)?));
                Some([key?, value?])
            }
            None => None,
        };
        Ok(AppendedKeys { learnt, zero: golden.config()["add_zero_attn"] == Value::Bool(true) })
    }

    fn scores(
        &self,
        builder: &Builder<'_>,
        [query, key]: [Tensor; 2],
        heads: usize,
        appended: AppendedKeys,
    ) -> Result<MaskedScores> {
        let [query, key] = [builder.graph.desc(query)?, builder.graph.desc(key)?];
        let (&[batch, seq_q, _], &[_, seq_kv, _]) = (&query.shape[..], &key.shape[..]) else {
            return Err(builder.golden.fail(format!("query is {query}, key is {key}, rank 2 or 3 was expected")));
        };
        Ok(MaskedScores { batch, heads, seq_q, seq_kv, appended: appended.count() })
    }
}

/// A padding mask with its batch axis, which inputs without one leave out.
fn padding_mask(golden: &Golden, name: &str, scores: MaskedScores) -> Result<Option<HostTensor>> {
    let mask = golden.optional(name).cloned();
    mask.map(|mask| if mask.shape() == [scores.seq_kv] { mask.reshape(&[1, scores.seq_kv]) } else { Ok(mask) })
        .transpose()
}

fn masked(builder: &mut Builder<'_>, masks: &TorchMasks, strategy: Strategy) -> Result<Attention> {
    let mask = masks.mask.clone().map(|mask| builder.input("mask", mask)).transpose()?;
    let bias = masks.bias.clone().map(|bias| builder.input("bias", bias)).transpose()?;
    Ok(Attention { mask, bias, strategy, ..Attention::default() })
}

/// The result `[batch, seq_q, width]` with NaN where `[batch, heads, seq_q, 1]` has it for any head: the output projection
/// mixes the heads.
fn with_empty_rows(builder: &mut Builder<'_>, y: Tensor, rows: Tensor) -> Result<Tensor> {
    let any = builder.graph.reduce(rows, Reduction::Sum, &[1], ReducedAxes::Dropped)?;
    builder.graph.binary(y, any, Binary::Add)
}

/// Weights as the layer returns them.
fn returned_weights(builder: &mut Builder<'_>, weights: Tensor, order: AxisOrder) -> Result<Tensor> {
    let averaged = builder.golden.config()["average_attn_weights"] != Value::Bool(false);
    let weights = match averaged {
        true => builder.graph.reduce(weights, Reduction::Mean, &[1], ReducedAxes::Dropped)?,
        false => weights,
    };
    order.without_batch(builder, weights)
}

fn norm(builder: &mut Builder<'_>, name: &str, epsilon: f32) -> Result<Norm> {
    let golden = builder.golden;
    let [scale, bias] = [format!("w.{name}.weight"), format!("w.{name}.bias")];
    let scale = builder.graph.weight(&scale, golden.floats(&scale)?)?;
    let bias = match golden.optional(&bias) {
        Some(_) => Some(builder.graph.weight(&bias, golden.floats(&bias)?)?),
        None => None,
    };
    Ok(Norm { scale, bias, epsilon })
}

fn activation(golden: &Golden) -> Result<Unary> {
    match golden.config()["activation"].as_str() {
        Some("relu") | None => Ok(Unary::Relu),
        Some("gelu") => Ok(Unary::Gelu),
        Some(other) => Err(golden.fail(format!("activation `{other}` is unknown; known are relu, gelu"))),
    }
}
