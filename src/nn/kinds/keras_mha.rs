//! `keras.layers.MultiHeadAttention`.

use serde_json::Value;

use super::Builder;
use crate::attention::{Attention, Strategy};
use crate::error::Result;
use crate::mask::{Causal, Fill};
use crate::nn::golden::{Golden, GoldenGraph};
use crate::nn::{AppendedKeys, AttendedAxes, Linear, MultiHeadAttention, Projections, WeightOrder};
use crate::tensor::{Dtype, HostTensor};

/// What Keras' fused path puts in place of a masked score.
const MASKED: f32 = -1e9;

/// The layer with `return_attention_scores=True`, where a row that may see no key gives zeros; and `y_without_scores` where
/// the file expects it, the fused path, where such a row is uniform.
pub(super) fn multi_head_attention(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let query = builder.float_input("query")?;
    let value = if golden.optional("in.value").is_some() { builder.float_input("value")? } else { query };
    let key = if golden.optional("in.key").is_some() { builder.float_input("key")? } else { value };
    let shapes = [query, key].map(|tensor| builder.graph.desc(tensor).map(|desc| desc.shape.clone()));
    let [query_shape, key_shape] = shapes;
    let shapes = [&query_shape?[..], &key_shape?];
    let axes = attended(golden, shapes[0].len())?;
    let folded = builder.each_once([query, key, value], |builder, x| axes.fold(&mut builder.graph, x))?;
    let mut attention = Attention { strategy, ..Attention::default() };
    attention.causal = (golden.config()["use_causal_mask"] == Value::Bool(true)).then_some(Causal::TopLeft);
    if let Some(mask) = axes.mask(&masks(golden)?, shapes)? {
        attention.mask = Some(builder.input("mask", mask)?);
    }
    let heads = golden.size("num_heads")?;
    let mut layer = MultiHeadAttention {
        heads,
        kv_heads: heads,
        projections: Projections::Separate([
            projection(&mut builder, "query")?,
            projection(&mut builder, "key")?,
            projection(&mut builder, "value")?,
        ]),
        output: projection(&mut builder, "output")?,
        appended: AppendedKeys::default(),
        attention,
    };
    let tensors = layer.add(&mut builder.graph, folded)?;
    let y = axes.unfold(&mut builder.graph, tensors.output, shapes[0])?;
    builder.graph.output("y", y)?;
    if let Some((_, weights)) = tensors.scores_and_weights {
        let weights = axes.unfold_scores(&mut builder.graph, weights, shapes)?;
        builder.graph.output("scores", weights)?;
    }
    if golden.optional("f64.y_without_scores").is_some() {
        layer.attention.fill = Fill::Assign(MASKED);
        let y = layer.add(&mut builder.graph, folded)?.output;
        let y = axes.unfold(&mut builder.graph, y, shapes[0])?;
        builder.graph.output("y_without_scores", y)?;
    }
    Ok(builder.finish())
}

/// `attention_axes`: a number, a list, or nothing for all.
fn attended(golden: &Golden, rank: usize) -> Result<AttendedAxes> {
    let setting = &golden.config()["attention_axes"];
    let axis = |value: &Value| {
        let axis = value.as_u64().and_then(|axis| usize::try_from(axis).ok());
        axis.ok_or_else(|| golden.fail(format!("config `attention_axes` is {setting}, axes were expected")))
    };
    match setting {
        Value::Null => AttendedAxes::all(rank),
        Value::Array(axes) => AttendedAxes::new(rank, &axes.iter().map(axis).collect::<Result<Vec<_>>>()?),
        one => AttendedAxes::new(rank, &[axis(one)?]),
    }
}

/// The masks that Keras joins: of queries `[batch, seq_q]`, of values and keys `[batch, seq_kv]`, and of pairs.
fn masks(golden: &Golden) -> Result<Vec<HostTensor>> {
    let mut masks = Vec::new();
    for (name, of_queries) in [("query_mask", true), ("value_mask", false), ("key_mask", false)] {
        let Some(mask) = golden.optional(&format!("in.{name}")) else { continue };
        let &[batch, seq] = mask.shape() else {
            return Err(golden.fail(format!("tensor `in.{name}` is {}, [batch, seq] was expected", mask.desc())));
        };
        let shape = if of_queries { [batch, seq, 1] } else { [batch, 1, seq] };
        masks.push(mask.cast(Dtype::Bool).reshape(&shape)?);
    }
    masks.extend(golden.optional("in.attention_mask").map(|mask| mask.cast(Dtype::Bool)));
    Ok(masks)
}

/// `w.<name>.kernel`, `[features, heads, head_dim]` or, of the output, `[heads, head_dim, features]`, with its bias.
fn projection(builder: &mut Builder<'_>, name: &str) -> Result<Linear> {
    let golden = builder.golden;
    let (kernel_name, bias_name) = (format!("w.{name}.kernel"), format!("w.{name}.bias"));
    let kernel = golden.floats(&kernel_name)?;
    let &[first, middle, last] = kernel.shape() else {
        return Err(golden.fail(format!("tensor `{kernel_name}` is {}, rank 3 was expected", kernel.desc())));
    };
    let shape = if name == "output" { [first * middle, last] } else { [first, middle * last] };
    let weight = builder.graph.weight(&kernel_name, kernel.reshape(&shape)?)?;
    let bias = match golden.optional(&bias_name) {
        Some(_) => {
            let bias = golden.floats(&bias_name)?;
            let size = bias.desc().len();
            Some(builder.graph.weight(&bias_name, bias.reshape(&[size])?)?)
        }
        None => None,
    };
    Ok(Linear { weight, bias, order: WeightOrder::InOut })
}
