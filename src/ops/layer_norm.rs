//! `layer_norm`: rows with mean zero and variance one, scaled and shifted (Ba et al., arXiv:1607.06450).
//!
//! Techniques: `layer_norm_held` (rows up to 8,192 elements or more in registers, see `held_rows.rs`), `layer_norm_row`
//! (one workgroup per row of any length, three walks), `layer_norm_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::layer_norm::{LayerNormArgs, layer_norm};
use crate::cpu::kernels::scratch::{Arena, with_scratch};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::held_rows::{EDGES, Held, HeldRows};
use crate::ops::{EPSILON_F16, EPSILON_F32, REDUCE_WORKGROUP, row_rounds};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const HELD: Source = wgsl!("layer_norm_held");
const ROW: Source = wgsl!("layer_norm_row");
const BIAS_NONE: Source = wgsl!("lib/column_bias_none");
const BIAS_DENSE: Source = wgsl!("lib/column_bias_dense");
const STATISTICS_NONE: Source = wgsl!("lib/statistics_none");
const STATISTICS_EACH: Source = wgsl!("lib/statistics_each");

// Bindings of what is optional, as in these files.
const BIAS_BINDING: u32 = 10;
const STATISTICS_BINDINGS: [u32; 2] = [11, 12];

/// `(x − mean) / √(variance + epsilon) · scale + bias`; mean and variance are those of a row, which is what the axes of `x`
/// from `axis` on hold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerNorm {
    /// The first axis of a row.
    pub axis: usize,
    /// Is added to the variance. Finite, not negative.
    pub epsilon: f32,
    /// Whether mean and inverse deviation are outputs too.
    pub statistics: Statistics,
}

/// Whether a normalisation returns what it divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Statistics {
    /// The result only.
    #[default]
    Omit,
    /// Then the rows' means and `1 / √(variance + epsilon)`, f32, with size 1 along the axes of a row.
    Return,
}

impl Graph {
    /// Adds [`LayerNorm`]: `x` into the same shape and dtype, and after it the statistics that were asked for.
    ///
    /// `scale` and `bias` have the shape of the last axes of `x`, as many as they like. All are f32 or f16, each for itself.
    ///
    /// # Errors
    /// An axis that `x` lacks, rows without elements, a scale or bias of another shape, an epsilon that means nothing.
    pub fn layer_norm(&mut self, x: Tensor, scale: Tensor, bias: Option<Tensor>, op: LayerNorm) -> Result<Vec<Tensor>> {
        let inputs: Vec<Tensor> = [x, scale].into_iter().chain(bias).collect();
        self.add(op, &inputs)
    }
}

params! {
    struct LayerNormParams { rows: u32, length: u32, scale_length: u32, bias_length: u32, epsilon: f32 }
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("layer_norm", message));
        let ([x, factors @ ..], 2..=3) = (inputs, inputs.len()) else {
            return fail(format!("takes x, scale and a bias, got {} tensors", inputs.len()));
        };
        if let Some(desc) = inputs.iter().find(|desc| !desc.dtype.is_device_float()) {
            return fail(format!("takes f32 or f16, got {desc}"));
        }
        if self.axis >= x.rank() || x.shape[self.axis..].contains(&0) {
            return fail(format!("a row from axis {} on has no elements in {x}", self.axis));
        }
        if let Some((factor, role)) = factors.iter().zip(["scale", "bias"]).find(|(f, _)| !x.shape.ends_with(&f.shape))
        {
            return fail(format!("{role} is {factor}, which is not the end of {x}"));
        }
        if !(self.epsilon.is_finite() && self.epsilon >= 0.0) {
            let message = format!("epsilon is {}, it must be finite and not negative", self.epsilon);
            return Err(Error::option("layer_norm", message));
        }
        let mut row = x.shape.clone();
        row[self.axis..].fill(1);
        let statistic = TensorDesc::new(Dtype::F32, row);
        Ok(match self.statistics {
            Statistics::Omit => vec![x.clone()],
            Statistics::Return => vec![x.clone(), statistic.clone(), statistic],
        })
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let (shape, x, scale) = (inputs[0].shape(), inputs[0].to_f64(), inputs[1].to_f64());
        let bias = inputs.get(2).map(|bias| bias.to_f64());
        let length: usize = shape[self.axis..].iter().product();
        let statistics = |row: usize| {
            let x = &x[row * length..(row + 1) * length];
            let mean = x.iter().sum::<f64>() / length as f64;
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / length as f64;
            (mean, 1.0 / (variance + f64::from(self.epsilon)).sqrt())
        };
        let y = rows.compute(shape, |last, out| {
            let first = last * out.len();
            let (mean, inverse) = statistics(first / length);
            for (at, out) in (first..).zip(out) {
                let shift = bias.as_ref().map_or(0.0, |bias| bias[at % bias.len()]);
                *out = (x[at] - mean) * inverse * scale[at % scale.len()] + shift;
            }
        });
        if self.statistics == Statistics::Omit {
            return vec![y];
        }
        let mut short = shape.to_vec();
        short[self.axis..].fill(1);
        // Rows of these are whatever their last axis is, so an element's row is counted from the start.
        let each = |pick: fn((f64, f64)) -> f64| {
            rows.compute(&short, |last, out| {
                let first = last * out.len();
                (first..).zip(out).for_each(|(row, out)| *out = pick(statistics(row)));
            })
        };
        vec![y, each(|(mean, _)| mean), each(|(_, inverse)| inverse)]
    }

    /// Eight operations for each element: sum, difference, square and sum, difference, three for the result.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(8 * inputs[0].len() as u64, inputs, &self.outputs(inputs).unwrap_or_default())
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
            Backend::Gpu => {
                let launches = [self.held(inputs, capabilities), self.row(inputs, capabilities)];
                launches.into_iter().flatten().map(Technique::Gpu).collect()
            }
        }
    }
}

