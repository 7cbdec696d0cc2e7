//! `slice`: a part of a tensor, each axis from a start to an end in steps, forwards or backwards.
//!
//! Techniques: `slice_each` (one lane per word of the output), `slice_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::Case;
use crate::compare::Tolerance;
use crate::cpu::kernels::axes::{Axis, merged};
use crate::cpu::kernels::gather;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::any_dtype::drawn;
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("slice_each");
const WORDS: Source = wgsl!("lib/words");

/// Most axes of a tensor.
const MAX_RANK: usize = 6;

/// The positions `start`, `start + step`, … before `end` along one axis, as `start:end:step` means in numpy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AxisSlice {
    /// The axis.
    pub axis: usize,
    /// First position; a negative one counts from the end, one past an end is that end.
    pub start: i64,
    /// Position that is no longer taken, likewise; `i64::MAX`, or `i64::MIN` when going backwards, takes all.
    pub end: i64,
    /// From one position to the next; not zero. A negative one goes backwards.
    pub step: i64,
}

/// Takes a part of a tensor of any dtype but f64; axes that are not named are taken whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// At most one for each axis.
    pub axes: Vec<AxisSlice>,
}

impl Graph {
    /// Adds [`Slice`]: rank up to 6, same dtype, each named axis as long as it has positions from start to end.
    ///
    /// # Errors
    /// An axis that the tensor lacks or that is named twice, a step of zero, rank above 6.
    pub fn slice(&mut self, x: Tensor, axes: &[AxisSlice]) -> Result<Tensor> {
        Ok(self.add(Slice { axes: axes.to_vec() }, &[x])?[0])
    }
}

params! {
    struct SliceParams { axes: [[u32; 4]; 6], count: u32, axis_count: u32, start: u32 }
}

