//! The layer of seed document 004.

use super::builder::Builder;
use crate::attention::Strategy;
use crate::error::Result;
use crate::nn::golden::{Golden, GoldenGraph};
use crate::nn::seeds::PositionAttention;

pub(super) fn attention(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let (x, [batch, steps, width]) = builder.ranked_input::<3>("x")?;
    let out = golden.size("out_dim")?;
    if width != out && width != 1 {
        let message = format!("tensor `in.x` is {:?}, config `out_dim` is {out}", [batch, steps, width]);
        return Err(golden.fail(format!("{message}; the width must be that or 1")));
    }
    let mut weight = |name: &str| {
        // One row for all positions, where the length was unknown when the layer was built.
        let shared = golden.optional(name).is_some_and(|weight| weight.shape() == [1, out]);
        builder.weight(name, &[Some(if shared { 1 } else { steps }), Some(out)])
    };
    let (query, key, value) = (weight("w.qw")?, weight("w.kw")?, weight("w.vw")?);
    let layer = PositionAttention { key_size: golden.size("key_size")?, query, key, value, strategy };
    let tensors = layer.add(&mut builder.graph, x)?;
    let [q, k, v] = tensors.qkv;
    builder.outputs(&[("q", q), ("k", k), ("v", v)])?;
    if let Some([scores, weights]) = tensors.scores_and_weights {
        builder.outputs(&[("qk", scores), ("p", weights)])?;
    }
    builder.outputs(&[("y", tensors.output)])?;
    Ok(builder.finish())
}
