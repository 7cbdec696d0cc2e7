//! ONNX's `Gemm`, from opset 7 on: `alpha · A' · B' + beta · C`.

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::nn::golden::GoldenGraph;
use crate::ops::{Binary, MatMul, Operand, Step};
use crate::tensor::Dtype;

const SLOTS: Slots = Slots { inputs: &["A", "B", "C"], required: 2, outputs: 1 };
const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

pub(super) fn build(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    // C may be absent since opset 11.
    let mut builder = Builder::new(node, &Slots { required: if node.opset >= 11 { 2 } else { 3 }, ..SLOTS })?;
    let dtype = builder.one_float_dtype(&[A, B, C])?;
    let mut attributes = Attributes::of(node);
    let alpha = attributes.float("alpha")?.unwrap_or(1.0);
    let beta = attributes.float("beta")?.unwrap_or(1.0);
    let (transpose_a, transpose_b) = (attributes.switch("transA")?, attributes.switch("transB")?);
    attributes.finish()?;
    for slot in [A, B] {
        let shape = builder.shape(slot)?;
        if shape.len() != 2 {
            let message = format!("input `{}` {shape:?} has rank {}, 2 was expected", SLOTS.inputs[slot], shape.len());
            return Err(node.fail(message));
        }
    }
    let (a, b) = (builder.float(A, dtype)?, builder.float(B, dtype)?);
    let a = if transpose_a { builder.graph.transpose(a, &[1, 0])? } else { a };
    // What C is added to is rounded once, with it.
    let options = MatMul { alpha, transpose_b, output: Some(Dtype::F32), ..MatMul::default() };
    let mut y = builder.graph.matmul(a, b, None, options)?;
    if let Some(stored) = builder.slot(C)? {
        let (c, shape) = (stored.value.shape(), &builder.graph.desc(y)?.shape);
        let fits = c.iter().rev().zip(shape.iter().rev()).all(|(&own, &size)| own == size || own == 1);
        if !fits || c.len() > shape.len() {
            return Err(node.fail(format!("input `C` {c:?} does not broadcast to {shape:?}")));
        }
        let c = builder.input(C, stored.value.cast(Dtype::F32))?;
        let steps = [Step::Binary(Binary::Mul, Operand::Scalar(beta)), Step::Binary(Binary::Add, Operand::Input(1))];
        y = builder.graph.elementwise(&[c, y], &steps)?;
    }
    let y = builder.cast(y, dtype)?;
    builder.output(0, y)?;
    Ok(builder.finish())
}