impl LayerNorm {
    fn length(&self, x: &TensorDesc) -> usize {
        x.shape[self.axis..].iter().product()
    }

    fn native(&self, x: &TensorDesc) -> Vec<Technique> {
        let (length, epsilon) = (self.length(x), self.epsilon);
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let (x, scale) = (Elements::of(&inputs[0]), Elements::of(&inputs[1]));
            let args = LayerNormArgs { x, length, scale, bias: inputs.get(2).map(Elements::of), epsilon };
            let (y, statistics) = outputs.split_first_mut().expect("there is a result");
            let count = x.len().checked_div(length).unwrap_or(0);
            with_scratch(|lines| {
                let rows: &mut [[f32; 2]] = Arena::new(lines, 8 * count, 1).take(count);
                layer_norm(&args, ElementsMut::of(y), rows);
                for (which, output) in statistics.iter_mut().enumerate() {
                    let mut column = ElementsMut::of(output);
                    rows.iter().enumerate().for_each(|(row, of_row)| column.write(row, &of_row[which..=which]));
                }
            });
        };
        vec![Technique::Cpu(CpuKernel { name: "layer_norm_native", run: Arc::new(run) })]
    }

    fn held(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let row = self.row(inputs, capabilities)?;
        let length = self.length(&inputs[0]);
        let held = HeldRows::new(inputs[0].len() / length, length, capabilities)?;
        let Shader { mut libraries, mut constants, .. } = row.shader;
        libraries.retain(|&library| library != REDUCE_WORKGROUP);
        constants.retain(|(name, _)| *name != "LANES");
        let whole = inputs[1..].iter().all(|factor| factor.len() == length);
        constants.push(("WHOLE", Constant::Bool(whole)));
        let shader = held.shader(HELD, Held::Changed, libraries, constants);
        Some(Launch { shader, workgroups: held.workgroups(capabilities), ..row })
    }

    fn row(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let (x, scale, bias) = (&inputs[0], &inputs[1], inputs.get(2));
        let length = self.length(x);
        let mut constants = vec![
            ("LANES", Constant::U32(if length <= 256 { 64 } else { 256 })),
            ("Elem", Constant::Scalar(x.dtype)),
            ("ScaleElem", Constant::Scalar(scale.dtype)),
        ];
        let mut libraries = vec![REDUCE_WORKGROUP, BIAS_NONE, STATISTICS_NONE];
        let mut bindings = Bindings::in_order(2, 1);
        if let Some(bias) = bias {
            libraries[1] = BIAS_DENSE;
            constants.push(("ColumnElem", Constant::Scalar(bias.dtype)));
            bindings.inputs.push(BIAS_BINDING);
        }
        if self.statistics == Statistics::Return {
            libraries[2] = STATISTICS_EACH;
            bindings.outputs.extend(STATISTICS_BINDINGS);
        }
        let shader = Shader { main: ROW, libraries, constants };
        if (shader.needs_f16() && !capabilities.f16) || !capabilities.completes(row_rounds(length)) {
            return None;
        }
        let rows = x.len() / length;
        let params = LayerNormParams {
            rows: index(rows),
            length: index(length),
            scale_length: index(scale.len()),
            bias_length: index(bias.map_or(1, TensorDesc::len)),
            epsilon: self.epsilon,
        };
        Some(Launch { shader, params: params.into(), workgroups: fold(rows, capabilities), bindings })
    }
}

