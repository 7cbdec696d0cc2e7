//! `matmul`: scaled batched products with broadcast batch axes, transposed right factor, column bias, and steps for each element.
//!
//! Techniques: `matmul_tiled` (workgroup memory and register blocks), `matmul_vector` (one row, bound by reading b), `matmul_lanes`
//! (whole rows to a lane, first on drivers that run shaders on the host), `matmul_coop` (cooperative matrices, see `coop`),
//! `matmul_native` (the `gemm` crate).
//!
//! Estimates for `matmul_tiled`, not measured, for an H200-class GPU (132 processors, 67 TFLOP/s in f32, 4.3 TB/s), f32 and k large:
//!
//! | block of a lane, tile | flops per byte of global memory | workgroup memory | registers per lane | workgroups per processor | bound |
//! |---|---|---|---|---|---|
//! | 8 × 8, 128 × 128 | 32 | 8.4 KB | 64 sums + 16 factors + 8 on their way + 35 | 2 | arithmetic: 24 of 64 cycles load from workgroup memory |
//! | 4 × 4, 64 × 64 | 16 | 8.7 KB | 16 sums + 8 factors + 8 on their way + 35 | 3 | loads from workgroup memory, 12 of 16 cycles, and what hides them |
//!
//! On lavapipe (Mesa 26, two cores that were not quite idle, 1024 × 1024 × 1024 in f32, medians of six runs in turns): 229 ms with
//! blocks of 4 × 4 whose factors are loaded one by one when they are needed, 258 ms with vectors that are loaded a step ahead,
//! 186 ms so with blocks of 8 × 8. So loading ahead does not pay on a CPU; it is for devices that would wait.

mod cases;
mod coop;
mod epilogue;
mod lanes;
mod problem;

use std::sync::Arc;

pub(super) use cases::cases;
pub use epilogue::Epilogue;
use problem::Problem;

use crate::capabilities::{Backend, Capabilities};
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::matmul as kernel;
pub use crate::cpu::kernels::matmul::Zeros;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::BLOCKS;
use crate::precision::Precision;
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const TILED: Source = wgsl!("matmul_tiled");
const VECTOR: Source = wgsl!("matmul_vector");
const BATCH: Source = wgsl!("lib/matmul_batch");
const COLUMN_BIAS_NONE: Source = wgsl!("lib/column_bias_none");
const COLUMN_BIAS_DENSE: Source = wgsl!("lib/column_bias_dense");
const COLUMN_BIAS_BINDING: u32 = 10;
const LEFT_EACH: Source = wgsl!("lib/left_each");
const LEFT_FOURS: Source = wgsl!("lib/left_fours");
const RIGHT_EACH: Source = wgsl!("lib/right_each");
const RIGHT_FOURS: Source = wgsl!("lib/right_fours");

/// Batch axes that the kernels walk after size-1 axes are dropped.
const BATCH_AXES: usize = 3;

/// `f(alpha · a · b + bias)`, for `a` `[.., m, k]`, `b` `[.., k, n]`, `bias` `[n]`, into `[.., m, n]`.
///
/// Batch axes (all but the last two) are broadcast as in NumPy. Storage is f32 or f16, per tensor; sums are f32, and so is what
/// the steps of f compute. Inputs are a, b, the bias if there is one, and the residual if a step takes it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MatMul {
    /// Multiplies the product. Finite; 1 by default.
    pub alpha: f32,
    /// `b` is given as `[.., n, k]`.
    pub transpose_b: bool,
    /// For left factors that are masked attention weights.
    pub zeros: Zeros,
    /// Dtype of the result; that of `a` by default.
    pub output: Option<Dtype>,
    /// Whether factors that are not f16 may be rounded to it.
    pub precision: Precision,
    /// What becomes of each element before it is stored: f.
    pub epilogue: Epilogue,
}

impl Default for MatMul {
    fn default() -> Self {
        Self {
            alpha: 1.0,
            transpose_b: false,
            zeros: Zeros::Multiply,
            output: None,
            precision: Precision::Full,
            epilogue: Epilogue::default(),
        }
    }
}

