//! Weights that are exponentials over their sum, and what they select: shared by layers that seed document 001 links.

use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::ops::{Binary, MatMul, Operand, ReducedAxes, Reduction, Step, Unary};

/// `K.epsilon()`.
const EPSILON: f32 = 1e-7;

/// `a = e^scores · mask`, over its sum and [`EPSILON`], and `Σ_t a[b, t] · x[b, t, :]`.
///
/// No maximum is subtracted, so that scores above 88 overflow, as in the original; the weights sum to slightly less
/// than one; a row without a step has weights and output of zero.
pub(super) fn select(graph: &mut Graph, x: Tensor, scores: Tensor, mask: Option<Tensor>) -> Result<[Tensor; 2]> {
    let exponentials = match mask {
        None => graph.unary(scores, Unary::Exp)?,
        Some(mask) => {
            let (scores_desc, mask_desc) = (graph.desc(scores)?, graph.desc(mask)?);
            if scores_desc.shape != mask_desc.shape {
                return Err(Error::shape("attention", format!("mask is {mask_desc}, scores are {scores_desc}")));
            }
            let masked = Step::Binary(Binary::Mul, Operand::Input(1));
            graph.elementwise(&[scores, mask], &[Step::Unary(Unary::Exp), masked])?
        }
    };
    let sums = graph.reduce(exponentials, Reduction::Sum, &[1], ReducedAxes::Kept)?;
    let shifted = Step::Binary(Binary::Add, Operand::Scalar(EPSILON));
    let divided = Step::Reversed(Binary::Div, Operand::Input(1));
    let weights = graph.elementwise(&[sums, exponentials], &[shifted, divided])?;
    let [batch, steps, features] = sequence(graph, x)?;
    let rows = graph.reshape(weights, &[batch, 1, steps])?;
    let output = graph.matmul(rows, x, None, MatMul::default())?;
    Ok([weights, graph.reshape(output, &[batch, features])?])
}

/// Each vector of `x` `[batch, steps, features]` times one of `[features]`: `[batch, steps]`.
pub(super) fn scores(graph: &mut Graph, x: Tensor, vector: Tensor) -> Result<Tensor> {
    let [batch, steps, features] = sequence(graph, x)?;
    let column = graph.reshape(vector, &[features, 1])?;
    let products = graph.matmul(x, column, None, MatMul::default())?;
    graph.reshape(products, &[batch, steps])
}

/// The sizes of `[batch, steps, features]`.
fn sequence(graph: &Graph, x: Tensor) -> Result<[usize; 3]> {
    let desc = graph.desc(x)?;
    desc.shape[..].try_into().map_err(|_| Error::shape("attention", format!("x is {desc}, rank 3 was expected")))
}
