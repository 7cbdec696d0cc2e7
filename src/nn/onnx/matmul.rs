//! ONNX's `MatMul`, every opset: NumPy's `matmul`.

use super::OnnxNode;
use super::builder::{Attributes, Builder, Slots};
use crate::attention::Strategy;
use crate::error::Result;
use crate::nn::golden::GoldenGraph;
use crate::ops::MatMul;

const SLOTS: Slots = Slots { inputs: &["A", "B"], required: 2, outputs: 1 };
const A: usize = 0;
const B: usize = 1;

/// A factor of rank 1 is one row on the left and one column on the right, and that axis is none of the result's.
pub(super) fn build(node: &OnnxNode, _: Strategy) -> Result<GoldenGraph> {
    Attributes::of(node).finish()?;
    let mut builder = Builder::new(node, &SLOTS)?;
    let dtype = builder.one_float_dtype(&[A, B])?;
    let (a_shape, b_shape) = (builder.shape(A)?, builder.shape(B)?);
    let (a_full, b_full) = match (a_shape, b_shape) {
        ([], _) | (_, []) => return Err(node.fail("a factor of rank 0 has no product")),
        (a, b) => {
            let row = if let [k] = a { vec![1, *k] } else { a.to_vec() };
            let column = if let [k] = b { vec![*k, 1] } else { b.to_vec() };
            (row, column)
        }
    };
    let (a_batch, a_matrix) = a_full.split_at(a_full.len() - 2);
    let (b_batch, b_matrix) = b_full.split_at(b_full.len() - 2);
    let Some(pairs) = pair(a_batch, b_batch) else {
        return Err(node.fail(format!("batch axes {a_batch:?} of A and {b_batch:?} of B do not broadcast")));
    };
    let folded = fold(&pairs);
    let side = |side: usize, matrix: &[usize]| {
        let batch = folded.iter().map(|sizes| sizes[side]);
        batch.chain(matrix.iter().copied()).collect::<Vec<_>>()
    };
    let (a, b) = (builder.float(A, dtype)?, builder.float(B, dtype)?);
    let a = builder.graph.reshape(a, &side(0, a_matrix))?;
    let b = builder.graph.reshape(b, &side(1, b_matrix))?;
    let y = builder.graph.matmul(a, b, None, MatMul::default())?;
    let mut shape: Vec<usize> = pairs.iter().map(size).collect();
    shape.extend(a_shape.len().checked_sub(2).map(|_| a_matrix[0]));
    shape.extend(b_shape.len().checked_sub(2).map(|_| b_matrix[1]));
    let y = builder.graph.reshape(y, &shape)?;
    builder.output(0, y)?;
    Ok(builder.finish())
}

/// The sizes of each batch axis in both factors; `None` where they do not broadcast.
fn pair(a: &[usize], b: &[usize]) -> Option<Vec<[usize; 2]>> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis]);
    let pairs = (0..rank).map(|axis| [size(a, axis), size(b, axis)]);
    pairs.map(|[a, b]| (a == b || a == 1 || b == 1).then_some([a, b])).collect()
}

/// What both broadcast to, which is zero where one of them is.
fn size(&[a, b]: &[usize; 2]) -> usize {
    if a == 1 { b } else { a }
}

/// Neighbouring axes that broadcast alike are one; the op walks few.
fn fold(pairs: &[[usize; 2]]) -> Vec<[usize; 2]> {
    let kind = |&[a, b]: &[usize; 2]| (a == 1, b == 1);
    let mut folded: Vec<[usize; 2]> = Vec::new();
    for pair in pairs.iter().filter(|pair| **pair != [1, 1]) {
        match folded.last_mut() {
            Some(last) if kind(last) == kind(pair) => *last = [last[0] * pair[0], last[1] * pair[1]],
            _ => folded.push(*pair),
        }
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_pair_and_fold() {
        let pairs = pair(&[2, 3, 1, 5], &[3, 4, 1]).unwrap();
        assert_eq!(pairs, [[2, 1], [3, 3], [1, 4], [5, 1]]);
        assert_eq!(pairs.iter().map(size).collect::<Vec<_>>(), [2, 3, 4, 5]);
        assert_eq!(pair(&[2], &[3]), None);
        assert_eq!(fold(&[[2, 2], [1, 1], [3, 3], [1, 4], [1, 5], [6, 1]]), [[6, 6], [1, 20], [6, 1]]);
    }
}
