//! ONNX's `BatchNormalization`, from opset 9 on, in its inference form. Computed in f32.

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::graph::Tensor;
use crate::nn::golden::GoldenGraph;
use crate::ops::{Binary, Operand, Step, Unary};
use crate::tensor::Dtype;

const SLOTS: Slots = Slots { inputs: &["X", "scale", "B", "input_mean", "input_var"], required: 5, outputs: 1 };
const X: usize = 0;
const SCALE: usize = 1;
const BIAS: usize = 2;
const MEAN: usize = 3;
const VARIANCE: usize = 4;

pub(super) fn lacking(node: &OnnxNode) -> Option<String> {
    // Before opset 14 further outputs are what tells training.
    let training = node.attributes.get("training_mode").is_some_and(|value| value.as_i64() == Some(1));
    let outputs = node.opset < 14 && (1..node.outputs.len()).any(|slot| node.wants(slot));
    (training || outputs).then(|| "the training form (`training_mode` = 1) is not supported".into())
}

pub(super) fn build(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut builder = Builder::new(node, &SLOTS)?;
    builder.float_dtype(&[SCALE, BIAS, MEAN, VARIANCE])?;
    let dtype = builder.float_dtype(&[X])?;
    let mut attributes = Attributes::of(node);
    let epsilon = attributes.float("epsilon")?.unwrap_or(1e-5);
    // What training changes its statistics by.
    attributes.float("momentum")?;
    if node.opset >= 14 {
        attributes.switch("training_mode")?;
    }
    attributes.finish()?;
    let shape = builder.shape(X)?;
    let (batch, channels, inner) = match shape {
        [] => return Err(node.fail("X has rank 0, a batch was expected")),
        &[batch] => (batch, 1, 1),
        &[batch, channels, ref inner @ ..] => (batch, channels, inner.iter().product()),
    };
    let x = builder.float(X, dtype)?;
    let x = builder.cast(x, Dtype::F32)?;
    let x = builder.graph.reshape(x, &[batch, channels, inner])?;
    let mut of_channels = |slot| of_channels(&mut builder, slot, channels);
    let [scale, bias, mean, variance] =
        [of_channels(SCALE)?, of_channels(BIAS)?, of_channels(MEAN)?, of_channels(VARIANCE)?];
    let to_scale = [
        Step::Binary(Binary::Add, Operand::Scalar(epsilon)),
        Step::Unary(Unary::Rsqrt),
        Step::Binary(Binary::Mul, Operand::Input(1)),
    ];
    let scale = builder.graph.elementwise(&[variance, scale], &to_scale)?;
    let to_y = [(Binary::Sub, 1), (Binary::Mul, 2), (Binary::Add, 3)];
    let to_y = to_y.map(|(function, input)| Step::Binary(function, Operand::Input(input)));
    let y = builder.graph.elementwise(&[x, mean, scale, bias], &to_y)?;
    let y = builder.graph.reshape(y, shape)?;
    let y = builder.cast(y, dtype)?;
    builder.output(0, y)?;
    Ok(builder.finish())
}

/// One number for each channel, beside the elements of a channel.
fn of_channels(builder: &mut Builder<'_>, slot: usize, channels: usize) -> Result<Tensor> {
    builder.expect_shape(slot, &[channels])?;
    let tensor = builder.float(slot, Dtype::F32)?;
    builder.graph.reshape(tensor, &[channels, 1])
}
