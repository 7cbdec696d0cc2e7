//! `pad`: a constant around a tensor.
//!
//! Techniques: `pad_each` (one lane per word of the output), `pad_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::Case;
use crate::compare::Tolerance;
use crate::cpu::kernels::gather::{self, PaddedAxis};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::any_dtype::drawn;
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("pad_each");
const WORDS: Source = wgsl!("lib/words");

/// Most axes of a tensor.
const MAX_RANK: usize = 6;

/// Positions added to one axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AxisPadding {
    /// Before the tensor's own.
    pub before: usize,
    /// After them.
    pub after: usize,
}

/// Surrounds a tensor of any dtype but f64 with one value.
#[derive(Debug, Clone, PartialEq)]
pub struct Pad {
    /// One for each axis.
    pub axes: Vec<AxisPadding>,
    /// What is around; rounded to a float dtype, and of another one exactly.
    pub value: f32,
}

impl Graph {
    /// Adds [`Pad`]: rank up to 6, same dtype, each axis longer by what is before and after it.
    ///
    /// # Errors
    /// Another number of paddings than axes, rank above 6, a value that an integer or bool tensor cannot hold, a size
    /// that no memory has.
    pub fn pad(&mut self, x: Tensor, axes: &[AxisPadding], value: f32) -> Result<Tensor> {
        Ok(self.add(Pad { axes: axes.to_vec(), value }, &[x])?[0])
    }
}

params! {
    struct PadParams { axes: [[u32; 4]; 6], count: u32, axis_count: u32, fill: u32 }
}

impl Op for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("pad", message));
        let [x] = inputs else { return fail(format!("takes one tensor, got {}", inputs.len())) };
        if x.rank() > MAX_RANK || x.dtype == Dtype::F64 {
            return fail(format!("takes a tensor of rank up to {MAX_RANK} of any dtype but f64, got {x}"));
        }
        if self.axes.len() != x.rank() {
            return fail(format!("{} paddings for the {} axes of {x}", self.axes.len(), x.rank()));
        }
        let held = self.filling(x.dtype).to_f64()[0];
        let float = matches!(x.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        if !float && held != f64::from(self.value) {
            return Err(Error::option("pad", format!("the value is {}, which no {} is", self.value, x.dtype)));
        }
        let sizes = x.shape.iter().zip(&self.axes).map(|(&size, padding)| {
            let longer = size.checked_add(padding.before).and_then(|size| size.checked_add(padding.after));
            longer.ok_or_else(|| Error::shape("pad", format!("{padding:?} is too much for an axis of {x}")))
        });
        Ok(vec![TensorDesc::new(x.dtype, sizes.collect::<Result<Vec<_>>>()?)])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let (data, shape) = (inputs[0].to_f64(), inputs[0].shape());
        let sizes = shape.iter().zip(&self.axes).map(|(size, padding)| padding.before + size + padding.after);
        let output: Vec<usize> = sizes.collect();
        // As the tensor can hold it.
        let value = HostTensor::f64(&[], vec![f64::from(self.value)]).expect("one value");
        let value = value.cast(inputs[0].desc().dtype).to_f64()[0];
        let result = rows.compute(&output, |row, out| {
            let length = out.len();
            for (column, out) in out.iter_mut().enumerate() {
                let mut rest = row * length + column;
                let mut offset = Some(0);
                let mut stride = 1;
                for axis in (0..shape.len()).rev() {
                    let at = rest % output[axis];
                    rest /= output[axis];
                    let before = self.axes[axis].before;
                    let inside = at >= before && at < before + shape[axis];
                    offset = offset.filter(|_| inside).map(|offset| offset + (at - before) * stride);
                    stride *= shape[axis];
                }
                *out = offset.map_or(value, |offset| data[offset]);
            }
        });
        vec![result]
    }

    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(0, inputs, &self.outputs(inputs).unwrap_or_default())
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

impl Pad {
    /// The value as one element.
    fn filling(&self, dtype: Dtype) -> HostTensor {
        HostTensor::f32(&[], vec![self.value]).expect("rank 0 has one element").cast(dtype)
    }

