//! `concat`: two tensors joined along one axis, such as past and new keys.
//!
//! Techniques: `concat_each` (one lane per element), `concat_native`.

use std::sync::Arc;

use rayon::prelude::*;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput};
use crate::compare::Tolerance;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("concat_each");

/// Fewest bytes worth a task of their own.
const MIN_BYTES: usize = 1 << 16;

/// Joins two tensors whose shapes differ along one axis only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Concat {
    /// The axis along which the second tensor follows the first.
    pub axis: usize,
}

impl Graph {
    /// Adds [`Concat`]: `a`, then `b`, along `axis`; both f32 or both f16.
    ///
    /// # Errors
    /// An axis that the tensors lack, two dtypes, or shapes that differ elsewhere.
    pub fn concat(&mut self, a: Tensor, b: Tensor, axis: usize) -> Result<Tensor> {
        Ok(self.add(Concat { axis }, &[a, b])?[0])
    }
}

params! {
    struct ConcatParams { count: u32, a_block: u32, b_block: u32 }
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("concat", message));
        let [a, b] = inputs else { return fail(format!("takes two tensors, got {}", inputs.len())) };
        if !a.dtype.is_device_float() || a.dtype != b.dtype {
            return fail(format!("takes two tensors of f32 or of f16, got {a} and {b}"));
        }
        if self.axis >= a.rank() {
            return fail(format!("axis {} is outside {a}", self.axis));
        }
        let apart = |shape: &[usize]| (shape[..self.axis].to_vec(), shape[self.axis + 1..].to_vec());
        if a.rank() != b.rank() || apart(&a.shape) != apart(&b.shape) {
            return fail(format!("{a} and {b} differ in more than axis {}", self.axis));
        }
        let Some(size) = a.shape[self.axis].checked_add(b.shape[self.axis]) else {
            return fail(format!("{a} and {b} have no common size along axis {}", self.axis));
        };
        let mut joined = a.clone();
        joined.shape[self.axis] = size;
        Ok(vec![joined])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let data = [inputs[0].to_f64(), inputs[1].to_f64()];
        let shapes = [inputs[0].shape(), inputs[1].shape()];
        let mut shape = shapes[0].to_vec();
        shape[self.axis] += shapes[1][self.axis];
        let rank = shape.len();
        let first = shapes[0][self.axis];
        let result = rows.compute(&shape, |row, out| {
            let mut at = vec![0; rank];
            let mut rest = row;
            for axis in (0..rank - 1).rev() {
                at[axis] = rest % shape[axis];
                rest /= shape[axis];
            }
            for (column, out) in out.iter_mut().enumerate() {
                at[rank - 1] = column;
                let mut from = at.clone();
                let side = usize::from(at[self.axis] >= first);
                from[self.axis] -= side * first;
                *out = data[side][from.iter().zip(shapes[side]).fold(0, |offset, (at, size)| offset * size + at)];
            }
        });
        vec![result]
    }

    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(0, inputs, inputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, _: &[TensorDesc], _: &[Option<&HostTensor>]) -> Result<()> {
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => self.native(inputs),
            Backend::Gpu => self.each(inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl Concat {
    /// Elements that each input holds for one position of the axes before the joined one.
    fn blocks(&self, inputs: &[TensorDesc]) -> [usize; 2] {
        [0, 1].map(|side| inputs[side].shape[self.axis..].iter().product())
    }

    fn native(&self, inputs: &[TensorDesc]) -> Vec<Technique> {
        let blocks = self.blocks(inputs).map(|elements| elements * inputs[0].dtype.size());
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            join(blocks, [inputs[0].bytes, inputs[1].bytes], outputs[0].bytes);
        };
        vec![Technique::Cpu(CpuKernel { name: "concat_native", run: Arc::new(run) })]
    }

    fn each(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        if inputs[0].dtype == Dtype::F16 && !capabilities.f16 {
            return None;
        }
        let constants = vec![("Elem", Constant::Scalar(inputs[0].dtype))];
        let shader = Shader { main: EACH, libraries: Vec::new(), constants };
        let [a_block, b_block] = self.blocks(inputs).map(index);
        let count = inputs[0].len() + inputs[1].len();
        let params = ConcatParams { count: index(count), a_block, b_block };
        let workgroups = fold(count.div_ceil(256), capabilities);
        Some(Launch { shader, params: params.into(), workgroups, bindings: Bindings::in_order(2, 1) })
    }
}

/// Blocks of `a` and `b` in turn; the sizes are bytes.
fn join([a_block, b_block]: [usize; 2], [a, b]: [&[u8]; 2], y: &mut [u8]) {
    let block = a_block + b_block;
    if y.is_empty() {
        return;
    }
    y.par_chunks_exact_mut(block).with_min_len(MIN_BYTES.div_ceil(block)).enumerate().for_each(|(index, y)| {
        let (first, second) = y.split_at_mut(a_block);
        first.copy_from_slice(&a[index * a_block..][..a_block]);
        second.copy_from_slice(&b[index * b_block..][..b_block]);
    });
}

/// Every axis, primes, one element beside many, an odd number of f16, an empty side, nothing at all, more than 65,535
/// workgroups.
pub(super) fn cases() -> Vec<Case> {
    let shapes: [(&[usize], usize, usize); 10] = [
        (&[1], 1, 0),
        (&[257], 3, 0),
        (&[5, 7], 2, 0),
        (&[5, 7], 13, 1),
        (&[2, 3, 12, 8], 6, 2),
        (&[3, 2, 128, 40], 1, 2),
        (&[2, 3, 1, 5], 33, 3),
        (&[2, 3, 0, 5], 4, 2),
        (&[2, 3, 4, 5], 0, 2),
        (&[2, 0, 4, 5], 3, 2),
    ];
    let each = |dtype: Dtype| shapes.map(|(shape, other, axis)| case(dtype, shape, other, axis));
    let mut cases: Vec<Case> = [Dtype::F32, Dtype::F16].into_iter().flat_map(each).collect();
    cases.push(case(Dtype::F32, &[4097, 4097], 3, 1));
    cases
}

fn case(dtype: Dtype, shape: &[usize], other: usize, axis: usize) -> Case {
    let second = [&shape[..axis], &[other], &shape[axis + 1..]].concat();
    let name = format!("{dtype} {shape:?} and {second:?}");
    let inputs = [shape, &second].map(|shape| CaseInput::normal(dtype, shape, 1.0));
    Case::new(name, Concat { axis }, inputs.into(), Tolerance::of_scale(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(shape: &[usize], first: usize) -> HostTensor {
        let len: usize = shape.iter().product();
        HostTensor::f32(shape, (first..first + len).map(|x| x as f32).collect()).unwrap()
    }

    #[test]
    fn reference_by_hand() {
        let (a, b) = (tensor(&[2, 1, 2], 0), tensor(&[2, 2, 2], 10));
        let out = Concat { axis: 1 }.reference(&[&a, &b], Rows::All).remove(0);
        assert_eq!(out.shape(), [2, 3, 2]);
        assert_eq!(out.as_f64().unwrap(), [0.0, 1.0, 10.0, 11.0, 12.0, 13.0, 2.0, 3.0, 14.0, 15.0, 16.0, 17.0]);
        let (a, b) = (tensor(&[2, 1], 0), tensor(&[2, 2], 10));
        let out = Concat { axis: 1 }.reference(&[&a, &b], Rows::All).remove(0);
        assert_eq!(out.as_f64().unwrap(), [0.0, 10.0, 11.0, 1.0, 12.0, 13.0]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let desc = |shape: &[usize]| TensorDesc::new(Dtype::F32, shape);
        let refused = |inputs: &[TensorDesc], axis, part: &str| {
            let error = Concat { axis }.outputs(inputs).unwrap_err().to_string();
            assert!(error.starts_with("concat: ") && error.contains(part), "{error}");
        };
        refused(&[desc(&[2])], 0, "two tensors, got 1");
        refused(&[desc(&[2, 3]), desc(&[2, 4])], 0, "differ in more than axis 0");
        refused(&[desc(&[2, 3]), desc(&[2])], 0, "differ in more than axis 0");
        refused(&[desc(&[2, 3]), desc(&[2, 3])], 2, "axis 2 is outside");
        refused(&[desc(&[2]), TensorDesc::new(Dtype::F16, [2])], 0, "f32 [2] and f16 [2]");
        refused(&[desc(&[0, usize::MAX]), desc(&[0, 1])], 1, "no common size");
    }
}