impl Op for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("slice", message));
        let [x] = inputs else { return fail(format!("takes one tensor, got {}", inputs.len())) };
        if x.rank() > MAX_RANK || x.dtype == Dtype::F64 {
            return fail(format!("takes a tensor of rank up to {MAX_RANK} of any dtype but f64, got {x}"));
        }
        for (number, slice) in self.axes.iter().enumerate() {
            if slice.axis >= x.rank() {
                return fail(format!("axis {} is outside {x}", slice.axis));
            }
            if self.axes[..number].iter().any(|other| other.axis == slice.axis) {
                return fail(format!("axis {} is named twice", slice.axis));
            }
            if slice.step == 0 {
                return Err(Error::option("slice", format!("the step of axis {} is 0", slice.axis)));
            }
        }
        let sizes: Vec<usize> = self.parts(x).iter().map(|part| part.size).collect();
        Ok(vec![TensorDesc::new(x.dtype, sizes)])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let (data, shape) = (inputs[0].to_f64(), inputs[0].shape());
        let positions: Vec<Vec<usize>> = shape
            .iter()
            .enumerate()
            .map(|(axis, &size)| match self.axes.iter().find(|slice| slice.axis == axis) {
                Some(slice) => positions(slice, size),
                None => (0..size).collect(),
            })
            .collect();
        let output: Vec<usize> = positions.iter().map(Vec::len).collect();
        let result = rows.compute(&output, |row, out| {
            let length = out.len();
            for (column, out) in out.iter_mut().enumerate() {
                let mut rest = row * length + column;
                let mut offset = 0;
                let mut stride = 1;
                for axis in (0..shape.len()).rev() {
                    offset += positions[axis][rest % output[axis]] * stride;
                    rest /= output[axis];
                    stride *= shape[axis];
                }
                *out = data[offset];
            }
        });
        vec![result]
    }

    /// What is taken, read and written.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let output = self.outputs(inputs).unwrap_or_default();
        Cost::once(0, &output, &output)
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
            Backend::Gpu => self.each(&inputs[0], capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

/// A slice of one axis with its ends resolved.
#[derive(Debug, Clone, Copy)]
struct Part {
    first: isize,
    size: usize,
    step: isize,
}

impl AxisSlice {
    fn part(&self, length: usize) -> Part {
        let length = length as i64;
        let (low, high) = if self.step > 0 { (0, length) } else { (-1, length - 1) };
        let resolve = |position: i64| {
            let position = if position < 0 { position.saturating_add(length) } else { position };
            position.clamp(low, high.max(low))
        };
        let (first, end) = (resolve(self.start), resolve(self.end));
        let distance = if self.step > 0 { end - first } else { first - end };
        let size = distance.max(0).unsigned_abs().div_ceil(self.step.unsigned_abs());
        Part { first: first as isize, size: size as usize, step: self.step as isize }
    }
}

impl Slice {
    fn parts(&self, x: &TensorDesc) -> Vec<Part> {
        let axes = x.shape.iter().enumerate();
        let part = |(axis, &size): (usize, &usize)| match self.axes.iter().find(|slice| slice.axis == axis) {
            Some(slice) => slice.part(size),
            None => Part { first: 0, size, step: 1 },
        };
        axes.map(part).collect()
    }

    /// The first element, and the output's axes with strides of the input; `None` when nothing is taken.
    fn walk(&self, x: &TensorDesc) -> Option<(isize, Vec<Axis>)> {
        let parts = self.parts(x);
        if parts.iter().any(|part| part.size == 0) {
            return None;
        }
        let (mut start, mut stride, mut axes) = (0, 1, Vec::new());
        for (part, &size) in parts.iter().zip(&x.shape).rev() {
            start += part.first * stride;
            // The step of a single position may be too large for any product.
            let step = if part.size == 1 { 0 } else { part.step * stride };
            axes.insert(0, Axis { size: part.size, strides: [step, 0, 0, 0] });
            stride *= size as isize;
        }
        Some((start, merged(&axes)))
    }

    fn native(&self, x: &TensorDesc) -> Vec<Technique> {
        let (walk, element) = (self.walk(x), x.dtype.size());
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            if let Some((start, axes)) = &walk {
                gather::slice(axes, *start, element, inputs[0].bytes, outputs[0].bytes);
            }
        };
        vec![Technique::Cpu(CpuKernel { name: "slice_native", run: Arc::new(run) })]
    }

    fn each(&self, x: &TensorDesc, capabilities: &Capabilities) -> Option<Launch> {
        if x.dtype == Dtype::F16 && !capabilities.f16 {
            return None;
        }
        let per_word = 4 / x.dtype.size();
        let shader = Shader {
            main: EACH,
            libraries: vec![WORDS],
            constants: vec![("PER_WORD", Constant::U32(index(per_word)))],
        };
        let (start, axes) = self.walk(x).unwrap_or_default();
        let count = if self.walk(x).is_none() { 0 } else { axes.iter().map(|axis| axis.size).product() };
        let mut params =
            SliceParams { axes: [[0; 4]; 6], count: index(count), axis_count: index(axes.len()), start: start as u32 };
        for (to, axis) in params.axes.iter_mut().zip(axes.iter().rev()) {
            // Offsets wrap around at 2³², so that backwards is forwards.
            *to = [index(axis.size), axis.strides[0] as u32, 0, 0];
        }
        let workgroups = fold(count.div_ceil(per_word).div_ceil(256), capabilities);
        Some(Launch { shader, params: params.into(), workgroups, bindings: Bindings::in_order(1, 1) })
    }
}

/// Every position that Python's `range(length)[start:end:step]` names.
fn positions(slice: &AxisSlice, length: usize) -> Vec<usize> {
    let n = length as i128;
    let from_end = |position: i64| if position < 0 { i128::from(position) + n } else { i128::from(position) };
    let (start, end, step) = (from_end(slice.start), from_end(slice.end), i128::from(slice.step));
    let mut at = if step > 0 { start.max(0) } else { start.min(n - 1) };
    let mut positions = Vec::new();
    while (0..n).contains(&at) && (if step > 0 { at < end } else { at > end }) {
        positions.push(at as usize);
        at += step;
    }
    positions
}

