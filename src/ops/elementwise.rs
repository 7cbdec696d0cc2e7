//! `elementwise`: a chain of element-wise steps over tensors that broadcast to one shape, in one dispatch.
//!
//! Techniques: `elementwise_each` (four elements per lane, a loop over the steps), `elementwise_native`.

mod cases;
mod definition;
mod steps;

pub(super) use cases::cases;
pub(super) use definition::value;
pub(super) use steps::encode;
pub use steps::{Binary, Operand, Step, Unary};

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::cpu::kernels::args::ElementsMut;
use crate::cpu::kernels::axes::{Axis, TENSORS, merged};
use crate::cpu::kernels::elementwise as kernel;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("elementwise_each");
pub(super) const FUNCTIONS: Source = wgsl!("lib/functions");
const CHAIN: Source = wgsl!("lib/chain");
const OPERANDS: [Source; MAX_INPUTS] =
    [wgsl!("lib/operands_1"), wgsl!("lib/operands_2"), wgsl!("lib/operands_3"), wgsl!("lib/operands_4")];
const PER_WORD: [&str; MAX_INPUTS] = ["PER_WORD_0", "PER_WORD_1", "PER_WORD_2", "PER_WORD_3"];

/// Most steps of a chain.
const MAX_STEPS: usize = 8;
/// Most inputs of a chain.
const MAX_INPUTS: usize = TENSORS;
/// Most axes of a tensor.
const MAX_RANK: usize = 6;
/// Elements of a workgroup: 64 lanes, four each.
const PER_WORKGROUP: usize = 256;

/// Steps applied to each element, the value starting as input 0.
///
/// Inputs broadcast to one shape as in numpy; their rank is at most 6. Floats are all f32 or all f16, and so is the
/// output; bool counts as 0 and 1. Steps compute in f32 and only the last result is rounded to storage.
#[derive(Debug, Clone, PartialEq)]
pub struct Elementwise {
    /// At most 8; none copies input 0 to the shape of the output.
    pub steps: Vec<Step>,
}

impl Graph {
    /// Adds an [`Elementwise`] of one step: `f(x)`, in the shape and dtype of `x`.
    ///
    /// # Errors
    /// A dtype other than f32 or f16, rank above 6, a parameter that is not finite.
    pub fn unary(&mut self, x: Tensor, f: Unary) -> Result<Tensor> {
        self.elementwise(&[x], &[Step::Unary(f)])
    }

    /// Adds an [`Elementwise`] of one step: `f(a, b)`, in the shape that both broadcast to.
    ///
    /// # Errors
    /// Shapes that do not broadcast, two float dtypes or none, rank above 6.
    pub fn binary(&mut self, a: Tensor, b: Tensor, f: Binary) -> Result<Tensor> {
        self.elementwise(&[a, b], &[Step::Binary(f, Operand::Input(1))])
    }

    /// Adds an [`Elementwise`]: 1 to 4 inputs, of which the first is the value that up to 8 steps change.
    ///
    /// # Errors
    /// Shapes that do not broadcast, two float dtypes or none, rank above 6, too many inputs or steps, a step that
    /// names an input that is not there or has a parameter that means nothing.
    pub fn elementwise(&mut self, inputs: &[Tensor], steps: &[Step]) -> Result<Tensor> {
        Ok(self.add(Elementwise { steps: steps.to_vec() }, inputs)?[0])
    }
}

params! {
    struct ElementwiseParams {
        steps: [[u32; 4]; 8], strides: [[u32; 4]; 6], sizes: [[u32; 4]; 2],
        count: u32, axes: u32, step_count: u32,
    }
}

