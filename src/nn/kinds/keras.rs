//! Layers of Keras 3: `Attention`, `AdditiveAttention` and `GroupedQueryAttention`. They take query, value and key in this
//! order; a key that is absent is the value, and a value that is absent is the query. Masks are true where something takes
//! part.

use serde_json::Value;

use super::Builder;
use crate::attention::{Attention, Strategy};
use crate::error::Result;
use crate::graph::Tensor;
use crate::mask::{Causal, Fill, Masking};
use crate::nn::golden::{Golden, GoldenGraph};
use crate::nn::{AdditiveAttention, AppendedKeys, Linear, MultiHeadAttention, Projections, WeightOrder};
use crate::ops::ScoreMasks;
use crate::tensor::{Dtype, HostTensor};

/// What Keras puts in place of a masked score.
const MASKED: f32 = -1e9;
/// The trained number of `score_mode="concat"`.
const SCORE_WEIGHT: &str = "w.concat_score_weight";

/// How a layer scores a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scores {
    /// `Attention`: a product without `1 / √head_dim`, times a trained scale where there is one.
    Dot,
    /// `Attention` with `score_mode="concat"`: additive, a trained scale before the tangent and one number after it.
    Concat,
    /// `AdditiveAttention`: a trained scale for each feature after the tangent.
    Additive,
}

impl Scores {
    fn of(golden: &Golden) -> Result<Self> {
        let config = golden.config();
        match (config["class"].as_str().unwrap_or("Attention"), config["score_mode"].as_str().unwrap_or("dot")) {
            ("AdditiveAttention", _) => Ok(Self::Additive),
            ("Attention", "dot") => Ok(Self::Dot),
            ("Attention", "concat") => Ok(Self::Concat),
            ("Attention", mode) => {
                Err(golden.fail(format!("score_mode `{mode}` of Keras Attention is unknown; known are dot, concat")))
            }
            (class, _) => Err(golden.fail(format!("Keras {class} is unknown; known are Attention, AdditiveAttention"))),
        }
    }
}

/// `Attention` or `AdditiveAttention`: −1e9 on masked scores, so that a row without a key is uniform; zeros in rows that
/// the query's mask leaves out.
pub(super) fn attention(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
    let scores = Scores::of(golden)?;
    let mut known = vec!["in.query", "in.value", "in.key", "in.query_mask", "in.value_mask", "w.scale"];
    known.extend((scores == Scores::Concat).then_some(SCORE_WEIGHT));
    only(golden, &known)?;
    let mut builder = Builder::new(golden);
    let qkv = query_key_value(&mut builder)?;
    let y = match scores {
        Scores::Dot => dot(&mut builder, qkv, strategy)?,
        Scores::Concat | Scores::Additive => additive(&mut builder, qkv, scores)?,
    };
    let y = match golden.optional("in.query_mask") {
        None => y,
        Some(mask) => {
            let rows = mask_input(&mut builder, "query_mask", mask, |[batch, queries]| vec![batch, 1, queries, 1])?;
            keep_rows(&mut builder, y, rows)?
        }
    };
    builder.graph.output("y", y)?;
    Ok(builder.finish())
}

fn dot(builder: &mut Builder<'_>, qkv: [Tensor; 3], strategy: Strategy) -> Result<Tensor> {
    let golden = builder.golden;
    let config = golden.config();
    let scale = if config["use_scale"] == Value::Bool(true) { scalar(golden, "w.scale")? } else { 1.0 };
    let mut options = Attention {
        scale: Some(scale),
        fill: Fill::Assign(MASKED),
        causal: causal(golden),
        strategy,
        ..Attention::default()
    };
    options.mask = value_mask(builder, |[batch, keys]| vec![batch, 1, keys])?;
    if strategy != Strategy::Unfused {
        let [q, k, v] = qkv;
        return builder.graph.attention(q, k, v, &options);
    }
    let steps = builder.graph.attention_steps(qkv, &options)?;
    // One head: the axes are those of query and value.
    let shape = builder.graph.desc(steps.weights)?.shape[1..].to_vec();
    let weights = builder.graph.reshape(steps.weights, &shape)?;
    builder.graph.output("p", weights)?;
    Ok(steps.output)
}