impl Graph {
    /// Adds [`MatMul`]. Shapes and errors as there. Steps that follow as an [`Elementwise`](super::Elementwise) become its
    /// epilogue when a plan is made, where they fit; options that have an epilogue of their own take no residual here.
    ///
    /// # Errors
    /// Inner sizes that differ, batch axes that do not broadcast, a bias that is not `[n]`, rank below 2.
    pub fn matmul(&mut self, a: Tensor, b: Tensor, bias: Option<Tensor>, options: MatMul) -> Result<Tensor> {
        let inputs: Vec<Tensor> = [a, b].into_iter().chain(bias).collect();
        Ok(self.add(options, &inputs)?[0])
    }
}

params! {
    struct MatMulParams {
        epilogue: [[u32; 4]; 2], m: u32, n: u32, k: u32, batch_count: u32, batch_middle: u32, batch_inner: u32,
        a_outer: u32, a_middle: u32, a_inner: u32, b_outer: u32, b_middle: u32, b_inner: u32, alpha: f32,
    }
}

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let problem = self.problem(inputs)?;
        let mut shape = problem.batch;
        shape.extend([inputs[0].shape[inputs[0].rank() - 2], problem.n]);
        Ok(vec![TensorDesc::new(self.output.unwrap_or(inputs[0].dtype), shape)])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let (a_shape, b_shape) = (inputs[0].shape(), inputs[1].shape());
        // Intermediates come as f64, which `outputs` refuses; only the shape is asked for.
        let descs: Vec<_> = inputs.iter().map(|input| TensorDesc::new(Dtype::F32, input.shape())).collect();
        let shape = self.outputs(&descs).expect("the graph accepted these shapes").remove(0).shape;
        let (a, b) = (inputs[0].to_f64(), inputs[1].to_f64());
        let Tensors { bias, residual, .. } = self.tensors(inputs).expect("the graph accepted these tensors");
        let [bias, residual] = [bias, residual].map(|tensor| tensor.map(|tensor| tensor.to_f64()));
        let (m, k) = (a_shape[a_shape.len() - 2], a_shape[a_shape.len() - 1]);
        let result = rows.compute(&shape, |row, out| {
            let batch = &coordinates(row / m, &shape[..shape.len() - 2]);
            let a_row = (broadcast_position(batch, &a_shape[..a_shape.len() - 2]) * m + row % m) * k;
            let b_start = broadcast_position(batch, &b_shape[..b_shape.len() - 2]) * k * out.len();
            let columns = out.len();
            for (column, value) in out.iter_mut().enumerate() {
                *value = 0.0;
                for i in 0..k {
                    let left = a[a_row + i];
                    let right = b[b_start + if self.transpose_b { column * k + i } else { i * columns + column }];
                    if left != 0.0 || self.zeros == Zeros::Multiply {
                        *value += left * right;
                    }
                }
                let product = f64::from(self.alpha) * *value + bias.as_ref().map_or(0.0, |bias| bias[column]);
                let other = residual.as_ref().map_or(0.0, |residual| residual[row * columns + column]);
                *value = self.epilogue.value(product, other);
            }
        });
        vec![result]
    }

    /// Two operations for each term, one for the bias, and one for each step of the epilogue.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let (Ok(outputs), Ok(problem), Ok(tensors)) =
            (self.outputs(inputs), self.problem(inputs), self.tensors(inputs))
        else {
            return Cost::default();
        };
        let after = u64::from(tensors.bias.is_some()) + self.epilogue.steps().count() as u64;
        Cost::once(outputs[0].len() as u64 * (2 * problem.k as u64 + after), inputs, &outputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, _: &[TensorDesc], _: &[Option<&HostTensor>]) -> Result<()> {
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let Ok(problem) = self.problem(inputs) else { return Vec::new() };
        match capabilities.backend {
            Backend::Cpu => self.native(&problem),
            Backend::Gpu => {
                let coop = self.coop(&problem, inputs, capabilities);
                // A software device has matrices, and computes them element by element.
                let first = coop::fits(&problem, capabilities) && !capabilities.software;
                let (first, last) = if first { (coop, None) } else { (None, coop) };
                let vector = self.vector(&problem, inputs, capabilities);
                let tiled = self.tiled(&problem, inputs, capabilities);
                let lanes = self.lanes(&problem, inputs, capabilities);
                let [tiled, lanes] = if capabilities.loads_once() { [lanes, tiled] } else { [tiled, lanes] };
                [first, vector, tiled, lanes, last].into_iter().flatten().map(Technique::Gpu).collect()
            }
        }
    }
}