/// Row lengths around what teams of 1 to 512 lanes hold and what they load, up to over 16,000, rows of several axes,
/// factors shorter and longer than a row, with and without bias and statistics, no rows at all, more than 65,535 rows.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for length in EDGES {
            cases.push(case(dtype, &[3, length], [1, 1, 1], 1.0));
        }
        // Rows of several teams, the last workgroup not full.
        for (rows, length) in [(67, 3), (67, 4), (19, 33), (19, 64), (9, 250), (5, 500)] {
            cases.push(case(dtype, &[rows, length], [1, 1, 1], 1.0));
        }
        cases.push(case(dtype, &[2, 3, 4, 6], [2, 3, 0], 1.0));
        for axis in 0..4 {
            cases.push(case(dtype, &[2, 3, 4, 5], [axis, axis, axis], 30.0));
        }
        cases.push(case(dtype, &[2, 3, 4, 5], [2, 3, 0], 1.0));
        cases.push(case(dtype, &[2, 3, 4, 5], [2, 4, 1], 1e-3));
        cases.push(case(dtype, &[0, 5], [1, 1, 1], 1.0));
    }
    cases.push(case(Dtype::F32, &[66_000, 3], [1, 1, 1], 1.0));
    cases
}

/// The axes from which rows, scale and bias go on. Odd ones have no bias; rows of the first axes have statistics.
fn case(dtype: Dtype, shape: &[usize], [axis, scale, bias]: [usize; 3], deviation: f32) -> Case {
    let mut inputs = vec![CaseInput::normal(dtype, shape, deviation), CaseInput::normal(dtype, &shape[scale..], 1.0)];
    if bias % 2 == 0 || shape.len() == 2 {
        inputs.push(CaseInput::normal(Dtype::F32, &shape[bias..], 1.0));
    }
    let statistics = if axis < 3 { Statistics::Return } else { Statistics::Omit };
    let length: usize = shape[axis..].iter().product();
    // Sums of `length` terms take about √length roundings that add up, and a few more follow; a mean has the error of its terms.
    let storage = if dtype == Dtype::F16 { EPSILON_F16 } else { 0.0 };
    let of_scale = (16.0 + (length as f64).sqrt()) * EPSILON_F32 + storage;
    let tolerance = Tolerance { of_scale, relative: 0.0, absolute: 4.0 * EPSILON_F32 * f64::from(deviation) };
    let name = format!("{dtype} {shape:?} of {deviation}, rows from {axis}, scale from {scale}, bias from {bias}");
    Case::new(name, LayerNorm { axis, epsilon: 1e-5, statistics }, inputs, tolerance)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: LayerNorm = LayerNorm { axis: 1, epsilon: 0.0, statistics: Statistics::Return };

    #[test]
    fn reference_by_hand() {
        let x = HostTensor::f32(&[2, 2, 1], vec![1.0, 3.0, -5.0, 5.0]).unwrap();
        let scale = HostTensor::f32(&[2, 1], vec![2.0, 3.0]).unwrap();
        let bias = HostTensor::f32(&[1], vec![10.0]).unwrap();
        let [y, mean, inverse] = PLAIN.reference(&[&x, &scale, &bias], Rows::All).try_into().unwrap();
        assert_eq!(y.as_f64().unwrap(), [8.0, 13.0, 8.0, 13.0]);
        assert_eq!((mean.shape(), mean.as_f64().unwrap()), (&[2, 1, 1][..], &[2.0, 0.0][..]));
        assert_eq!(inverse.as_f64().unwrap(), [1.0, 0.2]);
        let constant = HostTensor::f32(&[1, 2], vec![7.0, 7.0]).unwrap();
        let op = LayerNorm { epsilon: 0.25, ..PLAIN };
        assert_eq!(op.reference(&[&constant, &bias], Rows::All)[2].as_f64().unwrap(), [2.0]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let desc = |shape: &[usize]| TensorDesc::new(Dtype::F32, shape);
        let refused = |inputs: &[TensorDesc], op: LayerNorm, part: &str| {
            let error = op.outputs(inputs).unwrap_err().to_string();
            assert!(error.starts_with("layer_norm: ") && error.contains(part), "{error}");
        };
        refused(&[desc(&[2])], PLAIN, "got 1 tensors");
        refused(&[desc(&[2]), desc(&[2])], PLAIN, "axis 1 on has no elements in f32 [2]");
        refused(&[desc(&[2, 0]), desc(&[0])], PLAIN, "has no elements");
        refused(&[desc(&[2, 3]), desc(&[2])], PLAIN, "scale is f32 [2], which is not the end of f32 [2, 3]");
        refused(&[desc(&[2, 3]), desc(&[3]), desc(&[2, 1])], PLAIN, "bias is f32 [2, 1]");
        refused(&[desc(&[2, 3]), TensorDesc::new(Dtype::Bool, [3])], PLAIN, "bool [3]");
        refused(&[desc(&[2, 3]), desc(&[3])], LayerNorm { epsilon: f32::NAN, ..PLAIN }, "epsilon is NaN");
        refused(&[desc(&[2, 3]), desc(&[3])], LayerNorm { epsilon: -1.0, ..PLAIN }, "epsilon is -1");
    }
}
