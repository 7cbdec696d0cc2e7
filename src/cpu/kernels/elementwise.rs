//! A chain of element-wise steps over tensors that broadcast to one shape.
//!
//! The output is cut into chunks that stay in the first-level cache; each chunk goes through all steps before the next
//! starts, so that intermediate values never leave the cache. Each step is one vectorised loop over the chunk.

mod functions;

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use smallvec::SmallVec;

use super::args::{Elements, ElementsMut};
use super::axes::{Axis, TENSORS, runs};
use super::scratch::{Arena, with_scratch};
use crate::tensor::{Dtype, View};

/// Elements of a chunk: the value and an operand fill half of a first-level cache.
const CHUNK: usize = 2048;

/// Chunks worth a task of their own.
const MIN_CHUNKS: usize = 4;

/// A function of the value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Function {
    /// Negative values times this.
    LeakyRelu(f32),
    /// Negative values become `(eˣ − 1)` times this.
    Elu(f32),
    /// Exact.
    Gelu,
    /// With a tangent for the normal distribution.
    GeluTanh,
    /// `x · sigmoid(beta · x)`.
    Swish(f32),
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e^−x)`.
    Sigmoid,
    /// `alpha · x + beta` within 0 and 1.
    HardSigmoid(f32, f32),
    /// `eˣ`.
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// One over the square root.
    Rsqrt,
    /// Magnitude.
    Abs,
    /// Error function.
    Erf,
    /// `ln(1 + eˣ)`.
    Softplus,
    /// Within these two.
    Clamp(f32, f32),
}

/// A function of the value and an operand, in this order; the reversed ones take the operand first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    Add,
    Sub,
    ReversedSub,
    Mul,
    Div,
    ReversedDiv,
    Min,
    Max,
    Pow,
    ReversedPow,
}

/// What a step takes beside the value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// The element of this input.
    Input(usize),
    /// A number.
    Scalar(f32),
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    /// The value alone.
    Map(Function),
    /// The value and an operand.
    With(Combine, Argument),
}

/// An input: numbers, or bytes that are 0 or 1.
#[derive(Debug, Clone, Copy)]
enum Input<'a> {
    Floats(Elements<'a>),
    Bools(&'a [u8]),
}

/// Computes the chain: the value starts as input 0. `axes` are the output's, merged, whose tensors are the inputs.
pub fn elementwise(axes: &[Axis], steps: &[Step], inputs: &[View<'_>], out: ElementsMut) {
    let inputs = inputs.iter().map(|input| match input.desc.dtype {
        Dtype::Bool => Input::Bools(input.bytes),
        _ => Input::Floats(Elements::of(input)),
    });
    let inputs: SmallVec<[Input; TENSORS]> = inputs.collect();
    let chain = Chain { axes, steps, inputs: &inputs };
    match out {
        ElementsMut::F32(out) => out.par_chunks_mut(CHUNK).with_min_len(MIN_CHUNKS).enumerate().for_each(|(i, out)| {
            with_scratch(|lines| chain.run(i * CHUNK, out, Arena::new(lines, 4 * CHUNK, 1).take(CHUNK)));
        }),
        ElementsMut::F16(out) => out
            .par_chunks_mut(CHUNK)
            .with_min_len(MIN_CHUNKS)
            .enumerate()
            .for_each(|(i, out)| chain.converted(i * CHUNK, ElementsMut::F16(out))),
        ElementsMut::BF16(out) => out
            .par_chunks_mut(CHUNK)
            .with_min_len(MIN_CHUNKS)
            .enumerate()
            .for_each(|(i, out)| chain.converted(i * CHUNK, ElementsMut::BF16(out))),
    }
}

/// Changes values by steps whose operands are scalars, or the elements of `other` from `first` on.
pub fn in_place(steps: &[Step], value: &mut [f32], other: Option<Elements>, first: usize, parallel: bool) {
    if steps.is_empty() {
        return;
    }
    let chunk = |(index, value): (usize, &mut [f32])| {
        let first = first + index * CHUNK;
        with_scratch(|lines| {
            let mut arena = Arena::new(lines, 4 * CHUNK, 1);
            let scratch = &mut arena.take::<f32>(CHUNK)[..value.len()];
            let other = match other {
                None => &*scratch,
                Some(Elements::F32(data)) => &data[first..][..value.len()],
                Some(other) => {
                    other.read(first, scratch);
                    &*scratch
                }
            };
            for &step in steps {
                match step {
                    Step::Map(function) => apply(function, value),
                    Step::With(combine, Argument::Scalar(scalar)) => with_scalar(combine, scalar, value),
                    Step::With(combine, Argument::Input(_)) => with_operand(combine, other, value),
                }
            }
        });
    };
    match parallel {
        true => value.par_chunks_mut(CHUNK).with_min_len(MIN_CHUNKS).enumerate().for_each(chunk),
        false => value.chunks_mut(CHUNK).enumerate().for_each(chunk),
    }
}

struct Chain<'a> {
    axes: &'a [Axis],
    steps: &'a [Step],
    inputs: &'a [Input<'a>],
}

impl Chain<'_> {
    /// A chunk whose storage is not f32.
    fn converted(&self, index: usize, mut out: ElementsMut) {
        with_scratch(|lines| {
            let mut arena = Arena::new(lines, 8 * CHUNK, 2);
            let value = &mut arena.take::<f32>(CHUNK)[..out.len()];
            self.run(index, value, arena.take(CHUNK));
            out.write(0, value);
        });
    }

    /// All steps for the elements from `index` on.
    fn run(&self, index: usize, value: &mut [f32], other: &mut [f32]) {
        let arch = Arch::new();
        let other = &mut other[..value.len()];
        arch.dispatch(Load { chain: self, input: 0, index, out: value });
        for &step in self.steps {
            match step {
                Step::Map(function) => apply(function, value),
                Step::With(combine, Argument::Scalar(scalar)) => with_scalar(combine, scalar, value),
                Step::With(combine, Argument::Input(input)) => {
                    let operand = match self.dense(input, index..index + value.len()) {
                        Some(operand) => operand,
                        None => {
                            arch.dispatch(Load { chain: self, input, index, out: other });
                            &*other
                        }
                    };
                    with_operand(combine, operand, value);
                }
            }
        }
    }

    /// The elements of an input that is f32 and has the output's layout.
    fn dense(&self, input: usize, range: Range<usize>) -> Option<&[f32]> {
        match (self.axes, self.inputs[input]) {
            ([axis], Input::Floats(Elements::F32(data))) if axis.strides[input] == 1 => Some(&data[range]),
            _ => None,
        }
    }
}

/// Reads an input's elements for the output's elements from `index` on.
struct Load<'a> {
    chain: &'a Chain<'a>,
    input: usize,
    index: usize,
    out: &'a mut [f32],
}

impl WithSimd for Load<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { chain, input, index, out } = self;
        let stride = chain.axes.last().map_or(1, |axis| axis.strides[input]);
        let data = chain.inputs[input];
        runs(chain.axes, index, out.len(), |done, length, offsets: [isize; TENSORS]| {
            let (out, from) = (&mut out[done..done + length], offsets[input] as usize);
            match (data, stride) {
                (Input::Floats(data), 1) => data.read(from, out),
                (Input::Floats(data), _) => out.fill(data.get(from)),
                (Input::Bools(data), 1) => {
                    out.iter_mut().zip(&data[from..]).for_each(|(out, &byte)| *out = f32::from(u8::from(byte != 0)));
                }
                (Input::Bools(data), _) => out.fill(f32::from(u8::from(data[from] != 0))),
            }
        });
    }
}

/// A function in a loop, compiled on its own for each function and instruction set.
struct Each<'a, F> {
    value: &'a mut [f32],
    f: F,
}

impl<F: Fn(f32) -> f32> WithSimd for Each<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for x in self.value {
            *x = (self.f)(*x);
        }
    }
}

/// A function of two numbers likewise.
struct EachPair<'a, F> {
    value: &'a mut [f32],
    operand: &'a [f32],
    f: F,
}

impl<F: Fn(f32, f32) -> f32> WithSimd for EachPair<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (x, &y) in self.value.iter_mut().zip(self.operand) {
            *x = (self.f)(*x, y);
        }
    }
}

fn map(value: &mut [f32], f: impl Fn(f32) -> f32) {
    Arch::new().dispatch(Each { value, f });
}

fn zip(value: &mut [f32], operand: &[f32], f: impl Fn(f32, f32) -> f32) {
    Arch::new().dispatch(EachPair { value, operand, f });
}

fn apply(function: Function, value: &mut [f32]) {
    use functions::{erf, exp, exp_minus_one, gelu, gelu_tanh, log, sigmoid, softplus, tanh};
    match function {
        Function::LeakyRelu(alpha) => map(value, |x| if x < 0.0 { alpha * x } else { x }),
        Function::Elu(alpha) => {
            map(value, |x| if x < 0.0 { alpha * exp_minus_one(x) } else { x });
        }
        Function::Gelu => map(value, gelu),
        Function::GeluTanh => map(value, gelu_tanh),
        Function::Swish(beta) => map(value, |x| x * sigmoid(beta * x)),
        Function::Tanh => map(value, tanh),
        Function::Sigmoid => map(value, sigmoid),
        Function::HardSigmoid(alpha, beta) => {
            map(value, |x| larger(smaller(alpha * x + beta, 1.0), 0.0));
        }
        Function::Exp => map(value, exp),
        Function::Log => map(value, log),
        Function::Sqrt => map(value, f32::sqrt),
        Function::Rsqrt => map(value, |x| 1.0 / x.sqrt()),
        Function::Abs => map(value, f32::abs),
        Function::Erf => map(value, erf),
        Function::Softplus => map(value, softplus),
        Function::Clamp(low, high) => map(value, |x| larger(smaller(x, high), low)),
    }
}

/// The smaller of the two; NaN when either is.
#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

/// The larger of the two; NaN when either is.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

fn with_scalar(combine: Combine, s: f32, value: &mut [f32]) {
    match combine {
        Combine::Add => map(value, |x| x + s),
        Combine::Sub => map(value, |x| x - s),
        Combine::ReversedSub => map(value, |x| s - x),
        Combine::Mul => map(value, |x| x * s),
        Combine::Div => map(value, |x| x / s),
        Combine::ReversedDiv => map(value, |x| s / x),
        Combine::Min => map(value, |x| smaller(x, s)),
        Combine::Max => map(value, |x| larger(x, s)),
        Combine::Pow if s.fract() == 0.0 && s.abs() <= 64.0 => {
            let exponent = s as i32;
            map(value, |x| functions::integer_power(x, exponent));
        }
        Combine::Pow => map(value, |x| functions::power(x, s)),
        Combine::ReversedPow => map(value, |x| functions::power(s, x)),
    }
}

fn with_operand(combine: Combine, operand: &[f32], value: &mut [f32]) {
    match combine {
        Combine::Add => zip(value, operand, |x, y| x + y),
        Combine::Sub => zip(value, operand, |x, y| x - y),
        Combine::ReversedSub => zip(value, operand, |x, y| y - x),
        Combine::Mul => zip(value, operand, |x, y| x * y),
        Combine::Div => zip(value, operand, |x, y| x / y),
        Combine::ReversedDiv => zip(value, operand, |x, y| y / x),
        Combine::Min => zip(value, operand, smaller),
        Combine::Max => zip(value, operand, larger),
        Combine::Pow => zip(value, operand, functions::power),
        Combine::ReversedPow => zip(value, operand, |x, y| functions::power(y, x)),
    }
}
