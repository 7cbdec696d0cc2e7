//! The encoder layer of a transformer.

use super::{Linear, MultiHeadAttention, Norm};
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::ops::{Binary, Unary};

/// Self-attention and a feed-forward network, each with a residual and a normalisation: `torch.nn.TransformerEncoderLayer`,
/// and the layer of BERT. Dropout is the identity: this is inference.
///
/// Source: Vaswani et al., arXiv:1706.03762, section 3.1; normalisation first: Xiong et al., arXiv:2002.04745.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TransformerEncoderLayer {
    /// Attention of the input over itself. Its masks are the layer's.
    pub attention: MultiHeadAttention,
    /// Into the inner width and back.
    pub feed_forward: [Linear; 2],
    /// Between the two; [`Unary::Relu`] or [`Unary::Gelu`] in PyTorch.
    pub activation: Unary,
    /// The normalisation of attention and that of the feed-forward network.
    pub norms: [Norm; 2],
    /// Where they stand.
    pub norm_order: NormOrder,
}

/// Where an encoder layer normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NormOrder {
    /// After the residual: `y = norm(x + f(x))`.
    #[default]
    Last,
    /// Before the function: `y = x + f(norm(x))`; `norm_first` in PyTorch.
    First,
}

/// What the layer computes; each `[batch, seq, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransformerEncoderTensors {
    /// What attention returns, before the residual.
    pub self_attn: Tensor,
    /// The input of the second half.
    pub after_attn: Tensor,
    /// The result.
    pub output: Tensor,
}

impl TransformerEncoderLayer {
    /// Adds the layer to a graph: `[batch, seq, width]` into the same shape.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<TransformerEncoderTensors> {
        let mut self_attn = x;
        let after_attn = self.half(graph, x, self.norms[0], |graph, x| {
            self_attn = self.attention.add(graph, [x; 3])?.output;
            Ok(self_attn)
        })?;
        let output = self.half(graph, after_attn, self.norms[1], |graph, x| {
            let inner = self.feed_forward[0].add(graph, x)?;
            let inner = graph.unary(inner, self.activation)?;
            self.feed_forward[1].add(graph, inner)
        })?;
        Ok(TransformerEncoderTensors { self_attn, after_attn, output })
    }

    /// A function with its residual and normalisation.
    fn half(
        &self,
        graph: &mut Graph,
        x: Tensor,
        norm: Norm,
        function: impl FnOnce(&mut Graph, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match self.norm_order {
            NormOrder::Last => {
                let y = function(graph, x)?;
                let sum = graph.binary(x, y, Binary::Add)?;
                norm.add(graph, sum)
            }
            NormOrder::First => {
                let normal = norm.add(graph, x)?;
                let y = function(graph, normal)?;
                graph.binary(x, y, Binary::Add)
            }
        }
    }
}
