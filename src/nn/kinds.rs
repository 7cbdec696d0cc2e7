//! The layers that golden files are for, by the `kind` in their metadata.

mod builder;
mod keras;
mod keras_mha;
mod seed0;
mod seed1;
mod seed2;
mod seed3;
mod seed4;
mod torch;

use serde_json::Value;

use super::golden::{Golden, GoldenGraph};
use crate::attention::{Attention, Strategy};
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::mask::Causal;
use crate::plan::Outputs;
use crate::tensor::{Dtype, HostTensor};
use builder::Builder;

/// How the layer of a kind is built.
#[derive(Clone, Copy)]
enum Build {
    /// Its attention is fused or not.
    Either(fn(&Golden, Strategy) -> Result<GoldenGraph>),
    /// It has no attention that fused kernels compute.
    Once(fn(&Golden) -> Result<GoldenGraph>),
}

/// Every kind.
const KINDS: &[(&str, Build)] = &[
    ("keras_attention", Build::Either(keras::attention)),
    ("keras_gqa", Build::Either(keras::grouped_query_attention)),
    ("keras_mha", Build::Either(keras_mha::multi_head_attention)),
    ("seed0_attention", Build::Once(seed0::attention)),
    ("seed0_cnn", Build::Once(seed0::cnn)),
    ("seed1_cnn", Build::Once(seed1::cnn)),
    ("seed1_context", Build::Once(seed1::context)),
    ("seed1_feedforward", Build::Once(seed1::feedforward)),
    ("seed1_qkv", Build::Either(seed1::qkv)),
    ("seed1_rnn", Build::Once(seed1::rnn)),
    ("seed2_lstm", Build::Once(seed2::lstm)),
    ("seed2_mha", Build::Either(seed2::mha)),
    ("seed3_mha", Build::Either(seed3::mha)),
    ("seed3_self_attention", Build::Once(seed3::self_attention)),
    ("seed4_attention", Build::Either(seed4::attention)),
    ("torch_encoder_layer", Build::Either(torch::encoder_layer)),
    ("torch_mha", Build::Either(torch::multihead_attention)),
    ("torch_sdpa", Build::Either(torch_sdpa)),
];

/// Kinds of whole models, whose weights are in a folder of their own.
const MODELS: &[&str] = &["minilm"];

/// What to say of a kind that is unknown; `None` where it is known.
pub(super) fn unknown(kind: &str) -> Option<String> {
    let known: Vec<_> = KINDS.iter().map(|(kind, _)| *kind).chain(MODELS.iter().copied()).collect();
    (!known.contains(&kind)).then(|| format!("kind `{kind}` is unknown; known are {}", known.join(", ")))
}

/// Whether a kind is a whole model.
pub(super) fn is_model(kind: &str) -> bool {
    MODELS.contains(&kind)
}

/// The strategies under which the layer of a kind is not the same computation.
pub(super) fn strategies(kind: &str) -> &'static [Strategy] {
    match KINDS.iter().find(|(known, _)| *known == kind) {
        Some((_, Build::Once(_))) => &[Strategy::Auto],
        _ => &[Strategy::Fused, Strategy::Unfused],
    }
}

/// Whether a tensor of a kind holds integers: ids, which load as u32.
pub(super) fn holds_ids(kind: &str, tensor: &str) -> bool {
    (kind, tensor) == ("seed1_rnn", "in.ids") || (is_model(kind) && tensor.starts_with("in."))
}

/// The layer of a file as a graph whose outputs are named as in the file.
pub(super) fn build(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
    match KINDS.iter().find(|(kind, _)| *kind == golden.kind) {
        Some((_, Build::Either(build))) => build(golden, strategy),
        Some((_, Build::Once(build))) => build(golden),
        // Kinds are known here.
        None => {
            let message =
                format!("kind `{}` is a whole model, whose weights are in a folder of their own", golden.kind);
            Err(golden.fail(message))
        }
    }
}

