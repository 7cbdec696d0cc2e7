//! ONNX's `Softmax`: along one axis since opset 13, and over all axes from one on before that.

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::nn::golden::GoldenGraph;

const SLOTS: Slots = Slots { inputs: &["input"], required: 1, outputs: 1 };

pub(super) fn build(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
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
        builder.graph.softmax(rows, 1.0)?
    } else {
        let planes = builder.graph.reshape(x, &[outer, length, inner])?;
        let rows = builder.graph.transpose(planes, &[0, 2, 1])?;
        let weights = builder.graph.softmax(rows, 1.0)?;
        builder.graph.transpose(weights, &[0, 2, 1])?
    };
    let y = builder.graph.reshape(y, shape)?;
    builder.output(0, y)?;
    Ok(builder.finish())
}
