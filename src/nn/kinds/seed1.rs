//! Layers of seed document 001.

use serde_json::Value;

use super::builder::Builder;
use crate::attention::{Attention, Strategy};
use crate::error::Result;
use crate::mask::{Causal, Fill};
use crate::nn::LstmWeights;
use crate::nn::golden::{Golden, GoldenGraph};
use crate::nn::seeds::{
    BatchNorm, CnnAttention, ContextAttention, Convolution, Edges, FeedForwardAttention, MapLayer, RnnAttention,
};
use crate::ops::{Gate, MatMul};
use crate::tensor::Dtype;

pub(super) fn feedforward(golden: &Golden) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let (x, [batch, steps, features]) = builder.ranked_input::<3>("x")?;
    let layer = FeedForwardAttention {
        weight: builder.weight("w.W", &[Some(features)])?,
        bias: builder.optional_bias("w.b", &[Some(steps)])?,
    };
    let mask = builder.mask("mask", &[batch, steps])?.map(|mask| builder.input("mask", mask)).transpose()?;
    let tensors = layer.add(&mut builder.graph, x, mask)?;
    builder.outputs(&[("u", tensors.scores), ("a", tensors.weights), ("y", tensors.output)])?;
    Ok(builder.finish())
}

pub(super) fn context(golden: &Golden) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let (x, [batch, steps, features]) = builder.ranked_input::<3>("x")?;
    let weight = builder.weight("w.W", &[Some(features), None])?;
    let width = builder.graph.desc(weight)?.row_length();
    let bias = builder.optional_bias("w.b", &[Some(width)])?;
    let layer = ContextAttention { weight, bias, context: builder.weight("w.u", &[Some(width)])? };
    let mask = builder.mask("mask", &[batch, steps])?.map(|mask| builder.input("mask", mask)).transpose()?;
    let tensors = layer.add(&mut builder.graph, x, mask)?;
    builder.outputs(&[("uit", tensors.hidden), ("ait", tensors.scores)])?;
    builder.outputs(&[("a", tensors.weights), ("y", tensors.output)])?;
    Ok(builder.finish())
}

pub(super) fn cnn(golden: &Golden) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let (features, [_, height, width, channels]) = builder.ranked_input::<4>("features")?;
    let (first, inner) = pointwise(&mut builder, "conv1", [Some(channels), None])?;
    let (second, inner) = pointwise(&mut builder, "conv2", [Some(inner), None])?;
    let map = if golden.config()["locally_connected"] == Value::Bool(true) {
        let kernel = builder.weight("w.local.kernel", &[height.saturating_mul(width), inner, 1].map(Some))?;
        MapLayer::Local { kernel, bias: Some(builder.weight("w.local.bias", &[height, width, 1].map(Some))?) }
    } else {
        MapLayer::Shared(pointwise(&mut builder, "conv3", [Some(inner), Some(1)])?.0)
    };
    let (hidden, inner) = builder.dense("dense1", [Some(channels), None])?;
    let (head, _) = builder.dense("dense2", [Some(inner), None])?;
    let norm = batch_norm(&mut builder, channels)?;
    let layer = CnnAttention { norm, convolutions: [first, second], map, hidden, head };
    let tensors = layer.add(&mut builder.graph, features)?;
    let [conv1, conv2] = tensors.convolutions;
    builder.outputs(&[("bn_features", tensors.normalised), ("conv1", conv1), ("conv2", conv2)])?;
    builder.outputs(&[("attention_map", tensors.map), ("gap_features", tensors.pooled_features)])?;
    // The file has one number for each of the channels that the original copies the map to.
    let gap_mask = builder.graph.elementwise(&[tensors.pooled_map, tensors.pooled], &[])?;
    builder.outputs(&[("gap_mask", gap_mask), ("gap", tensors.pooled)])?;
    builder.outputs(&[("dense1", tensors.hidden), ("y", tensors.output)])?;
    Ok(builder.finish())
}

/// A convolution of 1 × 1, and its number of channels.
fn pointwise(builder: &mut Builder<'_>, name: &str, [from, to]: [Option<usize>; 2]) -> Result<(Convolution, usize)> {
    let kernel = builder.weight(&format!("w.{name}.kernel"), &[Some(1), Some(1), from, to])?;
    let width = builder.graph.desc(kernel)?.row_length();
    let bias = builder.weight(&format!("w.{name}.bias"), &[Some(width)])?;
    Ok((Convolution { kernel, bias: Some(bias), edges: Edges::Valid }, width))
}

