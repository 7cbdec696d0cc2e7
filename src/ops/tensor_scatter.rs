//! `tensor_scatter`: a cache with rows of an update written over its own, as ONNX's `TensorScatter` does it. The cache itself
//! stays as it was.
//!
//! Techniques: `tensor_scatter_each` (one lane per element), `tensor_scatter_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
pub use crate::cpu::kernels::tensor_scatter::Wrap;
use crate::cpu::kernels::tensor_scatter::{TensorScatterArgs, tensor_scatter};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("tensor_scatter_each");

/// Row `starts[batch] + i` along `axis` becomes row `i` of the update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorScatter {
    /// The axis of the rows; not the first, which is the batch.
    pub axis: usize,
    /// What becomes of rows past the last.
    pub wrap: Wrap,
}

impl Graph {
    /// Adds [`TensorScatter`]: `cache` `[batch, .., capacity, ..]` and `update` `[batch, .., seq, ..]` of one dtype (f32, f16 or
    /// u32), `starts` u32 `[batch]`, into the shape of the cache.
    ///
    /// # Errors
    /// Shapes that differ elsewhere than along `axis`, more rows than the cache has, an axis that is the first or none.
    pub fn tensor_scatter(&mut self, [cache, update, starts]: [Tensor; 3], options: TensorScatter) -> Result<Tensor> {
        Ok(self.add(options, &[cache, update, starts])?[0])
    }
}

params! {
    struct TensorScatterParams { count: u32, batch_block: u32, capacity: u32, seq: u32, inner: u32 }
}