    fn native(&self, x: &TensorDesc) -> Vec<Technique> {
        let axes = x.shape.iter().zip(&self.axes);
        let axes: Vec<PaddedAxis> =
            axes.map(|(&size, &AxisPadding { before, after })| PaddedAxis { size, before, after }).collect();
        let fill = self.filling(x.dtype);
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            gather::pad(&axes, fill.bytes(), inputs[0].bytes, outputs[0].bytes);
        };
        vec![Technique::Cpu(CpuKernel { name: "pad_native", run: Arc::new(run) })]
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
        let filling = self.filling(x.dtype);
        let mut fill = [0; 4];
        fill[..filling.bytes().len()].copy_from_slice(filling.bytes());
        let mut params =
            PadParams { axes: [[0; 4]; 6], count: 0, axis_count: index(x.rank()), fill: u32::from_le_bytes(fill) };
        let (mut stride, mut count) = (1, 1);
        for (to, (&size, padding)) in params.axes.iter_mut().zip(x.shape.iter().zip(&self.axes).rev()) {
            let whole = padding.before + size + padding.after;
            *to = [index(whole), index(padding.before), index(size), index(stride)];
            stride *= size;
            count *= whole;
        }
        params.count = index(count);
        let workgroups = fold(count.div_ceil(per_word).div_ceil(256), capabilities);
        Some(Launch { shader, params: params.into(), workgroups, bindings: Bindings::in_order(1, 1) })
    }
}

/// Each side alone, all axes up to rank 6, nothing, around nothing; elements of 4, 2 and 1 bytes whose number is no
/// multiple of a word's; sizes around the 256 lanes; more than 65,535 workgroups.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::Bool, Dtype::U32, Dtype::I8] {
        // 0.1 is rounded, and differently by each float.
        let value = if matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) { 0.1 } else { 1.0 };
        let mut add = |shape: &[usize], axes: &[(usize, usize)]| cases.push(case(dtype, shape, axes, value));
        add(&[], &[]);
        add(&[7], &[(0, 0)]);
        for length in [255, 256, 257, 1023, 1025] {
            add(&[length - 3], &[(1, 2)]);
        }
        add(&[5, 13], &[(3, 0), (0, 0)]);
        add(&[5, 13], &[(0, 2), (0, 0)]);
        add(&[5, 13], &[(0, 0), (1, 0)]);
        add(&[5, 13], &[(0, 0), (0, 5)]);
        add(&[5, 13], &[(2, 1), (3, 4)]);
        add(&[0, 3], &[(1, 1), (0, 2)]);
        add(&[0, 3], &[(0, 0), (1, 1)]);
        add(&[2, 3, 1, 2, 5, 3], &[(1, 0), (0, 1), (2, 2), (0, 0), (1, 1), (0, 3)]);
    }
    cases.push(case(Dtype::F32, &[5, 7], &[(0, 0), (1, 1)], f32::NEG_INFINITY));
    cases.push(case(Dtype::F32, &[4098, 4199], &[(1, 1), (0, 1)], -1.0));
    cases
}

fn case(dtype: Dtype, shape: &[usize], axes: &[(usize, usize)], value: f32) -> Case {
    let deviation = if shape.len() == 2 { 100.0 } else { 1.0 };
    let name = format!("{dtype} {shape:?} by {axes:?} with {value}");
    let axes = axes.iter().map(|&(before, after)| AxisPadding { before, after }).collect();
    // The value is rounded to storage once, by the same rule on both sides.
    Case::new(name, Pad { axes, value }, vec![drawn(dtype, shape, deviation)], Tolerance::of_scale(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pad(axes: &[(usize, usize)], value: f32) -> Pad {
        Pad { axes: axes.iter().map(|&(before, after)| AxisPadding { before, after }).collect(), value }
    }

    #[test]
    fn reference_by_hand() {
        let x = HostTensor::f32(&[1, 2], vec![1.0, 2.0]).unwrap();
        let y = pad(&[(0, 1), (1, 0)], 7.0).reference(&[&x], Rows::All).remove(0);
        assert_eq!((y.shape(), y.as_f64().unwrap()), (&[2, 3][..], &[7.0, 1.0, 2.0, 7.0, 7.0, 7.0][..]));
    }

    #[test]
    fn refusals_name_both_sides() {
        let refusal = |pad: Pad, x: TensorDesc| pad.outputs(&[x]).unwrap_err().to_string();
        let x = TensorDesc::new(Dtype::F32, [2, 3]);
        assert_eq!(refusal(pad(&[(0, 0)], 0.0), x.clone()), "pad: 1 paddings for the 2 axes of f32 [2, 3]");
        let error = refusal(pad(&[(0, 0), (1, usize::MAX)], 0.0), x);
        assert!(error.contains("is too much for an axis of f32 [2, 3]"), "{error}");
        let mask = TensorDesc::new(Dtype::Bool, [2]);
        assert_eq!(refusal(pad(&[(1, 1)], 0.5), mask), "pad: the value is 0.5, which no bool is");
        assert!(pad(&[(1, 1)], f32::NEG_INFINITY).outputs(&[TensorDesc::new(Dtype::F16, [2])]).is_ok());
    }
}