fn additive(builder: &mut Builder<'_>, qkv: [Tensor; 3], scores: Scores) -> Result<Tensor> {
    let golden = builder.golden;
    let mut layer =
        AdditiveAttention { causal: causal(golden), fill: Fill::Assign(MASKED), ..AdditiveAttention::default() };
    let setting = &golden.config()["use_scale"];
    if scores == Scores::Concat {
        layer.scale = Some(one_number(builder, SCORE_WEIGHT)?);
        // Keras' default is no scale here, and a scale in the other class.
        layer.inner_scale = (*setting == Value::Bool(true)).then(|| one_number(builder, "w.scale")).transpose()?;
    } else if *setting != Value::Bool(false) {
        let width = builder.graph.desc(qkv[0])?.row_length();
        layer.scale = Some(builder.weight("w.scale", &[Some(width)])?);
    }
    layer.mask = value_mask(builder, |[batch, keys]| vec![batch, 1, 1, keys])?;
    let tensors = layer.add(&mut builder.graph, qkv)?;
    builder.graph.output("p", tensors.weights)?;
    Ok(tensors.output)
}

/// A weight of one number, which Keras keeps without axes.
fn one_number(builder: &mut Builder<'_>, name: &str) -> Result<Tensor> {
    let number = scalar(builder.golden, name)?;
    builder.graph.weight(name, HostTensor::f32(&[1], vec![number])?)
}

fn value_mask(builder: &mut Builder<'_>, shape: fn([usize; 2]) -> Vec<usize>) -> Result<Option<Tensor>> {
    let mask = builder.golden.optional("in.value_mask");
    mask.map(|mask| mask_input(builder, "value_mask", mask, shape)).transpose()
}

/// `GroupedQueryAttention` that returns its scores: a row without a key gives zeros and then the output's bias.
pub(super) fn grouped_query_attention(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
    let inputs =
        ["in.query", "in.value", "in.key", "in.attention_mask", "in.query_mask", "in.key_mask", "in.value_mask"];
    let weights =
        ["query", "key", "value", "output"].map(|name| [format!("w.{name}.kernel"), format!("w.{name}.bias")]);
    let known: Vec<&str> = inputs.into_iter().chain(weights.iter().flatten().map(String::as_str)).collect();
    only(golden, &known)?;
    let (heads, kv_heads) = (golden.size("num_query_heads")?, golden.size("num_key_value_heads")?);
    let mut builder = Builder::new(golden);
    let [query, key, value] = query_key_value(&mut builder)?;
    let mut options = Attention { causal: causal(golden), strategy, ..Attention::default() };
    let sizes = [query, value].map(|tensor| builder.graph.desc(tensor).map(|desc| desc.shape.clone()));
    let [sizes, source] = sizes;
    let (&[batch, queries, _], &[_, keys, _]) = (&sizes?[..], &source?[..]) else {
        return Err(golden.fail("query and value need rank 3"));
    };
    if let Some(mask) = combined_mask(golden, [batch, queries, keys])? {
        options.mask = Some(builder.input("mask", mask)?);
    }
    let layer = MultiHeadAttention {
        heads,
        kv_heads,
        projections: Projections::Separate([
            projection(&mut builder, "query", Side::Heads)?,
            projection(&mut builder, "key", Side::Heads)?,
            projection(&mut builder, "value", Side::Heads)?,
        ]),
        output: projection(&mut builder, "output", Side::Features)?,
        appended: AppendedKeys::default(),
        attention: options,
    };
    let tensors = layer.add(&mut builder.graph, [query, key, value])?;
    builder.graph.output("y", tensors.output)?;
    if let Some((_, weights)) = tensors.scores_and_weights {
        builder.graph.output("scores", weights)?;
    }
    Ok(builder.finish())
}

/// Refuses inputs and weights that the layer would not read.
fn only(golden: &Golden, known: &[&str]) -> Result<()> {
    let given = golden.names().filter(|name| name.starts_with("in.") || name.starts_with("w."));
    match given.into_iter().find(|name| !known.contains(name)) {
        Some(name) => Err(golden.fail(format!("tensor `{name}` is none of a layer of kind `{}`", golden.kind))),
        None => Ok(()),
    }
}

fn query_key_value(builder: &mut Builder<'_>) -> Result<[Tensor; 3]> {
    let golden = builder.golden;
    let has = |name: &str| golden.optional(name).is_some();
    let query = builder.float_input("query")?;
    let value = if has("in.value") { builder.float_input("value")? } else { query };
    let key = if has("in.key") { builder.float_input("key")? } else { value };
    Ok([query, key, value])
}

fn causal(golden: &Golden) -> Option<Causal> {
    (golden.config()["use_causal_mask"] == Value::Bool(true)).then_some(Causal::TopLeft)
}

