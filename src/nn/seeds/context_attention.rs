//! Attention with a context vector: the other layer behind the gist that seed document 001, "Attention 정리 1", links.

use super::exp_normalised::{scores, select};
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::{MatMul, Unary};

/// The score of a step is how far `tanh(x · weight + bias)` points along a trained context vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextAttention {
    /// W, `[features, width]`; `width` is `features` in the original.
    pub weight: Tensor,
    /// b, `[width]`.
    pub bias: Option<Tensor>,
    /// u, `[width]`.
    pub context: Tensor,
}

/// Every tensor that the layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextAttentionTensors {
    /// After tanh, `[batch, steps, width]`.
    pub hidden: Tensor,
    /// `hidden · context`, `[batch, steps]`.
    pub scores: Tensor,
    /// `e^scores · mask / (Σ + 1e-7)`, `[batch, steps]`.
    pub weights: Tensor,
    /// The result, `[batch, features]`; zero for a row without a step.
    pub output: Tensor,
}

impl ContextAttention {
    /// Adds the layer: `x` `[batch, steps, features]`, `mask` `[batch, steps]`, which multiplies the exponentials.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, x: Tensor, mask: Option<Tensor>) -> Result<ContextAttentionTensors> {
        let projected = graph.matmul(x, self.weight, self.bias, MatMul::default())?;
        let hidden = graph.unary(projected, Unary::Tanh)?;
        let scores = scores(graph, hidden, self.context)?;
        let [weights, output] = select(graph, x, scores, mask)?;
        Ok(ContextAttentionTensors { hidden, scores, weights, output })
    }
}
