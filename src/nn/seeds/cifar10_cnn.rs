//! The CIFAR-10 model of seed document 000, "multihead attention in cifar10".

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::nn::seeds::{Convolution, Dense, HeadAttention};
use crate::ops::{ImageLayout, Padding, Pool2d, PoolKind, ReducedAxes, Reduction, Rounding, Unary, Window2d};

/// Two blocks of two convolutions and a pool, [`HeadAttention`] over the flattened rest, and a softmax over classes.
///
/// As printed: edges same, valid, same, valid; windows of 3 × 3; 32, 32, 64 and 64 channels; 4 heads of 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cifar10Cnn {
    /// The four convolutions, each followed by ReLU; a maximum over 2 × 2 follows the second and the fourth.
    pub convolutions: [Convolution; 4],
    /// Over the heads of the flattened image.
    pub attention: HeadAttention,
    /// `[head_unit, classes]`, followed by the softmax.
    pub dense: Dense,
}

/// Every tensor that the model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cifar10CnnTensors {
    /// What each convolution gives, after ReLU: `[batch, height, width, channels]`.
    pub convolutions: [Tensor; 4],
    /// What each pool gives.
    pub pools: [Tensor; 2],
    /// What the attention gives, `[batch, heads, head_unit]`.
    pub attention: Tensor,
    /// The average over the heads after ReLU, `[batch, head_unit]`.
    pub pooled: Tensor,
    /// Probabilities, `[batch, classes]`.
    pub output: Tensor,
}

impl Cifar10Cnn {
    /// Adds the model: `images` `[batch, height, width, channels]`.
    ///
    /// # Errors
    /// Sizes that do not fit, images too small for the windows.
    pub fn add(&self, graph: &mut Graph, images: Tensor) -> Result<Cifar10CnnTensors> {
        let [first, second, third, fourth] = self.convolutions;
        let conv1 = rectified(graph, first, images)?;
        let conv2 = rectified(graph, second, conv1)?;
        let pool1 = halved(graph, conv2)?;
        let conv3 = rectified(graph, third, pool1)?;
        let conv4 = rectified(graph, fourth, conv3)?;
        let pool2 = halved(graph, conv4)?;
        let flat = flattened(graph, pool2)?;
        let attention = self.attention.add(graph, flat)?.output;
        let positive = graph.unary(attention, Unary::Relu)?;
        let pooled = graph.reduce(positive, Reduction::Mean, &[1], ReducedAxes::Dropped)?;
        let logits = self.dense.add(graph, pooled)?;
        let output = graph.softmax(logits, 1.0)?;
        let convolutions = [conv1, conv2, conv3, conv4];
        Ok(Cifar10CnnTensors { convolutions, pools: [pool1, pool2], attention, pooled, output })
    }
}

fn rectified(graph: &mut Graph, convolution: Convolution, x: Tensor) -> Result<Tensor> {
    let y = convolution.add(graph, x)?;
    graph.unary(y, Unary::Relu)
}

/// `MaxPooling2D((2, 2))`: a last odd row or column is left out.
fn halved(graph: &mut Graph, x: Tensor) -> Result<Tensor> {
    let window = Window2d { kernel: [2, 2], stride: [2, 2], dilation: [1, 1] };
    let layout = ImageLayout::Nhwc;
    let pool = Pool2d { kind: PoolKind::Max, layout, window, padding: Padding::default(), rounding: Rounding::Floor };
    graph.pool2d(x, pool)
}

fn flattened(graph: &mut Graph, x: Tensor) -> Result<Tensor> {
    let desc = graph.desc(x)?;
    let Some((&batch, sizes)) = desc.shape.split_first() else {
        return Err(Error::shape("flatten", format!("x is {desc}, a batch axis was expected")));
    };
    let features = sizes.iter().product();
    graph.reshape(x, &[batch, features])
}
