//! `transpose`: the axes of a tensor in another order.
//!
//! Techniques: `transpose_each` (one lane per element), `transpose_pairs` (one lane per two elements of bf16),
//! `transpose_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::transpose::{TransposeShape, transpose};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("transpose_each");
const PAIRS: Source = wgsl!("transpose_pairs");
const PERMUTED: Source = wgsl!("lib/permuted");

/// Axes that the kernels walk.
const MAX_RANK: usize = 6;

/// Axis `n` of the result is axis `axes[n]` of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transpose {
    /// Every axis of the input once.
    pub axes: Vec<usize>,
}

impl Graph {
    /// Adds [`Transpose`]: axis `n` of the result is axis `axes[n]` of `x`, which is f32, f16, bf16 or u32.
    ///
    /// # Errors
    /// Axes that are not each of the input's once, rank above 6, another dtype.
    pub fn transpose(&mut self, x: Tensor, axes: &[usize]) -> Result<Tensor> {
        Ok(self.add(Transpose { axes: axes.to_vec() }, &[x])?[0])
    }
}

params! {
    struct TransposeParams {
        count: u32, size_1: u32, size_2: u32, size_3: u32, size_4: u32, size_5: u32,
        stride_0: u32, stride_1: u32, stride_2: u32, stride_3: u32, stride_4: u32, stride_5: u32,
    }
}

