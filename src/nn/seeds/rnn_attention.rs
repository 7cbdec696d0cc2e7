//! Attention over a bidirectional LSTM: the kernel that seed document 001, "Attention 정리 1", links for RNN attention.

use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::nn::LstmWeights;
use crate::nn::seeds::{Dense, FeedForwardAttention, FeedForwardAttentionTensors};
use crate::ops::{Direction, Gate, LstmOptions, MaskedOutput, Unary};

/// Embedding, LSTM in both directions, [`FeedForwardAttention`] over its steps, two dense layers.
#[derive(Debug, Clone, PartialEq)]
pub struct RnnAttention {
    /// `[vocabulary, width]`.
    pub embedding: Tensor,
    /// Forward and backward.
    pub lstm: [LstmWeights; 2],
    /// Bends the gates: `hard_sigmoid` in the Keras of the kernel's day, `sigmoid` since.
    pub gate: Gate,
    /// Over `[batch, steps, 2 · hidden]`.
    pub attention: FeedForwardAttention,
    /// Followed by ReLU.
    pub hidden: Dense,
    /// Followed by the sigmoid.
    pub head: Dense,
}

/// Every tensor that the model computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RnnAttentionTensors {
    /// `[batch, steps, width]`.
    pub embedded: Tensor,
    /// Forward and backward side by side in the order of the steps, `[batch, steps, 2 · hidden]`; zero where masked.
    pub sequence: Tensor,
    /// Of the attention; its output is `[batch, 2 · hidden]`.
    pub attention: FeedForwardAttentionTensors,
    /// After ReLU.
    pub hidden: Tensor,
    /// After the sigmoid, `[batch, out]`.
    pub output: Tensor,
}

impl RnnAttention {
    /// Adds the model: `ids` u32 `[batch, steps]`, `mask` bool `[batch, steps]`, false for steps that keep the LSTM's
    /// state, put out zeros (as Keras' `Bidirectional` does) and have no weight.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, ids: Tensor, mask: Option<Tensor>) -> Result<RnnAttentionTensors> {
        let embedded = graph.embedding(self.embedding, ids)?;
        let options = LstmOptions { gate: self.gate, masked: MaskedOutput::Zeros, mask, ..LstmOptions::default() };
        let [forward, backward] = &self.lstm;
        let forward = graph.lstm(embedded, forward, &LstmOptions { direction: Direction::Forward, ..options })?;
        let backward = graph.lstm(embedded, backward, &LstmOptions { direction: Direction::Backward, ..options })?;
        let sequence = graph.concat(forward.sequence, backward.sequence, 2)?;
        let attention = self.attention.add(graph, sequence, mask)?;
        let hidden = self.hidden.add(graph, attention.output)?;
        let hidden = graph.unary(hidden, Unary::Relu)?;
        let output = self.head.add(graph, hidden)?;
        let output = graph.unary(output, Unary::Sigmoid)?;
        Ok(RnnAttentionTensors { embedded, sequence, attention, hidden, output })
    }
}
