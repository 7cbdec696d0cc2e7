//! Affine maps and normalisations with their weights.

use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::{LayerNorm, MatMul, Statistics};

/// An affine map, `x · weight + bias`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// `[out, in]` or `[in, out]`.
    pub weight: Tensor,
    /// `[out]`.
    pub bias: Option<Tensor>,
    /// Which of the two the weight is.
    pub order: WeightOrder,
}

/// How a framework stores the weight of an affine map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightOrder {
    /// `[out, in]`, as PyTorch does.
    #[default]
    OutIn,
    /// `[in, out]`, as Keras does.
    InOut,
}

impl Linear {
    /// `[.., in]` into `[.., out]`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<Tensor> {
        let transpose_b = self.order == WeightOrder::OutIn;
        graph.matmul(x, self.weight, self.bias, MatMul { transpose_b, ..MatMul::default() })
    }
}

/// Layer normalisation over the last axis (Ba et al., arXiv:1607.06450), with the biased variance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// `[width]`.
    pub scale: Tensor,
    /// `[width]`.
    pub bias: Option<Tensor>,
    /// Is added to the variance.
    pub epsilon: f32,
}

impl Norm {
    /// `[.., width]` into the same shape.
    ///
    /// # Errors
    /// Sizes that do not fit, an epsilon that means nothing.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<Tensor> {
        let axis = graph.desc(x)?.rank().saturating_sub(1);
        let op = LayerNorm { axis, epsilon: self.epsilon, statistics: Statistics::Omit };
        Ok(graph.layer_norm(x, self.scale, self.bias, op)?[0])
    }
}
