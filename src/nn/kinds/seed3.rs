//! Layers of seed document 003.

use super::builder::Builder;
use crate::attention::Strategy;
use crate::error::Result;
use crate::graph::Tensor;
use crate::nn::golden::{Golden, GoldenGraph};
use crate::nn::seeds::{DiagonalAttention, PerHeadAttention};
use crate::ops::AxisSlice;

pub(super) fn self_attention(golden: &Golden) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let x = builder.float_input("x")?;
    let (features, dim_q_k, dim_v) = (golden.size("input_dim")?, golden.size("dim_q_k")?, golden.size("dim_v")?);
    let desc = builder.graph.desc(x)?;
    if desc.rank() == 0 || desc.row_length() != features {
        return Err(golden.fail(format!("tensor `in.x` is {desc}, config `input_dim` is {features}")));
    }
    let mut kernel = |name: &str, width| builder.weight(name, &[features, features, width].map(Some));
    let layer = DiagonalAttention {
        query: kernel("w.query_kernel", dim_q_k)?,
        key: kernel("w.key_kernel", dim_q_k)?,
        value: kernel("w.value_kernel", dim_v)?,
    };
    let tensors = layer.add(&mut builder.graph, x)?;
    let [q, k, v] = tensors.qkv;
    builder.outputs(&[("Q", q), ("K", k), ("V", v), ("W", tensors.scores), ("y", tensors.output)])?;
    Ok(builder.finish())
}

pub(super) fn mha(golden: &Golden, strategy: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(golden);
    let inputs = query_key_value(&mut builder)?;
    let (heads, head_size) = (golden.size("num_heads")?, golden.size("head_size")?);
    let mut kernels = inputs;
    let mut shapes = Vec::new();
    for (tensor, name) in kernels.iter_mut().zip(["query", "key", "value"]) {
        let shape = builder.graph.desc(*tensor)?.shape.clone();
        let Some((&features, leading)) = shape.split_last().filter(|(_, leading)| !leading.is_empty()) else {
            return Err(golden.fail(format!("the {name} is {shape:?}, two axes at least were expected")));
        };
        *tensor = builder.weight(&format!("w.{name}_kernel"), &[heads, features, head_size].map(Some))?;
        shapes.push(leading.to_vec());
    }
    let [query, key, value] = kernels;
    let projection = [heads, head_size, golden.size("output_size")?].map(Some);
    let projection = builder.weight("w.projection_kernel", &projection)?;
    let layer = PerHeadAttention { query, key, value, projection, strategy };
    let tensors = layer.add(&mut builder.graph, inputs)?;
    let names = ["query_scaled", "key", "value"];
    for ((name, tensor), leading) in names.into_iter().zip(tensors.qkv).zip(&shapes) {
        builder.shaped_output(name, tensor, &[&leading[..], &[heads, head_size]].concat())?;
    }
    let rows = &shapes[0];
    builder.shaped_output("multihead_output", tensors.merged, &[&rows[..], &[heads, head_size]].concat())?;
    if let Some([scores, weights]) = tensors.scores_and_weights {
        let (&queries, batch) = rows.split_last().expect("an input has two axes");
        let keys = shapes[1].last().copied().expect("an input has two axes");
        let shape = [batch, &[heads, queries, keys]].concat();
        builder.shaped_output("logits", scores, &shape)?;
        builder.shaped_output("attn_coef", weights, &shape)?;
    }
    builder.outputs(&[("y", tensors.output)])?;
    Ok(builder.finish())
}

/// What the call indexes: a list, or the leading axis of one tensor. A value that is not there is the key; everything
/// after the third is ignored.
fn query_key_value(builder: &mut Builder<'_>) -> Result<[Tensor; 3]> {
    let golden = builder.golden;
    if golden.optional("in.x").is_none() && !golden.lists_input("x") {
        let [query, key] = [builder.float_input("query")?, builder.float_input("key")?];
        let has_value = golden.optional("in.value").is_some() || golden.lists_input("value");
        return Ok([query, key, if has_value { builder.float_input("value")? } else { key }]);
    }
    let x = builder.float_input("x")?;
    let desc = builder.graph.desc(x)?.clone();
    let Some((&parts, shape)) = desc.shape.split_first().filter(|(parts, _)| **parts >= 2) else {
        return Err(golden.fail(format!("tensor `in.x` is {desc}, a query and a key at least were expected in it")));
    };
    let rows = builder.graph.reshape(x, &[parts, shape.iter().product()])?;
    let mut part = |index: usize| {
        let row = AxisSlice { axis: 0, start: index as i64, end: index as i64 + 1, step: 1 };
        let row = builder.graph.slice(rows, &[row])?;
        builder.graph.reshape(row, shape)
    };
    let [query, key] = [part(0)?, part(1)?];
    Ok([query, key, if parts > 2 { part(2)? } else { key }])
}