/// Forwards, backwards, strided, clamped, empty; every axis of rank up to 6; elements of 4, 2 and 1 bytes whose number
/// is no multiple of a word's; sizes around the 256 lanes; more than 65,535 workgroups.
pub(super) fn cases() -> Vec<Case> {
    let all = |axis, step: i64| {
        let (start, end) = if step > 0 { (0, i64::MAX) } else { (-1, i64::MIN) };
        AxisSlice { axis, start, end, step }
    };
    let from = |axis, start, end, step| AxisSlice { axis, start, end, step };
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Bool, Dtype::U32, Dtype::I8] {
        let deviation = if dtype == Dtype::F32 { 100.0 } else { 1.0 };
        let mut add = |shape: &[usize], axes: &[AxisSlice]| cases.push(case(dtype, shape, axes, deviation));
        add(&[], &[]);
        add(&[7], &[]);
        add(&[1021], &[all(0, -1)]);
        for length in [255, 256, 257, 1023, 1025] {
            add(&[length + 3], &[from(0, 2, -1, 1)]);
        }
        add(&[5, 13], &[from(1, 3, 9, 1)]);
        add(&[5, 13], &[from(0, 1, 3, 1)]);
        add(&[5, 13], &[all(1, 3), all(0, -2)]);
        add(&[5, 13], &[from(1, -2, 2, -3)]);
        add(&[5, 13], &[from(1, 100, -100, -1), from(0, -100, 100, 2)]);
        add(&[5, 13], &[from(1, 4, 4, 1)]);
        add(&[5, 13], &[from(1, 4, 9, -1)]);
        add(&[5, 13], &[from(0, 2, 3, i64::MAX), from(1, 12, i64::MIN, i64::MIN)]);
        add(&[0, 4], &[all(0, -1)]);
        add(&[3, 4, 5, 2, 3, 5], &[all(0, -1), from(2, 1, -1, 2), all(4, -2), from(5, 1, 4, 1)]);
        add(&[3, 4, 5, 2, 3, 5], &[from(1, 1, 3, 1)]);
    }
    cases.push(case(Dtype::F32, &[4100, 4200], &[all(1, -1)], 1.0));
    cases
}

fn case(dtype: Dtype, shape: &[usize], axes: &[AxisSlice], deviation: f32) -> Case {
    let words: Vec<String> = axes.iter().map(|a| format!("{}: {}..{} by {}", a.axis, a.start, a.end, a.step)).collect();
    let name = format!("{dtype} {shape:?} {words:?}");
    Case::new(name, Slice { axes: axes.to_vec() }, vec![drawn(dtype, shape, deviation)], Tolerance::of_scale(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_sizes_as_in_python() {
        for (start, end, step, wanted) in [
            (0, 5, 1, &[0, 1, 2, 3, 4][..]),
            (1, -1, 1, &[1, 2, 3]),
            (-2, i64::MAX, 1, &[3, 4]),
            (0, 5, 2, &[0, 2, 4]),
            (-1, i64::MIN, -1, &[4, 3, 2, 1, 0]),
            (3, 0, -2, &[3, 1]),
            (100, -100, -3, &[4, 1]),
            (-100, 2, 1, &[0, 1]),
            (-100, i64::MIN, -1, &[]),
            (2, 2, 1, &[]),
            (3, 1, 1, &[]),
            (1, 3, -1, &[]),
            (4, i64::MIN, i64::MIN, &[4]),
        ] {
            let slice = AxisSlice { axis: 0, start, end, step };
            assert_eq!(positions(&slice, 5), wanted, "{slice:?}");
            let part = slice.part(5);
            assert_eq!(part.size, wanted.len(), "{slice:?}");
            assert!(wanted.first().is_none_or(|&first| first as isize == part.first), "{slice:?}");
        }
    }

    #[test]
    fn reference_by_hand() {
        let x = HostTensor::f32(&[2, 3], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]).unwrap();
        let axes = vec![AxisSlice { axis: 1, start: -1, end: i64::MIN, step: -2 }];
        let y = Slice { axes }.reference(&[&x], Rows::All).remove(0);
        assert_eq!((y.shape(), y.as_f64().unwrap()), (&[2, 2][..], &[2.0, 0.0, 5.0, 3.0][..]));
    }

    #[test]
    fn refusals_name_both_sides() {
        let x = TensorDesc::new(Dtype::F32, [2, 3]);
        let slice = |axis, step| AxisSlice { axis, start: 0, end: 1, step };
        let refusal = |axes: Vec<AxisSlice>| Slice { axes }.outputs(std::slice::from_ref(&x)).unwrap_err().to_string();
        assert_eq!(refusal(vec![slice(2, 1)]), "slice: axis 2 is outside f32 [2, 3]");
        assert_eq!(refusal(vec![slice(1, 1), slice(1, 2)]), "slice: axis 1 is named twice");
        assert_eq!(refusal(vec![slice(1, 0)]), "slice: the step of axis 1 is 0");
    }
}