impl Op for Elementwise {
    fn name(&self) -> &'static str {
        "elementwise"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("elementwise", message));
        if !(1..=MAX_INPUTS).contains(&inputs.len()) {
            return fail(format!("takes 1 to {MAX_INPUTS} tensors, got {}", inputs.len()));
        }
        if let Some(input) = inputs.iter().find(|input| input.rank() > MAX_RANK) {
            return fail(format!("takes tensors of rank up to {MAX_RANK}, got {input}"));
        }
        let dtype = common_dtype(inputs)?;
        let shape = inputs.iter().try_fold(Vec::new(), |shape, input| broadcast(&shape, input))?;
        if self.steps.len() > MAX_STEPS {
            return Err(Error::option("elementwise", format!("{} steps, at most {MAX_STEPS}", self.steps.len())));
        }
        self.steps.iter().enumerate().try_for_each(|(number, step)| step.check(number, inputs.len()))?;
        Ok(vec![TensorDesc::new(dtype, shape)])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let data: Vec<Vec<f64>> = inputs.iter().map(|input| input.to_f64()).collect();
        let rank = inputs.iter().map(|input| input.shape().len()).max().unwrap_or(0);
        // Every shape with leading ones.
        let padded = |input: &&HostTensor| [vec![1; rank - input.shape().len()], input.shape().to_vec()].concat();
        let shapes: Vec<Vec<usize>> = inputs.iter().map(padded).collect();
        let size = |axis: usize| shapes.iter().map(|shape| shape[axis]).find(|&size| size != 1).unwrap_or(1);
        let shape: Vec<usize> = (0..rank).map(size).collect();
        let result = rows.compute(&shape, |row, out| {
            for (column, y) in out.iter_mut().enumerate() {
                let mut at = vec![0; rank];
                let mut rest = row * shape.last().unwrap_or(&1) + column;
                for axis in (0..rank).rev() {
                    at[axis] = rest % shape[axis];
                    rest /= shape[axis];
                }
                let element = |(shape, data): (&Vec<usize>, &Vec<f64>)| {
                    let position = at.iter().zip(shape).map(|(&at, &size)| if size == 1 { 0 } else { at });
                    data[position.zip(shape).fold(0, |offset, (at, size)| offset * size + at)]
                };
                let elements: Vec<f64> = shapes.iter().zip(&data).map(element).collect();
                *y = value(&self.steps, &elements);
            }
        });
        vec![result]
    }

    /// One operation for each step and element.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let output = self.outputs(inputs).unwrap_or_default();
        let elements: usize = output.iter().map(TensorDesc::len).sum();
        Cost::once((self.steps.len() * elements) as u64, inputs, &output)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, _: &[TensorDesc], _: &[Option<&HostTensor>]) -> Result<()> {
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let Ok(outputs) = self.outputs(inputs) else { return Vec::new() };
        match capabilities.backend {
            Backend::Cpu => self.native(inputs, &outputs[0]),
            Backend::Gpu => self.each(inputs, &outputs[0], capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl Elementwise {
    fn native(&self, inputs: &[TensorDesc], output: &TensorDesc) -> Vec<Technique> {
        let axes = merged(&axes(inputs, output));
        let steps: Vec<_> = self.steps.iter().map(Step::lower).collect();
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            kernel::elementwise(&axes, &steps, inputs, ElementsMut::of(&mut outputs[0]));
        };
        vec![Technique::Cpu(CpuKernel { name: "elementwise_native", run: Arc::new(run) })]
    }

    fn each(&self, inputs: &[TensorDesc], output: &TensorDesc, capabilities: &Capabilities) -> Option<Launch> {
        if output.dtype == Dtype::F16 && !capabilities.f16 {
            return None;
        }
        let per_word = inputs.iter().map(|input| Constant::U32(index(4 / input.dtype.size())));
        let mut constants: Vec<_> = PER_WORD.into_iter().zip(per_word).collect();
        constants.push(("Elem", Constant::Scalar(output.dtype)));
        let operands = OPERANDS[inputs.len() - 1];
        let shader = Shader { main: EACH, libraries: vec![FUNCTIONS, CHAIN, operands], constants };
        let axes = merged(&axes(inputs, output));
        let mut params = ElementwiseParams {
            steps: [[0; 4]; 8],
            strides: [[0; 4]; 6],
            sizes: [[0; 4]; 2],
            count: index(output.len()),
            axes: index(axes.len()),
            step_count: index(self.steps.len()),
        };
        params.steps.iter_mut().zip(&self.steps).for_each(|(to, step)| *to = encode(&step.lower()));
        for (number, axis) in axes.iter().rev().enumerate() {
            params.sizes[number / 4][number % 4] = index(axis.size);
            params.strides[number] = axis.strides.map(|stride| index(stride as usize));
        }
        let workgroups = fold(output.len().div_ceil(PER_WORKGROUP), capabilities);
        let bindings = Bindings { inputs: (1..=index(inputs.len())).collect(), outputs: vec![5] };
        Some(Launch { shader, params: params.into(), workgroups, bindings })
    }
}

/// The one float dtype among the inputs.
fn common_dtype(inputs: &[TensorDesc]) -> Result<Dtype> {
    let fail = |message: String| Err(Error::shape("elementwise", message));
    if let Some(input) = inputs.iter().find(|input| !input.dtype.is_device_float() && input.dtype != Dtype::Bool) {
        return fail(format!("takes f32, f16 and bool, got {input}"));
    }
    let mut floats = inputs.iter().filter(|input| input.dtype != Dtype::Bool);
    let Some(first) = floats.next() else {
        return fail(format!("one tensor at least is f32 or f16, got {} and no other dtype", inputs[0]));
    };
    match floats.find(|other| other.dtype != first.dtype) {
        Some(other) => fail(format!("takes floats of one dtype, got {first} and {other}")),
        None => Ok(first.dtype),
    }
}

/// The shape that `shape` and the input's broadcast to: aligned at the last axis, equal sizes, or one of them 1.
fn broadcast(shape: &[usize], input: &TensorDesc) -> Result<Vec<usize>> {
    let rank = shape.len().max(input.rank());
    let size = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis]);
    let joined = (0..rank).map(|axis| match (size(shape, axis), size(&input.shape, axis)) {
        (a, b) if a == b || b == 1 => Ok(a),
        (1, b) => Ok(b),
        _ => Err(Error::shape("elementwise", format!("{input} does not broadcast with {shape:?}"))),
    });
    joined.collect()
}

