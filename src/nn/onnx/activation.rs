//! ONNX's functions of one element: `Relu`, `Sigmoid`, `Tanh`, `Elu`, `Erf`, `Gelu`, `Swish`, and the product `SwiGLU`.

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::graph::Tensor;
use crate::nn::golden::GoldenGraph;
use crate::ops::{Binary, Operand, Step, Unary};
use crate::tensor::Dtype;

const SLOTS: Slots = Slots { inputs: &["X"], required: 1, outputs: 1 };
const GATED: Slots = Slots { inputs: &["A", "B"], required: 2, outputs: 1 };

pub(super) fn relu(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    unary(node, |_| Ok(Unary::Relu))
}

pub(super) fn sigmoid(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    unary(node, |_| Ok(Unary::Sigmoid))
}

pub(super) fn tanh(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    unary(node, |_| Ok(Unary::Tanh))
}

pub(super) fn elu(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    unary(node, |attributes| Ok(Unary::Elu { alpha: attributes.float("alpha")?.unwrap_or(1.0) }))
}

pub(super) fn erf(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    unary(node, |_| Ok(Unary::Erf))
}

pub(super) fn gelu(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    unary(node, |attributes| match attributes.text("approximate", &["none", "tanh"])? {
        Some(1) => Ok(Unary::GeluTanh),
        _ => Ok(Unary::Gelu),
    })
}

pub(super) fn swish(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    unary(node, steepness)
}

pub(super) fn swiglu(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &GATED)?;
    let dtype = builder.one_float_dtype(&[0, 1])?;
    let mut attributes = Attributes::of(node);
    let function = steepness(&mut attributes)?;
    attributes.finish()?;
    builder.expect_shape(1, builder.shape(0)?)?;
    let operands = [flat(&mut builder, 0, dtype)?, flat(&mut builder, 1, dtype)?];
    let steps = [Step::Unary(function), Step::Binary(Binary::Mul, Operand::Input(1))];
    finish(builder, &operands, &steps)
}

fn steepness(attributes: &mut Attributes<'_>) -> Result<Unary> {
    Ok(Unary::Swish { beta: attributes.float("alpha")?.unwrap_or(1.0) })
}

fn unary(node: &OnnxNode, read: fn(&mut Attributes<'_>) -> Result<Unary>) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &SLOTS)?;
    let dtype = builder.float_dtype(&[0])?;
    let mut attributes = Attributes::of(node);
    let function = read(&mut attributes)?;
    attributes.finish()?;
    let x = flat(&mut builder, 0, dtype)?;
    finish(builder, &[x], &[Step::Unary(function)])
}

/// An operand as one axis: the op takes few, and here they mean nothing.
fn flat(builder: &mut Builder<'_>, slot: usize, dtype: Dtype) -> Result<Tensor> {
    let x = builder.float(slot, dtype)?;
    let elements = builder.graph.desc(x)?.len();
    builder.graph.reshape(x, &[elements])
}

fn finish(mut builder: Builder<'_>, operands: &[Tensor], steps: &[Step]) -> Result<GoldenGraph> {
    let y = builder.graph.elementwise(operands, steps)?;
    let y = builder.graph.reshape(y, builder.shape(0)?)?;
    builder.output(0, y)?;
    Ok(builder.finish())
}
