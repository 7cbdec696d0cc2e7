//! Attention sinks: for each head one more score of every row, which has no value.

use crate::case::{CaseInput, Values};
use crate::error::{Error, Result};
use crate::tensor::{Dtype, HostTensor, TensorDesc};

/// Refuses sinks that do not fit scores `[.., heads, seq_q, seq_kv]`, in the name of `op`.
pub(crate) fn check_sinks(op: &'static str, sinks: &TensorDesc, scores: &TensorDesc) -> Result<()> {
    let [.., heads, _, _] = scores.shape[..] else {
        return Err(Error::shape(op, format!("sinks need scores [.., heads, seq_q, seq_kv], got {scores}")));
    };
    match sinks.dtype == Dtype::F32 && sinks.shape == [heads] {
        true => Ok(()),
        false => Err(Error::shape(op, format!("sinks are {sinks}, they must be f32 [{heads}]"))),
    }
}

/// Heads, and rows of each, of scores `[.., heads, seq_q, seq_kv]`; where there are no such axes every row is of one head.
pub(super) fn rows_of_a_head(scores: &TensorDesc) -> [usize; 2] {
    match scores.shape[..] {
        [.., heads, seq_q, _] => [heads, seq_q],
        _ => [1, scores.rows()],
    }
}

/// For cases: one of a normal score's size, none, one that outweighs the others, and so on.
pub(super) fn sinks(heads: usize) -> CaseInput {
    let data = (0..heads).map(|head| [0.5, f32::NEG_INFINITY, 6.0][head % 3]).collect();
    let tensor = HostTensor::f32(&[heads], data).expect("one for each head");
    CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) }
}