/// The inputs of a product, whatever is known of them.
struct Tensors<'a, T> {
    factors: [&'a T; 2],
    bias: Option<&'a T>,
    residual: Option<&'a T>,
}

impl MatMul {
    /// Which is which.
    fn tensors<'a, T>(&self, inputs: &'a [T]) -> Result<Tensors<'a, T>> {
        match (inputs, self.epilogue.has_residual()) {
            ([a, b], false) => Ok(Tensors { factors: [a, b], bias: None, residual: None }),
            ([a, b, bias], false) => Ok(Tensors { factors: [a, b], bias: Some(bias), residual: None }),
            ([a, b, residual], true) => Ok(Tensors { factors: [a, b], bias: None, residual: Some(residual) }),
            ([a, b, bias, residual], true) => {
                Ok(Tensors { factors: [a, b], bias: Some(bias), residual: Some(residual) })
            }
            (_, has_residual) => {
                let more = if has_residual { ", a bias and a residual" } else { " and a bias" };
                Err(Error::shape("matmul", format!("takes two factors{more}, got {} tensors", inputs.len())))
            }
        }
    }

    fn problem(&self, inputs: &[TensorDesc]) -> Result<Problem> {
        let fail = |message: String| Err(Error::shape("matmul", message));
        if !self.alpha.is_finite() {
            return Err(Error::option("matmul", format!("alpha is {}, it must be finite", self.alpha)));
        }
        let Tensors { factors: [a, b], bias, residual } = self.tensors(inputs)?;
        if let Some(desc) = inputs.iter().find(|desc| !desc.dtype.is_device_float()) {
            return fail(format!("takes f32 or f16, got {desc}"));
        }
        if a.rank() < 2 || b.rank() < 2 {
            return fail(format!("factors need rank 2 or more, a is {a}, b is {b}"));
        }
        let (a_batch, [m, k]) = split_last_two(&a.shape);
        let (b_batch, [b_first, b_last]) = split_last_two(&b.shape);
        let [b_k, n] = if self.transpose_b { [b_last, b_first] } else { [b_first, b_last] };
        if k != b_k {
            return fail(format!("a has {k} columns ({a}), b has {b_k} rows ({b})"));
        }
        if let Some(bias) = bias.filter(|bias| bias.shape != [n]) {
            return fail(format!("bias is {bias}, the product has {n} columns"));
        }
        let Some(batch) = broadcast(a_batch, b_batch) else {
            return fail(format!("batch axes {a_batch:?} of a and {b_batch:?} of b do not broadcast"));
        };
        self.epilogue.check(residual, &[&batch[..], &[m, n]].concat())?;
        let axes: Vec<[usize; 3]> = (0..batch.len())
            .map(|axis| [batch[axis], stride(a_batch, batch.len(), axis), stride(b_batch, batch.len(), axis)])
            .map(|[size, a_stride, b_stride]| [size, a_stride * m * k, b_stride * n * k])
            .filter(|[size, ..]| *size != 1)
            .collect();
        if axes.len() > BATCH_AXES {
            return fail(format!("at most {BATCH_AXES} batch axes larger than 1, got {batch:?}"));
        }
        let mut problem = Problem { m, n, k, batch, axes };
        problem.fold_rows();
        Ok(problem)
    }

    fn native(&self, problem: &Problem) -> Vec<Technique> {
        let (m, n, k) = (problem.m, problem.n, problem.k);
        let batches = problem.batches();
        let layout = if self.transpose_b { kernel::RightLayout::Transposed } else { kernel::RightLayout::RowMajor };
        let (op, steps) = (*self, self.epilogue.native());
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let Tensors { factors, bias, residual } = op.tensors(inputs).expect("the graph accepted them");
            let [a, b] = factors.map(Elements::of);
            let args = kernel::MatmulArgs {
                m,
                n,
                k,
                alpha: op.alpha,
                a,
                b,
                layout,
                bias: bias.map(Elements::of),
                batches: &batches,
                zeros: op.zeros,
                steps: &steps,
                residual: residual.map(Elements::of),
            };
            kernel::matmul(&args, ElementsMut::of(&mut outputs[0]));
        };
        vec![Technique::Cpu(CpuKernel { name: "matmul_native", run: Arc::new(run) })]
    }

    fn tiled(&self, problem: &Problem, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let fours = fours(problem, capabilities);
        // Steps of the loop over k, each with one over its depth and two over four elements.
        let depth = 16 / fours;
        if !capabilities.completes(problem.k.div_ceil(depth) * (depth + 12)) {
            return None;
        }
        let tile = 64 * fours;
        let tiles = problem.m.div_ceil(tile) * problem.n.div_ceil(tile);
        let mut libraries = self.factor_files(problem, inputs);
        libraries.push(BLOCKS);
        let kernel = Kernel { main: TILED, libraries, constants: vec![("FOURS", Constant::U32(index(fours)))] };
        self.launch(kernel, tiles, problem, inputs, capabilities)
    }

    /// Library files that read the factors, in vectors where their rows are whole ones.
    fn factor_files(&self, problem: &Problem, inputs: &[TensorDesc]) -> Vec<Source> {
        let b_width = if self.transpose_b { problem.k } else { problem.n };
        // A factor without elements has no vector either.
        let empty = inputs.iter().any(|input| input.is_empty());
        let in_fours = |width: usize| !empty && width.is_multiple_of(4);
        vec![
            if in_fours(problem.k) { LEFT_FOURS } else { LEFT_EACH },
            if in_fours(b_width) { RIGHT_FOURS } else { RIGHT_EACH },
        ]
    }

    fn vector(&self, problem: &Problem, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let groups = problem.n.div_ceil(16);
        let kernel = Kernel { main: VECTOR, libraries: Vec::new(), constants: Vec::new() };
        let completes = capabilities.completes(problem.k.div_ceil(16) + 18);
        (problem.m == 1 && completes).then(|| self.launch(kernel, groups, problem, inputs, capabilities)).flatten()
    }

    /// `None` when the device lacks f16 and a tensor has it.
    fn launch(
        &self,
        Kernel { main, mut libraries, mut constants }: Kernel,
        workgroups_each: usize,
        problem: &Problem,
        inputs: &[TensorDesc],
        capabilities: &Capabilities,
    ) -> Option<Launch> {
        let output = self.output.unwrap_or(inputs[0].dtype);
        constants.extend([
            ("TRANSPOSED_B", Constant::Bool(self.transpose_b)),
            ("ANNIHILATE", Constant::Bool(self.zeros == Zeros::Annihilate)),
            ("ElemA", Constant::Scalar(inputs[0].dtype)),
            ("ElemB", Constant::Scalar(inputs[1].dtype)),
            ("Elem", Constant::Scalar(output)),
        ]);
        let mut bindings = Bindings::in_order(2, 1);
        libraries.push(BATCH);
        libraries.extend(self.after(inputs, &mut constants, &mut bindings));
        let shader = Shader { main, libraries, constants };
        if shader.needs_f16() && !capabilities.f16 {
            return None;
        }
        let workgroups = fold(problem.batch_count() * workgroups_each, capabilities);
        Some(Launch { shader, params: self.params(problem).into(), workgroups, bindings })
    }

    fn params(&self, problem: &Problem) -> MatMulParams {
        self.epilogue.params(problem.params(self.alpha))
    }

    /// Library files for the bias and the steps; what they need is added to the constants and bindings.
    fn after(
        &self,
        inputs: &[TensorDesc],
        constants: &mut Vec<(&'static str, Constant)>,
        bindings: &mut Bindings,
    ) -> Vec<Source> {
        let Tensors { bias, residual, .. } = self.tensors(inputs).expect("problems have the tensors that they take");
        let mut libraries = vec![column_bias(bias, constants, bindings)];
        libraries.extend(self.epilogue.link(residual.map(|residual| residual.dtype), constants, bindings));
        libraries
    }
}

