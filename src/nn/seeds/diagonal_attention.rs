//! Self-attention between the features of a vector: the first layer of seed document 003, "SelfAttention 理解".

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::{AxisSlice, Binary, MatMul};

/// `(q · kᵀ) · v` where feature b of a vector has the rows `x[b] · kernel[b, b, :]`.
///
/// `einsum('...b,bbc->...bc')` reads the diagonal of a kernel's first two axes only. The features of one vector are the
/// tokens, and all axes before them are a batch. No softmax and no scale, so no fused kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiagonalAttention {
    /// `[features, features, dim_q_k]`.
    pub query: Tensor,
    /// `[features, features, dim_q_k]`.
    pub key: Tensor,
    /// `[features, features, dim_v]`.
    pub value: Tensor,
}

/// Every tensor that the layer computes; `..` are the axes of the input before its last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiagonalAttentionTensors {
    /// Query, key and value, `[.., features, dim_q_k]` and `[.., features, dim_v]`.
    pub qkv: [Tensor; 3],
    /// `[.., features, features]`.
    pub scores: Tensor,
    /// The result, `[.., features, dim_v]`.
    pub output: Tensor,
}

impl DiagonalAttention {
    /// Adds the layer: `x` `[.., features]`.
    ///
    /// # Errors
    /// Sizes that do not fit.
    pub fn add(&self, graph: &mut Graph, x: Tensor) -> Result<DiagonalAttentionTensors> {
        let desc = graph.desc(x)?.clone();
        let (vectors, features) = (desc.rows(), desc.row_length());
        let columns = graph.reshape(x, &[vectors, features, 1])?;
        let mut folded = [self.query, self.key, self.value];
        for tensor in &mut folded {
            let diagonal = diagonal(graph, *tensor, features)?;
            *tensor = graph.binary(columns, diagonal, Binary::Mul)?;
        }
        let [q, k, v] = folded;
        let scores = graph.matmul(q, k, None, MatMul { transpose_b: true, ..MatMul::default() })?;
        let output = graph.matmul(scores, v, None, MatMul::default())?;
        let mut unfold = |tensor: Tensor| {
            let width = graph.desc(tensor)?.row_length();
            graph.reshape(tensor, &[&desc.shape[..], &[width]].concat())
        };
        let qkv = [unfold(q)?, unfold(k)?, unfold(v)?];
        Ok(DiagonalAttentionTensors { qkv, scores: unfold(scores)?, output: unfold(output)? })
    }
}

/// `kernel[b, b, :]`, `[features, width]`.
fn diagonal(graph: &mut Graph, kernel: Tensor, features: usize) -> Result<Tensor> {
    let desc = graph.desc(kernel)?.clone();
    let width = desc.row_length();
    if desc.shape != [features, features, width] {
        let message = format!("x has {features} features, a kernel is {desc}");
        return Err(Error::shape("diagonal_attention", message));
    }
    let rows = graph.reshape(kernel, &[features * features, width])?;
    graph.slice(rows, &[AxisSlice { axis: 0, start: 0, end: i64::MAX, step: features as i64 + 1 }])
}
