//! Attention over the pixels of a feature map: the kernel that seed document 001, "Attention 정리 1", links for its CNN
//! attention.

use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::nn::seeds::{Convolution, Dense};
use crate::ops::{Binary, LocallyConnected, Operand, ReducedAxes, Reduction, Step, Unary};

/// A feature map times a map of attention, averaged over pixels, over the average of the attention map.
///
/// The attention map is not normalised, the division is; it has no epsilon, so that a map of zeros gives NaN. The
/// original copies the map to all channels by a frozen convolution with ones; here it is broadcast.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CnnAttention {
    /// First.
    pub norm: BatchNorm,
    /// Two convolutions of 1 × 1, each followed by ReLU.
    pub convolutions: [Convolution; 2],
    /// What gives the one channel of the attention map, before the sigmoid.
    pub map: MapLayer,
    /// `[channels, width]`, followed by ELU.
    pub hidden: Dense,
    /// `[width, out]`.
    pub head: Dense,
}

/// `BatchNormalization` at inference, over the last axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNorm {
    /// `[channels]`.
    pub gamma: Tensor,
    /// `[channels]`.
    pub beta: Tensor,
    /// Moving average, `[channels]`.
    pub mean: Tensor,
    /// Moving variance, `[channels]`.
    pub variance: Tensor,
    /// Added to the variance.
    pub epsilon: f32,
}

/// The layer before the sigmoid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapLayer {
    /// Weights of its own for each pixel, as `LocallyConnected2D` of Keras 2 keeps them.
    Local {
        /// `[height × width, channels, 1]`.
        kernel: Tensor,
        /// `[height, width, 1]`.
        bias: Option<Tensor>,
    },
    /// The same weights for each pixel.
    Shared(Convolution),
}

/// Every tensor that the layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CnnAttentionTensors {
    /// Normalised features, `[batch, height, width, channels]`.
    pub normalised: Tensor,
    /// What the convolutions give, after ReLU.
    pub convolutions: [Tensor; 2],
    /// `[batch, height, width, 1]`.
    pub map: Tensor,
    /// Average over pixels of features times map, `[batch, channels]`.
    pub pooled_features: Tensor,
    /// Average over pixels of the map, `[batch, 1]`.
    pub pooled_map: Tensor,
    /// One over the other, `[batch, channels]`.
    pub pooled: Tensor,
    /// After ELU, `[batch, width]`.
    pub hidden: Tensor,
    /// The result, `[batch, out]`.
    pub output: Tensor,
}

impl CnnAttention {
    /// Adds the layer: `features` `[batch, height, width, channels]`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, features: Tensor) -> Result<CnnAttentionTensors> {
        let normalised = self.norm.add(graph, features)?;
        let mut convolutions = [normalised; 2];
        let mut x = normalised;
        for (convolution, output) in self.convolutions.iter().zip(&mut convolutions) {
            let y = convolution.add(graph, x)?;
            x = graph.unary(y, Unary::Relu)?;
            *output = x;
        }
        let map = match self.map {
            MapLayer::Shared(convolution) => convolution.add(graph, x)?,
            MapLayer::Local { kernel, bias } => {
                graph.locally_connected(x, kernel, bias, LocallyConnected { kernel: [1, 1], stride: [1, 1] })?
            }
        };
        let map = graph.unary(map, Unary::Sigmoid)?;
        let attended = graph.binary(normalised, map, Binary::Mul)?;
        let pooled_features = graph.reduce(attended, Reduction::Mean, &[1, 2], ReducedAxes::Dropped)?;
        let pooled_map = graph.reduce(map, Reduction::Mean, &[1, 2], ReducedAxes::Dropped)?;
        let pooled = graph.binary(pooled_features, pooled_map, Binary::Div)?;
        let hidden = self.hidden.add(graph, pooled)?;
        let hidden = graph.unary(hidden, Unary::Elu { alpha: 1.0 })?;
        let output = self.head.add(graph, hidden)?;
        Ok(CnnAttentionTensors { normalised, convolutions, map, pooled_features, pooled_map, pooled, hidden, output })
    }
}

impl BatchNorm {
    /// `(x − mean) / √(variance + epsilon) · gamma + beta`: `x` `[.., channels]`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<Tensor> {
        let shifted = Step::Binary(Binary::Add, Operand::Scalar(self.epsilon));
        let times = |input| Step::Binary(Binary::Mul, Operand::Input(input));
        let slope = [self.variance, self.gamma];
        let slope = graph.elementwise(&slope, &[shifted, Step::Unary(Unary::Rsqrt), times(1)])?;
        let centred = Step::Binary(Binary::Sub, Operand::Input(1));
        let moved = Step::Binary(Binary::Add, Operand::Input(3));
        graph.elementwise(&[x, self.mean, slope, self.beta], &[centred, times(2), moved])
    }
}