/// A kernel of this op with what only it has.
struct Kernel {
    main: Source,
    libraries: Vec<Source>,
    constants: Vec<(&'static str, Constant)>,
}

/// Blocks of 4 × 4 along each side of what a lane of `matmul_tiled` owns: large ones where they keep every processor busy.
fn fours(problem: &Problem, capabilities: &Capabilities) -> usize {
    let tiles = problem.batch_count() * problem.m.div_ceil(128) * problem.n.div_ceil(128);
    if tiles >= capabilities.processors as usize && problem.m > 64 && problem.n > 64 { 2 } else { 1 }
}

/// Library file for the bias; what it needs is added to the constants and bindings.
fn column_bias(
    bias: Option<&TensorDesc>,
    constants: &mut Vec<(&'static str, Constant)>,
    bindings: &mut Bindings,
) -> Source {
    let Some(bias) = bias else { return COLUMN_BIAS_NONE };
    constants.push(("ColumnElem", Constant::Scalar(bias.dtype)));
    bindings.inputs.push(COLUMN_BIAS_BINDING);
    COLUMN_BIAS_DENSE
}

fn split_last_two(shape: &[usize]) -> (&[usize], [usize; 2]) {
    let (batch, last) = shape.split_at(shape.len() - 2);
    (batch, [last[0], last[1]])
}

/// NumPy's rule: aligned at the end, sizes equal or 1.
fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let size = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |axis| shape[axis]);
    (0..rank)
        .map(|axis| match (size(a, axis), size(b, axis)) {
            (x, y) if x == y || y == 1 => Some(x),
            (1, y) => Some(y),
            _ => None,
        })
        .collect()
}