fn batch_norm(builder: &mut Builder<'_>, channels: usize) -> Result<BatchNorm> {
    let epsilon = builder.golden.number("bn_epsilon")? as f32;
    let mut weight = |name: &str| builder.weight(&format!("w.bn.{name}"), &[Some(channels)]);
    let [gamma, beta] = [weight("gamma")?, weight("beta")?];
    Ok(BatchNorm { gamma, beta, mean: weight("mean")?, variance: weight("variance")?, epsilon })
}

pub(super) fn rnn(golden: &Golden) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let table = builder.floats("w.embedding", &[None, None])?;
    let (vocabulary, width) = (table.shape()[0], table.shape()[1]);
    let embedding = builder.graph.weight("w.embedding", table)?;
    let ids = golden.ids("in.ids", vocabulary)?.clone();
    let &[batch, steps] = ids.shape() else {
        return Err(golden.fail(format!("tensor `in.ids` is {}, two axes were expected", ids.desc())));
    };
    let given = builder.mask("mask", &[batch, steps])?;
    // With mask_zero, id 0 is no step.
    let zeros = (golden.config()["mask_zero"] == Value::Bool(true)).then_some(&ids);
    let mask = given.as_ref().or(zeros).map(|mask| mask.cast(Dtype::Bool));
    let mask = mask.map(|mask| builder.input("mask", mask)).transpose()?;
    let ids = builder.input("ids", ids)?;
    let units = golden.size("units")?;
    let both = Some(units.saturating_mul(2));
    let gate = gate(golden)?;
    let lstm = [lstm(&builder, "lstm_fwd", [width, units])?, lstm(&builder, "lstm_bwd", [width, units])?];
    let attention = FeedForwardAttention {
        weight: builder.weight("w.attention.W", &[both])?,
        bias: Some(builder.weight("w.attention.b", &[Some(steps)])?),
    };
    let (hidden, inner) = builder.dense("dense1", [both, None])?;
    let (head, _) = builder.dense("dense2", [Some(inner), None])?;
    let layer = RnnAttention { embedding, lstm, gate, attention, hidden, head };
    let tensors = layer.add(&mut builder.graph, ids, mask)?;
    let attention = tensors.attention;
    builder.outputs(&[("embedded", tensors.embedded), ("sequence", tensors.sequence)])?;
    builder.outputs(&[("u", attention.scores), ("a", attention.weights), ("context", attention.output)])?;
    builder.outputs(&[("dense1", tensors.hidden), ("y", tensors.output)])?;
    Ok(builder.finish())
}

fn gate(golden: &Golden) -> Result<Gate> {
    let activation = &golden.config()["recurrent_activation"];
    match activation.as_str() {
        Some("sigmoid") => Ok(Gate::Sigmoid),
        Some("hard_sigmoid") => Ok(Gate::HardSigmoid),
        _ => {
            let message = format!("config `recurrent_activation` is {activation}");
            Err(golden.fail(format!("{message}, sigmoid or hard_sigmoid was expected")))
        }
    }
}

/// One direction as Keras stores it.
fn lstm(builder: &Builder<'_>, name: &str, [width, units]: [usize; 2]) -> Result<LstmWeights> {
    let gates = Some(units.saturating_mul(4));
    let kernel = builder.floats(&format!("w.{name}.kernel"), &[Some(width), gates])?;
    let recurrent = builder.floats(&format!("w.{name}.recurrent"), &[Some(units), gates])?;
    let bias = builder.floats(&format!("w.{name}.bias"), &[gates])?;
    LstmWeights::keras(&kernel, &recurrent, Some(&bias))
}

/// Query-key-value attention, which seed document 001 names: one head, no biases, −1e9 assigned by a key padding mask and by
/// causality.
pub(super) fn qkv(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
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
    builder.outputs(&[("q", q), ("k", k), ("v", v), ("y", steps.output)])?;
    for (name, tensor) in [("scores", steps.scores), ("p", steps.weights)] {
        // One head: the axes are those of x and its source.
        let shape = builder.graph.desc(tensor)?.shape[1..].to_vec();
        let tensor = builder.graph.reshape(tensor, &shape)?;
        builder.graph.output(name, tensor)?;
    }
    Ok(builder.finish())
}
