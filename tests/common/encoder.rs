//! An encoder of the size of models in use, whose layers share one layer's weights.

use std::sync::Arc;

use regard::case::CaseInput;
use regard::nn::{
    AppendedKeys, Linear, MultiHeadAttention, Norm, NormOrder, Projections, TransformerEncoderLayer, WeightOrder,
};
use regard::ops::Unary;
use regard::{Attention, Dtype, Graph, HostTensor, Result, Tensor, TensorDesc};

/// Sizes of an encoder.
#[derive(Debug, Clone, Copy)]
pub struct Encoder {
    pub layers: usize,
    pub heads: usize,
    pub hidden: usize,
    pub inner: usize,
    pub tokens: usize,
}

impl Encoder {
    /// BERT-base over one sequence of 128 tokens.
    pub const BERT_BASE: Self = Self { layers: 12, heads: 12, hidden: 768, inner: 3072, tokens: 128 };

    /// One layer's weights: 28 MB for BERT-base, where twelve layers have 340.
    pub fn weights(&self) -> Vec<Arc<HostTensor>> {
        let (hidden, inner) = (self.hidden, self.inner);
        let maps = [[3 * hidden, hidden], [hidden, hidden], [inner, hidden], [hidden, inner]];
        let maps = maps.into_iter().flat_map(|[out, from]| [vec![out, from], vec![out]]);
        let norms = (0..4).map(|_| vec![hidden]);
        let draw = |(shape, seed): (Vec<usize>, u64)| CaseInput::normal(Dtype::F32, &shape, 0.03).draw(seed);
        maps.chain(norms).zip(1..).map(draw).map(Arc::new).collect()
    }

    /// `x` `[1, tokens, hidden]` through every layer into `y`, normalised after each half as BERT does.
    pub fn graph(&self, weights: &[Arc<HostTensor>]) -> Result<Graph> {
        let mut graph = Graph::new();
        let mut x = graph.input("x", TensorDesc::new(Dtype::F32, [1, self.tokens, self.hidden]))?;
        for layer in 0..self.layers {
            // Each layer reads tensors of its own, as a real one does.
            let tensors = weights.iter().enumerate().map(|(part, weight)| {
                let name = format!("{layer}.{part}");
                graph.weight(&name, weight.clone())
            });
            let tensors = tensors.collect::<Result<Vec<_>>>()?;
            x = self.layer(&tensors).add(&mut graph, x)?.output;
        }
        graph.output("y", x)?;
        Ok(graph)
    }

    fn layer(&self, tensors: &[Tensor]) -> TransformerEncoderLayer {
        let linear = |at: usize| Linear { weight: tensors[at], bias: Some(tensors[at + 1]), order: WeightOrder::OutIn };
        let norm = |at: usize| Norm { scale: tensors[at], bias: Some(tensors[at + 1]), epsilon: 1e-12 };
        let attention = MultiHeadAttention {
            heads: self.heads,
            kv_heads: self.heads,
            projections: Projections::Joined(linear(0)),
            output: linear(2),
            appended: AppendedKeys::default(),
            attention: Attention::default(),
        };
        TransformerEncoderLayer {
            attention,
            feed_forward: [linear(4), linear(6)],
            activation: Unary::Gelu,
            norms: [norm(8), norm(10)],
            norm_order: NormOrder::Last,
        }
    }
}