impl Op for TensorScatter {
    fn name(&self) -> &'static str {
        "tensor_scatter"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("tensor_scatter", message));
        let [cache, update, starts] = inputs else {
            return fail(format!("takes a cache, an update and starts, got {} tensors", inputs.len()));
        };
        if !matches!(cache.dtype, Dtype::F32 | Dtype::F16 | Dtype::U32) || cache.dtype != update.dtype {
            return fail(format!("takes a cache and an update of f32, f16 or u32, got {cache} and {update}"));
        }
        if self.axis == 0 || self.axis >= cache.rank() {
            return fail(format!("axis {} is the first of {cache}, or none", self.axis));
        }
        let mut widened = update.shape.clone();
        if let Some(rows) = widened.get_mut(self.axis).filter(|rows| **rows <= cache.shape[self.axis]) {
            *rows = cache.shape[self.axis];
        }
        if widened != cache.shape {
            return fail(format!("update {update} does not fit cache {cache} along axis {}", self.axis));
        }
        if starts.dtype != Dtype::U32 || starts.shape != cache.shape[..1] {
            return fail(format!("starts is {starts}, it must be u32 [{}]", cache.shape[0]));
        }
        Ok(vec![cache.clone()])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let (shape, seq) = (inputs[0].shape(), inputs[1].shape()[self.axis]);
        let (mut y, update, starts) = (inputs[0].to_f64(), inputs[1].to_f64(), inputs[2].to_f64());
        let outer: usize = shape[..self.axis].iter().product();
        let inner: usize = shape[self.axis + 1..].iter().product();
        let capacity = shape[self.axis];
        for position in 0..outer {
            let start = starts[position * shape[0] / outer] as usize;
            for i in 0..seq {
                let row = if self.wrap == Wrap::Circular { (start + i) % capacity } else { start + i };
                for column in 0..inner {
                    if row < capacity {
                        y[(position * capacity + row) * inner + column] = update[(position * seq + i) * inner + column];
                    }
                }
            }
        }
        vec![rows.compute(shape, |row, out| {
            let length = out.len();
            out.copy_from_slice(&y[row * length..][..length]);
        })]
    }

    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(0, inputs, &inputs[..1])
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        let starts = data.get(2).copied().flatten().and_then(HostTensor::as_u32).unwrap_or_default();
        let [capacity, seq] = [&inputs[0], &inputs[1]].map(|desc| desc.shape[self.axis]);
        let past = starts.iter().position(|&start| start as usize + seq > capacity);
        match past.filter(|_| self.wrap == Wrap::Linear) {
            Some(batch) => {
                let message = format!("{seq} rows from {} on, and the cache has {capacity}", starts[batch]);
                Err(Error::shape("tensor_scatter", format!("batch element {batch}: {message}")))
            }
            None => Ok(()),
        }
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        match capabilities.backend {
            Backend::Cpu => self.native(inputs),
            Backend::Gpu => self.each(inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl TensorScatter {
    fn native(&self, inputs: &[TensorDesc]) -> Vec<Technique> {
        let [capacity, seq] = [&inputs[0], &inputs[1]].map(|desc| desc.shape[self.axis]);
        let inner: usize = inputs[0].shape[self.axis + 1..].iter().product();
        let (row_bytes, wrap) = (inner * inputs[0].dtype.size(), self.wrap);
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let starts = bytemuck::cast_slice(inputs[2].bytes);
            let (cache, update) = (inputs[0].bytes, inputs[1].bytes);
            let args = TensorScatterArgs { cache, update, starts, capacity, seq, row_bytes, wrap };
            tensor_scatter(&args, outputs[0].bytes);
        };
        vec![Technique::Cpu(CpuKernel { name: "tensor_scatter_native", run: Arc::new(run) })]
    }

    fn each(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let cache = &inputs[0];
        if cache.dtype == Dtype::F16 && !capabilities.f16 {
            return None;
        }
        let circular = Constant::Bool(self.wrap == Wrap::Circular);
        let constants = vec![("CIRCULAR", circular), ("Elem", Constant::Scalar(cache.dtype))];
        let shader = Shader { main: EACH, libraries: Vec::new(), constants };
        let params = TensorScatterParams {
            count: index(cache.len()),
            batch_block: index(cache.shape[1..].iter().product()),
            capacity: index(cache.shape[self.axis]),
            seq: index(inputs[1].shape[self.axis]),
            inner: index(cache.shape[self.axis + 1..].iter().product()),
        };
        let workgroups = fold(cache.len().div_ceil(256), capabilities);
        Some(Launch { shader, params: params.into(), workgroups, bindings: Bindings::in_order(3, 1) })
    }
}

/// Every axis, one row and all of them, none, starts at and past the end and far beyond, both ways to go on, an odd number of f16,
/// more than 65,535 workgroups.
pub(super) fn cases() -> Vec<Case> {
    let shapes: [(&[usize], usize, usize, &[u32]); 9] = [
        (&[1, 1], 1, 1, &[0]),
        (&[2, 5], 1, 2, &[3, 4]),
        (&[2, 1, 4, 5], 2, 1, &[1, 2]),
        (&[3, 2, 33, 7], 2, 5, &[0, 31, u32::MAX]),
        (&[3, 2, 33, 7], 1, 2, &[0, 1, 1_000_003]),
        (&[3, 2, 7, 5], 3, 5, &[0, 3, 5]),
        (&[2, 129, 3], 1, 129, &[0, 64]),
        (&[2, 4, 3], 1, 0, &[1, 4]),
        (&[0, 4, 3], 1, 2, &[]),
    ];
    let dtypes = [(Dtype::F32, Wrap::Linear), (Dtype::F32, Wrap::Circular), (Dtype::F16, Wrap::Linear)];
    let each = |(dtype, wrap)| shapes.map(|(shape, axis, seq, starts)| case(dtype, shape, (axis, seq, wrap), starts));
    let mut cases: Vec<Case> = dtypes.into_iter().flat_map(each).collect();
    cases.push(case(Dtype::F32, &[1, 4097, 4097], (1, 3, Wrap::Linear), &[4090]));
    cases
}

fn case(dtype: Dtype, shape: &[usize], (axis, seq, wrap): (usize, usize, Wrap), starts: &[u32]) -> Case {
    let update = [&shape[..axis], &[seq], &shape[axis + 1..]].concat();
    let name = format!("{dtype} {update:?} into {shape:?} from {starts:?} {wrap:?}");
    let starts = HostTensor::u32(&[starts.len()], starts.to_vec()).expect("one axis");
    let starts = CaseInput { desc: starts.desc().clone(), values: Values::Given(starts) };
    let inputs = vec![CaseInput::normal(dtype, shape, 1.0), CaseInput::normal(dtype, &update, 1.0), starts];
    Case::new(name, TensorScatter { axis, wrap }, inputs, Tolerance::of_scale(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scatter(wrap: Wrap, start: u32) -> Vec<f64> {
        let cache = HostTensor::f32(&[1, 3, 1], vec![1.0, 2.0, 3.0]).unwrap();
        let update = HostTensor::f32(&[1, 2, 1], vec![7.0, 8.0]).unwrap();
        let starts = HostTensor::u32(&[1], vec![start]).unwrap();
        let op = TensorScatter { axis: 1, wrap };
        op.reference(&[&cache, &update, &starts], Rows::All)[0].as_f64().unwrap().to_vec()
    }

    #[test]
    fn reference_by_hand() {
        assert_eq!(scatter(Wrap::Linear, 0), [7.0, 8.0, 3.0]);
        assert_eq!(scatter(Wrap::Linear, 2), [1.0, 2.0, 7.0]);
        assert_eq!(scatter(Wrap::Linear, 9), [1.0, 2.0, 3.0]);
        assert_eq!(scatter(Wrap::Circular, 2), [8.0, 2.0, 7.0]);
        assert_eq!(scatter(Wrap::Circular, 4), [1.0, 7.0, 8.0]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let desc = |dtype, shape: &[usize]| TensorDesc::new(dtype, shape);
        let refused = |axis, inputs: [TensorDesc; 3], part: &str| {
            let error = TensorScatter { axis, wrap: Wrap::Linear }.outputs(&inputs).unwrap_err().to_string();
            assert!(error.starts_with("tensor_scatter: ") && error.contains(part), "{error}");
        };
        let floats = |shape: &[usize]| desc(Dtype::F32, shape);
        let starts = || desc(Dtype::U32, &[2]);
        refused(0, [floats(&[2, 4]), floats(&[2, 1]), starts()], "axis 0 is the first");
        refused(2, [floats(&[2, 4]), floats(&[2, 1]), starts()], "or none");
        refused(1, [floats(&[2, 4]), floats(&[2, 5]), starts()], "does not fit cache f32 [2, 4]");
        refused(1, [floats(&[2, 4]), floats(&[2]), starts()], "update f32 [2]");
        refused(1, [floats(&[2, 4]), floats(&[1, 1]), starts()], "update f32 [1, 1]");
        refused(1, [floats(&[2, 4]), desc(Dtype::F16, &[2, 1]), starts()], "f32 [2, 4] and f16 [2, 1]");
        refused(1, [floats(&[2, 4]), floats(&[2, 1]), floats(&[2])], "starts is f32 [2]");
    }

    #[test]
    fn a_checked_run_reports_rows_past_the_end() {
        let cache = TensorDesc::new(Dtype::F32, [2, 4]);
        let inputs = [cache.clone(), TensorDesc::new(Dtype::F32, [2, 2]), TensorDesc::new(Dtype::U32, [2])];
        let starts = HostTensor::u32(&[2], vec![2, 3]).unwrap();
        let check = |wrap| TensorScatter { axis: 1, wrap }.check(&inputs, &[None, None, Some(&starts)]);
        assert!(check(Wrap::Circular).is_ok());
        let error = check(Wrap::Linear).unwrap_err().to_string();
        assert!(error.contains("batch element 1: 2 rows from 3 on, and the cache has 4"), "{error}");
    }
}