/// Products from one step along `axis` of a batch of `rank` axes to the next; zero where this factor is broadcast.
fn stride(shape: &[usize], rank: usize, axis: usize) -> usize {
    match (axis + shape.len()).checked_sub(rank) {
        Some(axis) if shape[axis] != 1 => shape[axis + 1..].iter().product(),
        _ => 0,
    }
}

/// For the reference: position along each axis.
fn coordinates(mut position: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for axis in (0..shape.len()).rev() {
        at[axis] = position % shape[axis];
        position /= shape[axis];
    }
    at
}

/// For the reference: which product of a factor takes part at this position of the whole batch.
fn broadcast_position(batch: &[usize], shape: &[usize]) -> usize {
    let skipped = batch.len() - shape.len();
    shape
        .iter()
        .zip(&batch[skipped..])
        .fold(0, |position, (&size, &at)| position * size + if size == 1 { 0 } else { at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_by_hand() {
        let a = HostTensor::f32(&[1, 2, 2], vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        let b = HostTensor::f32(&[2, 2, 1], vec![5.0, 6.0, 7.0, 8.0]).unwrap();
        let bias = HostTensor::f32(&[1], vec![0.5]).unwrap();
        let out = MatMul::default().reference(&[&a, &b, &bias], Rows::All).remove(0);
        assert_eq!((out.shape(), out.as_f64().unwrap()), (&[2, 2, 1][..], &[17.5, 39.5, 23.5, 53.5][..]));
        let b = HostTensor::f32(&[1, 2], vec![5.0, 6.0]).unwrap();
        let transposed = MatMul { transpose_b: true, ..MatMul::default() };
        assert_eq!(transposed.reference(&[&a, &b], Rows::All)[0].as_f64().unwrap(), [17.0, 39.0]);
    }

    #[test]
    fn a_shared_right_factor_folds_the_batch() {
        let descs = [TensorDesc::new(Dtype::F32, [128, 32, 200]), TensorDesc::new(Dtype::F32, [200, 200])];
        let problem = MatMul::default().problem(&descs).unwrap();
        assert_eq!((problem.m, problem.batch_count()), (4096, 1));
    }
}
