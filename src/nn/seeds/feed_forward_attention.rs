//! Feed-forward attention: the gist that seed document 001, "Attention 정리 1", links for its simple attention, and the
//! layer of the kernel that it links for its attention over an RNN.

use super::exp_normalised::{scores, select};
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::{Binary, Operand, Step, Unary};

/// One score for each step, `tanh(x · weight + bias)`, and the steps' average by the scores' exponentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedForwardAttention {
    /// W, `[features]`.
    pub weight: Tensor,
    /// b, `[steps]`: one for each step, so that it fixes the length of a sequence.
    pub bias: Option<Tensor>,
}

/// Every tensor that the layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedForwardAttentionTensors {
    /// `[batch, steps]`, after tanh.
    pub scores: Tensor,
    /// `e^scores · mask / (Σ + 1e-7)`, `[batch, steps]`.
    pub weights: Tensor,
    /// The result, `[batch, features]`; zero for a row without a step.
    pub output: Tensor,
}

impl FeedForwardAttention {
    /// Adds the layer: `x` `[batch, steps, features]`, `mask` `[batch, steps]`, which multiplies the exponentials.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, x: Tensor, mask: Option<Tensor>) -> Result<FeedForwardAttentionTensors> {
        let products = scores(graph, x, self.weight)?;
        let scores = match self.bias {
            None => graph.unary(products, Unary::Tanh)?,
            Some(bias) => {
                let biased = Step::Binary(Binary::Add, Operand::Input(1));
                graph.elementwise(&[products, bias], &[biased, Step::Unary(Unary::Tanh)])?
            }
        };
        let [weights, output] = select(graph, x, scores, mask)?;
        Ok(FeedForwardAttentionTensors { scores, weights, output })
    }
}
