//! Layers of seed document 002.

use super::builder::Builder;
use crate::attention::{Attention, Strategy};
use crate::error::Result;
use crate::mask::Fill;
use crate::nn::golden::{Golden, GoldenGraph};
use crate::nn::seeds::LstmClassifier;
use crate::nn::{AppendedKeys, Linear, LstmWeights, MultiHeadAttention, Projections, WeightOrder};
use crate::tensor::Dtype;

pub(super) fn lstm(golden: &Golden) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let (x, [_, _, width]) = builder.ranked_input::<3>("x")?;
    let (xdim, hdim, ydim) = (golden.size("xdim")?, golden.size("hdim")?, golden.size("ydim")?);
    if width != xdim {
        return Err(golden.fail(format!("tensor `in.x` has {width} features, config `xdim` is {xdim}")));
    }
    let mut layers = Vec::new();
    for layer in 0..golden.size("n_layer")? {
        let gates = Some(hdim.saturating_mul(4));
        let weight = |name: &str, shape: &[Option<usize>]| builder.floats(&format!("w.rnn.{name}_l{layer}"), shape);
        let from = if layer == 0 { xdim } else { hdim };
        let of_input = weight("weight_ih", &[gates, Some(from)])?;
        let of_state = weight("weight_hh", &[gates, Some(hdim)])?;
        let biases = [weight("bias_ih", &[gates])?, weight("bias_hh", &[gates])?];
        layers.push(LstmWeights::torch(&of_input, &of_state, Some(biases.each_ref()))?);
    }
    let head = Linear {
        weight: builder.weight("w.lin.weight", &[Some(ydim), Some(hdim)])?,
        bias: Some(builder.weight("w.lin.bias", &[Some(ydim)])?),
        order: WeightOrder::OutIn,
    };
    let tensors = LstmClassifier { layers, head }.add(&mut builder.graph, x)?;
    builder.outputs(&[("rnn_out", tensors.sequence), ("rnn_out_last", tensors.last)])?;
    builder.outputs(&[("hn", tensors.hidden), ("cn", tensors.cells), ("y", tensors.output)])?;
    Ok(builder.finish())
}

/// The multi-head attention layer of seed document 002: scale `1 / √d_feat` (the whole width), −1e9 assigned where the mask
/// is zero, every intermediate returned. Its activation is stored and never applied.
pub(super) fn mha(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
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
        builder.outputs(&[("scores", scores), ("attention", weights)])?;
        // Only here: what is asked for is computed on its own, where fused attention reads and writes merged heads.
        let [q, k, v] = tensors.features;
        builder.outputs(&[("Q_feat", q), ("K_feat", k), ("V_feat", v)])?;
        builder.outputs(&[("x_raw", tensors.attended), ("x_rsh2", tensors.merged)])?;
    }
    Ok(builder.finish())
}
