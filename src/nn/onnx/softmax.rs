//! ONNX's `Softmax` and `LogSoftmax`: along one axis since opset 13, and over all axes from one on before that.

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::graph::Tensor;
use crate::nn::golden::GoldenGraph;
use crate::ops::{Binary, LogSumExpRows, ReducedAxes, Reduction};
use crate::tensor::Dtype;

const SLOTS: Slots = Slots { inputs: &["input"], required: 1, outputs: 1 };

pub(super) fn softmax(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    along(node, |builder, rows| builder.graph.softmax(rows, 1.0))
}

pub(super) fn log_softmax(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    along(node, logarithms)
}

/// A function of rows, along the node's axis.
fn along(node: &OnnxNode, function: fn(&mut Builder<'_>, Tensor) -> Result<Tensor>) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &SLOTS)?;
    let dtype = builder.float_dtype(&[0])?;
    let shape = builder.shape(0)?;
    let mut attributes = Attributes::of(node);
    let axis = attributes.axis("axis", if node.opset >= 13 { -1 } else { 1 }, shape.len())?;
    attributes.finish()?;
    let x = builder.float(0, dtype)?;
    let (outer, from) = shape.split_at(axis);
    let [outer, length, inner] = match node.opset {
        ..13 => [outer.iter().product(), from.iter().product(), 1],
        _ => [outer.iter().product(), from[0], from[1..].iter().product()],
    };
    let y = if inner == 1 {
        let rows = builder.graph.reshape(x, &[outer, length])?;
        function(&mut builder, rows)?
    } else {
        let planes = builder.graph.reshape(x, &[outer, length, inner])?;
        let rows = builder.graph.transpose(planes, &[0, 2, 1])?;
        let weights = function(&mut builder, rows)?;
        builder.graph.transpose(weights, &[0, 2, 1])?
    };
    let y = builder.graph.reshape(y, shape)?;
    builder.output(0, y)?;
    Ok(builder.finish())
}

/// x − max − ln Σ exp(x − max): the logarithm of a sum near a large maximum would be rounded like that maximum.
fn logarithms(builder: &mut Builder<'_>, rows: Tensor) -> Result<Tensor> {
    let desc = builder.graph.desc(rows)?.clone();
    let x = builder.cast(rows, Dtype::F32)?;
    let graph = &mut builder.graph;
    let maximum = graph.reduce(x, Reduction::Max, &[desc.rank() - 1], ReducedAxes::Kept)?;
    let shifted = graph.binary(x, maximum, Binary::Sub)?;
    let sum = graph.log_sum_exp(shifted, &LogSumExpRows::default())?;
    let columns = graph.desc(maximum)?.shape.clone();
    let sum = graph.reshape(sum, &columns)?;
    let y = graph.binary(shifted, sum, Binary::Sub)?;
    builder.cast(y, desc.dtype)
}