impl Op for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("transpose", message));
        let [x] = inputs else { return fail(format!("takes one tensor, got {}", inputs.len())) };
        if !matches!(x.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::U32) || x.rank() > MAX_RANK {
            return fail(format!("takes f32, f16, bf16 or u32 of rank {MAX_RANK} at most, got {x}"));
        }
        let mut sorted = self.axes.clone();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..x.rank()) {
            return fail(format!("axes {:?} are not those of {x}, each once", self.axes));
        }
        Ok(vec![TensorDesc::new(x.dtype, self.axes.iter().map(|&axis| x.shape[axis]).collect::<Vec<_>>())])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let (x, from) = (inputs[0].to_f64(), inputs[0].shape());
        let shape: Vec<usize> = self.axes.iter().map(|&axis| from[axis]).collect();
        let result = rows.compute(&shape, |row, out| {
            let length = out.len();
            for (column, out) in out.iter_mut().enumerate() {
                let mut rest = row * length + column;
                let mut at = vec![0; from.len()];
                for (&axis, size) in self.axes.iter().zip(&shape).rev() {
                    at[axis] = rest % size;
                    rest /= size;
                }
                *out = x[at.iter().zip(from).fold(0, |offset, (at, size)| offset * size + at)];
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
            Backend::Cpu => self.native(&inputs[0]),
            Backend::Gpu => self.launch(&inputs[0], capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl Transpose {
    /// Sizes of the result and strides in the input; axes that stay neighbours are one.
    fn walk(&self, x: &TensorDesc) -> TransposeShape {
        let stride = |axis: usize| x.shape[axis + 1..].iter().product::<usize>();
        let mut walk = TransposeShape { sizes: Vec::new(), strides: Vec::new() };
        for &axis in self.axes.iter().filter(|&&axis| x.shape[axis] != 1) {
            let (size, stride) = (x.shape[axis], stride(axis));
            match (walk.sizes.last_mut(), walk.strides.last_mut()) {
                (Some(last_size), Some(last_stride)) if *last_stride == size * stride => {
                    *last_size *= size;
                    *last_stride = stride;
                }
                _ => {
                    walk.sizes.push(size);
                    walk.strides.push(stride);
                }
            }
        }
        walk
    }

    fn native(&self, x: &TensorDesc) -> Vec<Technique> {
        let (walk, size) = (self.walk(x), x.dtype.size());
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            transpose(&walk, size, inputs[0].bytes, outputs[0].bytes);
        };
        vec![Technique::Cpu(CpuKernel { name: "transpose_native", run: Arc::new(run) })]
    }

    fn launch(&self, x: &TensorDesc, capabilities: &Capabilities) -> Option<Launch> {
        if x.dtype == Dtype::F16 && !capabilities.f16 {
            return None;
        }
        let pairs = x.dtype == Dtype::BF16;
        let constants = if pairs { Vec::new() } else { vec![("Elem", Constant::Scalar(x.dtype))] };
        let main = if pairs { PAIRS } else { EACH };
        let shader = Shader { main, libraries: vec![PERMUTED], constants };
        let lanes = x.len().div_ceil(if pairs { 2 } else { 1 });
        let workgroups = fold(lanes.div_ceil(256), capabilities);
        let params = self.params(x).into();
        Some(Launch { shader, params, workgroups, bindings: Bindings::in_order(1, 1) })
    }

    fn params(&self, x: &TensorDesc) -> TransposeParams {
        let walk = self.walk(x);
        let skipped = MAX_RANK - walk.sizes.len();
        let (mut sizes, mut strides) = ([1; MAX_RANK], [0; MAX_RANK]);
        sizes[skipped..].copy_from_slice(&walk.sizes);
        strides[skipped..].copy_from_slice(&walk.strides);
        let [_, size_1, size_2, size_3, size_4, size_5] = sizes.map(index);
        let [stride_0, stride_1, stride_2, stride_3, stride_4, stride_5] = strides.map(index);
        TransposeParams {
            count: index(x.len()),
            size_1,
            size_2,
            size_3,
            size_4,
            size_5,
            stride_0,
            stride_1,
            stride_2,
            stride_3,
            stride_4,
            stride_5,
        }
    }
}

/// Every rank and none, primes, axes that stay and fold, axes of one and of none, odd numbers of 16-bit elements, every dtype,
/// more than 65,535 workgroups.
pub(super) fn cases() -> Vec<Case> {
    let shapes: [(&[usize], &[usize]); 14] = [
        (&[], &[]),
        (&[7], &[0]),
        (&[5, 7], &[0, 1]),
        (&[5, 7], &[1, 0]),
        (&[1, 257], &[1, 0]),
        (&[129, 65], &[1, 0]),
        (&[3, 5, 7], &[0, 2, 1]),
        (&[3, 5, 7], &[2, 0, 1]),
        (&[3, 0, 7], &[2, 1, 0]),
        (&[2, 33, 4, 8], &[0, 2, 1, 3]),
        (&[2, 3, 5, 7], &[3, 2, 1, 0]),
        (&[2, 3, 1, 5, 7], &[4, 2, 0, 3, 1]),
        (&[3, 2, 3, 5, 2, 3], &[5, 3, 1, 4, 2, 0]),
        (&[2, 3, 2, 3, 2, 3], &[1, 2, 3, 4, 5, 0]),
    ];
    let dtypes = [Dtype::F32, Dtype::F16, Dtype::BF16];
    let floats = dtypes
        .into_iter()
        .flat_map(|dtype| shapes.map(|(shape, axes)| case(CaseInput::normal(dtype, shape, 1.0), axes)));
    let mut cases: Vec<Case> = floats.collect();
    let numbers = HostTensor::u32(&[2, 3, 5], (u32::MAX - 29..=u32::MAX).collect()).expect("2 x 3 x 5");
    cases.push(case(CaseInput { desc: numbers.desc().clone(), values: Values::Given(numbers) }, &[2, 0, 1]));
    cases.push(case(CaseInput::normal(Dtype::F32, &[4099, 4099], 1.0), &[1, 0]));
    cases
}

fn case(input: CaseInput, axes: &[usize]) -> Case {
    let name = format!("{} by {axes:?}", input.desc);
    Case::new(name, Transpose { axes: axes.to_vec() }, vec![input], Tolerance::of_scale(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_by_hand() {
        let x = HostTensor::f32(&[1, 2, 3], (0..6).map(|x| x as f32).collect()).unwrap();
        let out = Transpose { axes: vec![2, 0, 1] }.reference(&[&x], Rows::All).remove(0);
        assert_eq!(out.shape(), [3, 1, 2]);
        assert_eq!(out.as_f64().unwrap(), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    }

    #[test]
    fn neighbours_that_stay_are_one_axis() {
        let walk = |shape: &[usize], axes: &[usize]| {
            Transpose { axes: axes.to_vec() }.walk(&TensorDesc::new(Dtype::F32, shape))
        };
        assert_eq!(walk(&[2, 3, 4], &[0, 1, 2]), TransposeShape { sizes: vec![24], strides: vec![1] });
        assert_eq!(walk(&[2, 3, 1, 4], &[3, 2, 0, 1]), TransposeShape { sizes: vec![4, 6], strides: vec![1, 4] });
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let refused = |desc: TensorDesc, axes: &[usize], part: &str| {
            let error = Transpose { axes: axes.to_vec() }.outputs(&[desc]).unwrap_err().to_string();
            assert!(error.starts_with("transpose: ") && error.contains(part), "{error}");
        };
        let desc = |rank| TensorDesc::new(Dtype::F32, vec![2; rank]);
        refused(desc(2), &[0], "axes [0] are not those of f32 [2, 2]");
        refused(desc(2), &[1, 1], "each once");
        refused(desc(2), &[1, 2], "each once");
        refused(desc(7), &[0, 1, 2, 3, 4, 5, 6], "rank 6 at most");
        refused(TensorDesc::new(Dtype::Bool, [2]), &[0], "bool [2]");
    }
}
