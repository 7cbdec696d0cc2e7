//! `FlexAttention` of ONNX's preview domain, opset 1. Scores are modified by a chain of element-wise steps at most, each of the
//! score and what follows from its sizes. A sum is a bias of attention.

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use super::score_mod::{self, Change};
use crate::attention::{Attention, Strategy};
use crate::error::Result;
use crate::graph::Tensor;
use crate::nn::golden::GoldenGraph;
use crate::ops::{Binary, MatMul};
use crate::tensor::Dtype;

const SLOTS: Slots = Slots { inputs: &["Q", "K", "V"], required: 3, outputs: 1 };
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const SCORE_MOD: &str = "score_mod";

pub(super) fn lacking(node: &OnnxNode) -> Option<String> {
    if node.attributes.contains_key("prob_mod") {
        return Some("`prob_mod` is not supported".into());
    }
    // Shapes that are none are the builder's to refuse.
    let modified = score_mod::read(node.attributes.get(SCORE_MOD)?, sizes(node)?);
    modified.err().map(|reason| format!("`{SCORE_MOD}`: {reason}"))
}

/// Batch, heads, queries and keys.
fn sizes(node: &OnnxNode) -> Option<[usize; 4]> {
    match (node.input_shape(Q)?, node.input_shape(K)?) {
        (&[batch, heads, queries, _], &[_, _, keys, _]) => Some([batch, heads, queries, keys]),
        _ => None,
    }
}

pub(super) fn build(node: &OnnxNode, strategy: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &SLOTS)?;
    let dtype = builder.one_float_dtype(&[Q, K, V])?;
    let mut attributes = Attributes::of(node);
    let scale = attributes.float("scale")?;
    let modified = attributes.find(SCORE_MOD);
    attributes.finish()?;
    for slot in [Q, K, V] {
        let (name, shape) = (SLOTS.inputs[slot], builder.shape(slot)?);
        if shape.len() != 4 {
            return Err(node.fail(format!("input `{name}` {shape:?} has rank {}, 4 was expected", shape.len())));
        }
    }
    let changes = match modified.zip(sizes(node)) {
        Some((modified, sizes)) => score_mod::read(modified, sizes).map_err(|reason| node.fail(reason))?,
        None => Vec::new(),
    };
    let bias = match &changes[..] {
        [] => None,
        [Change::Binary(Binary::Add, sum)] => Some(builder.graph.constant(score_mod::tensor(sum)?)?),
        _ => {
            let y = modified_scores(&mut builder, scale, &changes)?;
            let y = builder.cast(y, dtype)?;
            builder.output(0, y)?;
            return Ok(builder.finish());
        }
    };
    let [q, k, v] = [builder.float(Q, dtype)?, builder.float(K, dtype)?, builder.float(V, dtype)?];
    let y = builder.graph.attention(q, k, v, &Attention { scale, bias, strategy, ..Attention::default() })?;
    builder.output(0, y)?;
    Ok(builder.finish())
}

/// Scores, what changes them, softmax, values; in f32. Query heads of one key head are rows of one product.
fn modified_scores(builder: &mut Builder<'_>, scale: Option<f32>, changes: &[Change]) -> Result<Tensor> {
    let [q_shape, k_shape, v_shape] = [builder.shape(Q)?, builder.shape(K)?, builder.shape(V)?];
    let (&[batch, heads, queries, width], &[_, kv_heads, ..]) = (q_shape, k_shape) else {
        return Err(builder.node.fail("Q and K need rank 4"));
    };
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(builder.node.fail(format!("{heads} heads are no multiple of {kv_heads}")));
    }
    let [q, k, v] = [builder.float(Q, Dtype::F32)?, builder.float(K, Dtype::F32)?, builder.float(V, Dtype::F32)?];
    let graph = &mut builder.graph;
    let q = graph.reshape(q, &[batch, kv_heads, heads / kv_heads * queries, width])?;
    let alpha = scale.unwrap_or((1.0 / (width.max(1) as f64).sqrt()) as f32);
    let scores = graph.matmul(q, k, None, MatMul { transpose_b: true, alpha, ..MatMul::default() })?;
    let (rows, keys) = (graph.desc(scores)?.shape.clone(), k_shape[2]);
    let scores = graph.reshape(scores, &[batch, heads, queries, keys])?;
    let scores = score_mod::add(graph, scores, changes)?;
    let scores = graph.reshape(scores, &rows)?;
    let weights = graph.softmax(scores, 1.0)?;
    let y = graph.matmul(weights, v, None, MatMul::default())?;
    graph.reshape(y, &[batch, heads, queries, v_shape[3]])
}
