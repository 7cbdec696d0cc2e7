//! Layers of seed document 000.

use super::builder::Builder;
use crate::error::Result;
use crate::nn::golden::{Golden, GoldenGraph};
use crate::nn::seeds::{Cifar10Cnn, Convolution, Edges, HeadAttention};

pub(super) fn attention(golden: &Golden) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let x = builder.float_input("x")?;
    let features = builder.graph.desc(x)?.row_length();
    let layer = head_attention(&mut builder, "w", features)?;
    let tensors = layer.add(&mut builder.graph, x)?;
    let [q, k, v] = tensors.qkv;
    let scores = [("logits", tensors.scores), ("p", tensors.weights)];
    builder.outputs(&[("q", q), ("k", k), ("v", v)])?;
    builder.outputs(&scores)?;
    builder.outputs(&[("y", tensors.output)])?;
    Ok(builder.finish())
}

pub(super) fn cnn(golden: &Golden) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let (images, [batch, height, width, channels]) = builder.ranked_input::<4>("images")?;
    let wanted = golden.sizes("input_shape")?;
    if wanted != [height, width, channels] {
        let message = format!("tensor `in.images` is {:?}", [batch, height, width, channels]);
        return Err(golden.fail(format!("{message}, config `input_shape` is {wanted:?}")));
    }
    let filters = golden.sizes("filters")?;
    let &[first, second] = &filters[..] else {
        return Err(golden.fail(format!("config `filters` is {filters:?}, two numbers were expected")));
    };
    let convolutions = [
        convolution(&mut builder, "conv1", Edges::Same, [channels, first])?,
        convolution(&mut builder, "conv2", Edges::Valid, [first, first])?,
        convolution(&mut builder, "conv3", Edges::Same, [first, second])?,
        convolution(&mut builder, "conv4", Edges::Valid, [second, second])?,
    ];
    // A valid window of 3 takes two off, a pool halves.
    let halved = |size: usize| size.saturating_sub(2) / 2;
    let features = [height, width].map(|size| halved(halved(size))).into_iter().fold(second, usize::saturating_mul);
    let attention = head_attention(&mut builder, "w.attention", features)?;
    let sizes = [golden.size("head_unit")?, golden.size("classes")?];
    let (dense, _) = builder.dense("dense", sizes.map(Some))?;
    let tensors = Cifar10Cnn { convolutions, attention, dense }.add(&mut builder.graph, images)?;
    let names = ["conv1", "conv2", "conv3", "conv4", "pool1", "pool2"];
    for (name, tensor) in names.into_iter().zip(tensors.convolutions.into_iter().chain(tensors.pools)) {
        builder.graph.output(name, tensor)?;
    }
    builder.outputs(&[("attention", tensors.attention), ("gap", tensors.pooled), ("probs", tensors.output)])?;
    Ok(builder.finish())
}

fn head_attention(builder: &mut Builder<'_>, prefix: &str, features: usize) -> Result<HeadAttention> {
    let heads = builder.golden.size("head_num")?;
    let width = heads.saturating_mul(builder.golden.size("head_unit")?);
    let mut weight = |name: &str| builder.weight(&format!("{prefix}.{name}"), &[Some(features), Some(width)]);
    Ok(HeadAttention { heads, query: weight("query")?, key: weight("key")?, value: weight("value")? })
}

fn convolution(builder: &mut Builder<'_>, name: &str, edges: Edges, [from, to]: [usize; 2]) -> Result<Convolution> {
    let kernel = builder.weight(&format!("w.{name}.kernel"), &[3, 3, from, to].map(Some))?;
    let bias = builder.weight(&format!("w.{name}.bias"), &[Some(to)])?;
    Ok(Convolution { kernel, bias: Some(bias), edges })
}
