//! The layers that golden files are for, by the `kind` in their metadata.

mod keras;
mod keras_mha;
mod torch;

use serde_json::Value;

use super::golden::{Golden, GoldenGraph};
use super::{AppendedKeys, Linear, MultiHeadAttention, Projections, WeightOrder};
use crate::attention::{Attention, Strategy};
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::mask::{Causal, Fill};
use crate::ops::MatMul;
use crate::plan::Outputs;
use crate::tensor::{Dtype, HostTensor};

/// Kinds that [`build`] knows.
const KINDS: [&str; 8] = [
    "keras_attention",
    "keras_gqa",
    "keras_mha",
    "seed1_qkv",
    "seed2_mha",
    "torch_encoder_layer",
    "torch_mha",
    "torch_sdpa",
];

/// Why a file of a known kind cannot be built; `None` where it can.
pub(super) fn lacking(golden: &Golden) -> Option<String> {
    (golden.kind == "keras_attention").then(|| keras::lacking(golden)).flatten()
}

/// The layer of a file as a graph whose outputs are named as in the file.
pub(super) fn build(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
    match golden.kind.as_str() {
        "keras_attention" => keras::attention(golden, strategy),
        "keras_gqa" => keras::grouped_query_attention(golden, strategy),
        "keras_mha" => keras_mha::multi_head_attention(golden, strategy),
        "seed1_qkv" => seed1_qkv(golden, strategy),
        "seed2_mha" => seed2_mha(golden, strategy),
        "torch_encoder_layer" => torch::encoder_layer(golden, strategy),
        "torch_mha" => torch::multihead_attention(golden, strategy),
        "torch_sdpa" => torch_sdpa(golden, strategy),
        other => Err(golden.fail(format!("kind `{other}` is unknown; known are {}", KINDS.join(", ")))),
    }
}

/// A graph under construction and the inputs it needs.
struct Builder<'a> {
    golden: &'a Golden,
    graph: Graph,
    inputs: Vec<(String, HostTensor)>,
}

impl<'a> Builder<'a> {
    fn new(golden: &'a Golden) -> Self {
        Self { golden, graph: Graph::new(), inputs: Vec::new() }
    }

    fn input(&mut self, name: &str, value: HostTensor) -> Result<Tensor> {
        let tensor = self.graph.input(name, value.desc().clone())?;
        self.inputs.push((name.to_owned(), value));
        Ok(tensor)
    }

    fn float_input(&mut self, name: &str) -> Result<Tensor> {
        let value = self.golden.floats(&format!("in.{name}"))?;
        self.input(name, value)
    }

    /// `w.<name>.weight`, and `w.<name>.bias` where there is one.
    fn linear(&mut self, name: &str) -> Result<Linear> {
        let (weight, bias) = (format!("w.{name}.weight"), format!("w.{name}.bias"));
        let value = self.golden.floats(&weight)?;
        let weight = self.graph.weight(&weight, value)?;
        if self.golden.optional(&bias).is_none() {
            return Ok(Linear { weight, bias: None, order: WeightOrder::OutIn });
        }
        let value = self.golden.floats(&bias)?;
        Ok(Linear { weight, bias: Some(self.graph.weight(&bias, value)?), order: WeightOrder::OutIn })
    }

    fn finish(self) -> GoldenGraph {
        GoldenGraph { graph: self.graph, inputs: self.inputs }
    }
}

/// Query-key-value attention, which seed document 001 names: one head, no biases, −1e9 assigned by a key padding mask and by
/// causality.
fn seed1_qkv(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let x = builder.float_input("x")?;
    let source = if golden.optional("in.source").is_some() { builder.float_input("source")? } else { x };
    let mut qkv = [x, source, source];
    for (tensor, name) in qkv.iter_mut().zip(["w.Wq", "w.Wk", "w.Wv"]) {
        let weight = builder.graph.weight(name, golden.floats(name)?)?;
        *tensor = builder.graph.matmul(*tensor, weight, None, MatMul::default())?;
    }
    let mut attention = Attention { fill: Fill::Assign(-1e9), strategy, ..Attention::default() };
    attention.causal = (golden.config()["causal"] == Value::Bool(true)).then_some(Causal::TopLeft);
    if let Some(mask) = golden.optional("in.mask") {
        let keys = mask.shape().to_vec();
        let mask = builder.input("mask", mask.cast(Dtype::Bool))?;
        let &[batch, keys] = &keys[..] else { return Err(golden.fail(format!("tensor `in.mask` is {keys:?}"))) };
        attention.mask = Some(builder.graph.reshape(mask, &[batch, 1, keys])?);
    }
    let [q, k, v] = qkv;
    if strategy != Strategy::Unfused {
        let y = builder.graph.attention(q, k, v, &attention)?;
        builder.graph.output("y", y)?;
        return Ok(builder.finish());
    }
    let steps = builder.graph.attention_steps(qkv, &attention)?;
    builder.graph.output("y", steps.output)?;
    for (name, tensor) in [("scores", steps.scores), ("p", steps.weights)] {
        // One head: the axes are those of x and its source.
        let shape = builder.graph.desc(tensor)?.shape[1..].to_vec();
        let tensor = builder.graph.reshape(tensor, &shape)?;
        builder.graph.output(name, tensor)?;
    }
    Ok(builder.finish())
}

/// The multi-head attention layer of seed document 002: scale `1 / √d_feat` (the whole width), −1e9 assigned where the mask
/// is zero, every intermediate returned. Its activation is stored and never applied.
fn seed2_mha(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
    let heads = golden.size("n_head")?;
    let width = golden.size("d_feat")?;
    let mut builder = Builder::new(golden);
    let has = |name: &str| golden.optional(name).is_some();
    let query = builder.float_input(if has("in.src") { "src" } else { "Q" })?;
    let key = if has("in.K") { builder.float_input("K")? } else { query };
    let value = if has("in.V") { builder.float_input("V")? } else { key };
    let mask = match golden.optional("in.mask") {
        Some(mask) => Some(builder.input("mask", mask.cast(Dtype::Bool))?),
        None => None,
    };
    let attention = Attention {
        scale: Some((1.0 / (width as f64).sqrt()) as f32),
        mask,
        fill: Fill::Assign(-1e9),
        strategy,
        ..Attention::default()
    };
    let layer = MultiHeadAttention {
        heads,
        kv_heads: heads,
        projections: Projections::Separate([
            builder.linear("lin_Q")?,
            builder.linear("lin_K")?,
            builder.linear("lin_V")?,
        ]),
        output: builder.linear("lin_O")?,
        appended: AppendedKeys::default(),
        attention,
    };
    let tensors = layer.add(&mut builder.graph, [query, key, value])?;
    builder.graph.output("x", tensors.output)?;
    if let Some((scores, weights)) = tensors.scores_and_weights {
        builder.graph.output("scores", scores)?;
        builder.graph.output("attention", weights)?;
    }
    Ok(builder.finish())
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

/// Outputs that a file stores as rows and sums of another one.
pub(super) fn derive(golden: &Golden, outputs: &Outputs) -> Result<Outputs> {
    let mut derived = outputs.clone();
    let (Some(x), true) = (outputs.get("x"), golden.optional("f64.x_rows").is_some()) else { return Ok(derived) };
    let &[batch, seq, width] = x.shape() else { return Ok(derived) };
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
    Ok(derived)
}