fn scalar(golden: &Golden, name: &str) -> Result<f32> {
    let value = golden.floats(name)?;
    match value.to_f64()[..] {
        [scalar] => Ok(scalar as f32),
        _ => Err(golden.fail(format!("tensor `{name}` is {}, one number was expected", value.desc()))),
    }
}

/// A mask of two axes as an input, under the shape that it broadcasts from.
fn mask_input(
    builder: &mut Builder<'_>,
    name: &str,
    mask: &HostTensor,
    shape: fn([usize; 2]) -> Vec<usize>,
) -> Result<Tensor> {
    let &[first, second] = mask.shape() else {
        return Err(builder.golden.fail(format!("tensor `in.{name}` is {}, two axes were expected", mask.desc())));
    };
    let mask = builder.input(name, mask.cast(Dtype::Bool))?;
    builder.graph.reshape(mask, &shape([first, second]))
}

/// Zeros in the rows of `y` `[batch, seq, width]` where the mask says false: what masking does to scores.
fn keep_rows(builder: &mut Builder<'_>, y: Tensor, rows: Tensor) -> Result<Tensor> {
    let shape = builder.graph.desc(y)?.shape.clone();
    let &[batch, seq, width] = &shape[..] else {
        return Err(builder.golden.fail(format!("the output has shape {shape:?}, rank 3 was expected")));
    };
    let scores = builder.graph.reshape(y, &[batch, 1, seq, width])?;
    let masking = Masking { fill: Fill::Assign(0.0), ..Masking::default() };
    let kept = builder.graph.mask_scores(scores, &ScoreMasks { masking, mask: Some(rows), ..ScoreMasks::default() })?;
    builder.graph.reshape(kept, &shape)
}

/// All masks of a file, combined: `[batch, 1, queries, keys]`.
fn combined_mask(golden: &Golden, [batch, queries, keys]: [usize; 3]) -> Result<Option<HostTensor>> {
    // Sizes of each mask, and what lies between two neighbours along batch, queries and keys.
    let masks = [
        ("in.attention_mask", vec![batch, queries, keys], [queries * keys, keys, 1]),
        ("in.query_mask", vec![batch, queries], [queries, 1, 0]),
        ("in.key_mask", vec![batch, keys], [keys, 0, 1]),
        ("in.value_mask", vec![batch, keys], [keys, 0, 1]),
    ];
    let mut combined: Option<Vec<bool>> = None;
    for (name, shape, strides) in masks {
        let Some(mask) = golden.optional(name) else { continue };
        if mask.shape() != shape {
            return Err(golden.fail(format!("tensor `{name}` is {}, {shape:?} was expected", mask.desc())));
        }
        let mask = mask.to_f64();
        let combined = combined.get_or_insert_with(|| vec![true; batch * queries * keys]);
        for (index, seen) in combined.iter_mut().enumerate() {
            let at = [index / keys / queries, index / keys % queries, index % keys];
            *seen &= mask[at.iter().zip(strides).map(|(at, stride)| at * stride).sum::<usize>()] != 0.0;
        }
    }
    combined.map(|combined| HostTensor::bool(&[batch, 1, queries, keys], combined)).transpose()
}

/// Which side of a projection has two axes, heads and head_dim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// What comes out: kernel `[features, heads, head_dim]`.
    Heads,
    /// What goes in: kernel `[heads, head_dim, features]`.
    Features,
}

/// A kernel with three axes, and its bias where there is one, as PyTorch stores them.
fn projection(builder: &mut Builder<'_>, name: &str, side: Side) -> Result<Linear> {
    let golden = builder.golden;
    let (kernel_name, bias_name) = (format!("w.{name}.kernel"), format!("w.{name}.bias"));
    let kernel = golden.floats(&kernel_name)?;
    let &[first, middle, last] = kernel.shape() else {
        return Err(golden.fail(format!("tensor `{kernel_name}` is {}, three axes were expected", kernel.desc())));
    };
    let [rows, columns] = match side {
        Side::Heads => [first, middle * last],
        Side::Features => [first * middle, last],
    };
    let data = kernel.to_f64();
    let turned = (0..rows * columns).map(|index| data[index % rows * columns + index / rows]).collect();
    let weight = HostTensor::f64(&[columns, rows], turned)?.cast(Dtype::F32);
    let weight = builder.graph.weight(&kernel_name, weight)?;
    if golden.optional(&bias_name).is_none() {
        return Ok(Linear { weight, bias: None, order: WeightOrder::OutIn });
    }
    let bias = golden.floats(&bias_name)?.reshape(&[columns])?;
    Ok(Linear { weight, bias: Some(builder.graph.weight(&bias_name, bias)?), order: WeightOrder::OutIn })
}
