//! ONNX's `BatchNormalization`, from opset 9 on, and from opset 14 on its training form too. Computed in f32.

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::nn::golden::GoldenGraph;
use crate::ops::{Binary, Operand, ReducedAxes, Reduction, Step, Unary};
use crate::tensor::Dtype;

const SLOTS: Slots = Slots { inputs: &["X", "scale", "B", "input_mean", "input_var"], required: 5, outputs: 1 };
/// Outputs of the training form: the result and the moving statistics.
const TRAINED: usize = 3;
const X: usize = 0;
const SCALE: usize = 1;
const BIAS: usize = 2;
const MEAN: usize = 3;
const VARIANCE: usize = 4;

pub(super) fn lacking(node: &OnnxNode) -> Option<String> {
    // Before opset 14 further outputs are what tells training, and their meaning was left open.
    let outputs = node.opset < 14 && (1..node.outputs.len()).any(|slot| node.wants(slot));
    outputs.then(|| format!("the training form of opset {} is not supported, that of 14 and later is", node.opset))
}

pub(super) fn build(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    let mut attributes = Attributes::of(node);
    let epsilon = attributes.float("epsilon")?.unwrap_or(1e-5);
    // How much of a moving statistic stays.
    let momentum = attributes.float("momentum")?.unwrap_or(0.9);
    let training = node.opset >= 14 && attributes.switch("training_mode")?;
    attributes.finish()?;
    let mut builder = Builder::new(node, &Slots { outputs: if training { TRAINED } else { 1 }, ..SLOTS })?;
    builder.float_dtype(&[SCALE, BIAS])?;
    let moving = builder.float_dtype(&[MEAN, VARIANCE])?;
    let dtype = builder.float_dtype(&[X])?;
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
    let [scale, bias, mut mean, mut variance] =
        [of_channels(SCALE)?, of_channels(BIAS)?, of_channels(MEAN)?, of_channels(VARIANCE)?];
    if training {
        let moved = [mean, variance];
        [mean, variance] = statistics(&mut builder.graph, x)?;
        for (slot, (moving_average, current)) in [1, 2].into_iter().zip(moved.into_iter().zip([mean, variance])) {
            let y = moved_average(&mut builder.graph, moving_average, current, momentum)?;
            let y = builder.graph.reshape(y, &[channels])?;
            let y = builder.cast(y, moving)?;
            builder.output(slot, y)?;
        }
    }
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

/// Mean and variance of each channel of `[batch, channels, inner]`, `[channels, 1]` each; the variance is over the number of
/// elements, not one less.
fn statistics(graph: &mut Graph, x: Tensor) -> Result<[Tensor; 2]> {
    let channels = graph.desc(x)?.shape[1];
    let mean_of = |graph: &mut Graph, x: Tensor| {
        let mean = graph.reduce(x, Reduction::Mean, &[0, 2], ReducedAxes::Dropped)?;
        graph.reshape(mean, &[channels, 1])
    };
    let mean = mean_of(graph, x)?;
    let centred = graph.binary(x, mean, Binary::Sub)?;
    let squares = graph.binary(centred, centred, Binary::Mul)?;
    Ok([mean, mean_of(graph, squares)?])
}

/// `moving · momentum + current · (1 − momentum)`.
fn moved_average(graph: &mut Graph, moving: Tensor, current: Tensor, momentum: f32) -> Result<Tensor> {
    let share = graph.elementwise(&[current], &[Step::Binary(Binary::Mul, Operand::Scalar(1.0 - momentum))])?;
    let steps = [Step::Binary(Binary::Mul, Operand::Scalar(momentum)), Step::Binary(Binary::Add, Operand::Input(1))];
    graph.elementwise(&[moving, share], &steps)
}