/// PyTorch's `scaled_dot_product_attention` over any leading axes.
fn torch_sdpa(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let mut qkv = [builder.float_input("query")?, builder.float_input("key")?, builder.float_input("value")?];
    let output_shape = {
        let mut shape = builder.graph.desc(qkv[0])?.shape.clone();
        *shape.last_mut().expect("a query has a last axis") = *builder.graph.desc(qkv[2])?.shape.last().unwrap_or(&0);
        shape
    };
    for tensor in &mut qkv {
        *tensor = fold_leading(&mut builder.graph, *tensor)?;
    }
    let mut attention = Attention { strategy, ..Attention::default() };
    if let Some(mask) = golden.optional("in.attn_mask") {
        let boolean = mask.desc().dtype == Dtype::Bool;
        let mask = builder.input("attn_mask", if boolean { mask.clone() } else { mask.cast(Dtype::F32) })?;
        let mask = Some(fold_leading(&mut builder.graph, mask)?);
        (attention.mask, attention.bias) = if boolean { (mask, None) } else { (None, mask) };
    }
    attention.scale = golden.config()["scale"].as_f64().map(|scale| scale as f32);
    attention.causal = (golden.config()["is_causal"] == Value::Bool(true)).then_some(Causal::TopLeft);
    let [q, k, v] = qkv;
    let y = builder.graph.attention(q, k, v, &attention)?;
    let y = builder.graph.reshape(y, &output_shape)?;
    builder.graph.output("y", y)?;
    Ok(builder.finish())
}

/// Rank 4 at most: the axes before the last three become one.
fn fold_leading(graph: &mut Graph, tensor: Tensor) -> Result<Tensor> {
    let shape = graph.desc(tensor)?.shape.clone();
    let Some(extra) = shape.len().checked_sub(4).filter(|&extra| extra > 0) else { return Ok(tensor) };
    let (leading, last) = shape.split_at(extra + 1);
    graph.reshape(tensor, &[&[leading.iter().product()], last].concat())
}

/// Outputs that a file stores as rows and sums of another one, or for one element of the batch.
pub(super) fn derive(golden: &Golden, outputs: &Outputs) -> Result<Outputs> {
    let mut derived = outputs.clone();
    for name in golden.expected().into_keys().filter(|name| !outputs.contains_key(*name)) {
        // Such as `scores_batch1`.
        let Some((base, number)) = name.rsplit_once("_batch") else { continue };
        if let (Some(whole), Ok(number)) = (outputs.get(base), number.parse::<usize>()) {
            derived.extend(batch_element(whole, number)?.map(|element| (name.to_owned(), element)));
        }
    }
    if let (Some(x), true) = (outputs.get("x"), golden.optional("f64.x_rows").is_some()) {
        rows_and_sums(golden, x, &mut derived)?;
    }
    Ok(derived)
}

/// One element of the batch, without its axis; `None` where there is no such element.
fn batch_element(whole: &HostTensor, number: usize) -> Result<Option<HostTensor>> {
    let Some((_, shape)) = whole.shape().split_first().filter(|(batch, _)| number < **batch) else { return Ok(None) };
    let size = shape.iter().product::<usize>();
    Ok(Some(HostTensor::f64(shape, whole.to_f64()[number * size..(number + 1) * size].to_vec())?))
}

fn rows_and_sums(golden: &Golden, x: &HostTensor, derived: &mut Outputs) -> Result<()> {
    let &[batch, seq, width] = x.shape() else { return Ok(()) };
    let data = x.to_f64();
    let rows = golden.config()["rows"].as_array().ok_or_else(|| golden.fail("config `rows` is missing"))?;
    let mut picked = Vec::new();
    for row in rows {
        let row = row.as_u64().filter(|&row| row < batch as u64);
        let row = row.ok_or_else(|| golden.fail(format!("config `rows` names one outside 0..{batch}")))? as usize;
        picked.extend_from_slice(&data[row * seq * width..(row + 1) * seq * width]);
    }
    derived.insert("x_rows".into(), HostTensor::f64(&[rows.len(), seq, width], picked)?);
    let terms: [fn(f64) -> f64; 3] = [|x| x, f64::abs, |x| x * x];
    for (name, term) in ["x_sum", "x_abs_sum", "x_square_sum"].into_iter().zip(terms) {
        let sums = data.chunks_exact(width.max(1)).map(|row| row.iter().copied().map(term).sum()).collect();
        derived.insert(name.into(), HostTensor::f64(&[batch, seq], sums)?);
    }
    Ok(())
}