/// The output's axes with each input's strides, 0 where it broadcasts.
fn axes(inputs: &[TensorDesc], output: &TensorDesc) -> Vec<Axis> {
    let mut axes: Vec<Axis> = output.shape.iter().map(|&size| Axis { size, strides: [0; TENSORS] }).collect();
    for (number, input) in inputs.iter().enumerate() {
        let mut stride = 1;
        for (&size, axis) in input.shape.iter().zip(&mut axes[output.rank() - input.rank()..]).rev() {
            axis.strides[number] = if size == 1 { 0 } else { stride };
            stride *= size as isize;
        }
    }
    axes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(shape: &[usize]) -> TensorDesc {
        TensorDesc::new(Dtype::F32, shape)
    }

    fn refusal(steps: &[Step], inputs: &[TensorDesc]) -> String {
        Elementwise { steps: steps.to_vec() }.outputs(inputs).unwrap_err().to_string()
    }

    #[test]
    fn shapes_broadcast_as_in_numpy() {
        let shape = |a: &[usize], b: &[usize]| {
            Elementwise { steps: Vec::new() }.outputs(&[f32s(a), f32s(b)]).map(|outputs| outputs[0].shape.clone())
        };
        assert_eq!(shape(&[8, 1, 6, 1], &[7, 1, 5]).unwrap(), [8, 7, 6, 5]);
        assert_eq!(shape(&[], &[3]).unwrap(), [3]);
        assert_eq!(shape(&[], &[]).unwrap(), [0; 0]);
        assert_eq!(shape(&[3, 1], &[0]).unwrap(), [3, 0]);
        assert!(shape(&[2], &[0]).is_err() && shape(&[2, 3], &[2]).is_err());
    }

    #[test]
    fn refusals_name_both_sides() {
        let x = f32s(&[2, 3]);
        let add = |input| Step::Binary(Binary::Add, Operand::Input(input));
        let clamp = Step::Unary(Unary::Clamp { min: 2.0, max: 1.0 });
        let cases = [
            (refusal(&[add(1)], &[x.clone(), f32s(&[4])]), "elementwise: f32 [4] does not broadcast with [2, 3]"),
            (
                refusal(&[add(1)], std::slice::from_ref(&x)),
                "elementwise: step 0: the operand is input 1, there are 1 inputs",
            ),
            (refusal(&[], &vec![x.clone(); 5]), "elementwise: takes 1 to 4 tensors, got 5"),
            (refusal(&[add(0); 9], std::slice::from_ref(&x)), "elementwise: 9 steps, at most 8"),
            (
                refusal(&[add(0), clamp], std::slice::from_ref(&x)),
                "elementwise: step 1: min is 2 and max is 1, min must not be above max",
            ),
            (
                refusal(&[Step::Unary(Unary::Elu { alpha: f32::NAN })], std::slice::from_ref(&x)),
                "elementwise: step 0: alpha is NaN, it must be finite",
            ),
            (
                refusal(&[Step::Reversed(Binary::Div, Operand::Scalar(f32::NAN))], std::slice::from_ref(&x)),
                "elementwise: step 0: the scalar is NaN",
            ),
            (
                refusal(&[add(1)], &[x.clone(), TensorDesc::new(Dtype::F16, [3])]),
                "elementwise: takes floats of one dtype, got f32 [2, 3] and f16 [3]",
            ),
            (refusal(&[], &[TensorDesc::new(Dtype::U32, [3])]), "elementwise: takes f32, f16 and bool, got u32 [3]"),
            (
                refusal(&[], &[TensorDesc::new(Dtype::Bool, [3])]),
                "elementwise: one tensor at least is f32 or f16, got bool [3] and no other dtype",
            ),
            (
                refusal(&[], &[f32s(&[1; 7])]),
                "elementwise: takes tensors of rank up to 6, got f32 [1, 1, 1, 1, 1, 1, 1]",
            ),
        ];
        for (got, wanted) in cases {
            assert_eq!(got, wanted);
        }
    }

    #[test]
    fn reference_by_hand() {
        let a = HostTensor::f32(&[2, 1], vec![1.0, 2.0]).unwrap();
        let b = HostTensor::bool(&[3], vec![true, false, true]).unwrap();
        let steps =
            vec![Step::Binary(Binary::Mul, Operand::Input(1)), Step::Reversed(Binary::Sub, Operand::Scalar(5.0))];
        let y = Elementwise { steps }.reference(&[&a, &b], Rows::All).remove(0);
        assert_eq!((y.shape(), y.as_f64().unwrap()), (&[2, 3][..], &[4.0, 5.0, 4.0, 3.0, 5.0, 3.0][..]));
    }
}
