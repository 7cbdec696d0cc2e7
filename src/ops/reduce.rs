//! `reduce`: sum, mean or maximum over any set of axes.
//!
//! Techniques: `reduce_tree` (one workgroup per output element), `reduce_each` (one lane per output element), `reduce_fours` (one lane
//! per row of some vectors), `reduce_native`. The first is better where the fastest axis is reduced, the second where it is kept, the
//! third for many short rows on a software device.

use std::sync::Arc;

use half::f16;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::axes::{Axis, merged};
use crate::cpu::kernels::reduce as kernel;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::{EPSILON_F16, EPSILON_F32, row_rounds};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const FOURS: Source = wgsl!("reduce_fours");
const TREE: Source = wgsl!("reduce_tree");
const EACH: Source = wgsl!("reduce_each");
const AXES: Source = wgsl!("lib/reduce_axes");
const FOLD_SUM: Source = wgsl!("lib/fold_sum");
const FOLD_MAX: Source = wgsl!("lib/fold_max");

/// Most axes of a tensor.
const MAX_RANK: usize = 6;

/// Most elements, times reduced axes, that a lane walks alone: more takes long, and drivers that end a shader's loops
/// (`Capabilities::loop_rounds`) allow about two rounds for each.
const MAX_ALONE: usize = 1 << 14;

/// What a set of elements is reduced to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// Sum; 0 of nothing.
    Sum,
    /// Sum over number; NaN of nothing.
    Mean,
    /// Largest; NaN when one is NaN, −∞ of nothing.
    Max,
}

/// What becomes of a reduced axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReducedAxes {
    /// It stays, with size 1.
    Kept,
    /// It is left out of the shape.
    Dropped,
}

/// Reduces over a set of axes; no axis at all leaves every element as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reduce {
    /// Sum, mean or maximum.
    pub reduction: Reduction,
    /// Axes, in any order.
    pub axes: Vec<usize>,
    /// Shape of the output.
    pub reduced: ReducedAxes,
}

impl Graph {
    /// Adds [`Reduce`]: f32 or f16 of rank up to 6, into the same dtype without these axes or with size 1 there.
    ///
    /// # Errors
    /// An axis that the tensor lacks or that is given twice, rank above 6, a dtype other than f32 or f16.
    pub fn reduce(&mut self, x: Tensor, reduction: Reduction, axes: &[usize], reduced: ReducedAxes) -> Result<Tensor> {
        Ok(self.add(Reduce { reduction, axes: axes.to_vec(), reduced }, &[x])?[0])
    }
}

params! {
    struct ReduceParams {
        kept: [[u32; 4]; 6], reduced: [[u32; 4]; 6],
        outputs: u32, count: u32, kept_axes: u32, reduced_axes: u32, divisor: f32, empty: u32,
    }
}

params! {
    struct FoursParams { outputs: u32, fours: u32, divisor: f32 }
}

impl Op for Reduce {
    fn name(&self) -> &'static str {
        "reduce"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let fail = |message: String| Err(Error::shape("reduce", message));
        let [x] = inputs else { return fail(format!("takes one tensor, got {}", inputs.len())) };
        if x.rank() > MAX_RANK || !x.dtype.is_device_float() {
            return fail(format!("takes f32 or f16 of rank up to {MAX_RANK}, got {x}"));
        }
        for (number, &axis) in self.axes.iter().enumerate() {
            if axis >= x.rank() {
                return fail(format!("axis {axis} is outside {x}"));
            }
            if self.axes[..number].contains(&axis) {
                return fail(format!("axis {axis} is given twice in {:?}", self.axes));
            }
        }
        Ok(vec![TensorDesc::new(x.dtype, self.output_shape(&x.shape))])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let (data, shape) = (inputs[0].to_f64(), inputs[0].shape());
        let kept: Vec<usize> = (0..shape.len()).filter(|axis| !self.axes.contains(axis)).collect();
        // Each output element's set, in the order of the input.
        let output_size: usize = kept.iter().map(|&axis| shape[axis]).product();
        let mut sets: Vec<Vec<f64>> = vec![Vec::new(); output_size];
        for (position, &element) in data.iter().enumerate() {
            let mut at = vec![0; shape.len()];
            let mut rest = position;
            for axis in (0..shape.len()).rev() {
                at[axis] = rest % shape[axis];
                rest /= shape[axis];
            }
            sets[kept.iter().fold(0, |output, &axis| output * shape[axis] + at[axis])].push(element);
        }
        let result = rows.compute(&self.output_shape(shape), |row, out| {
            let length = out.len();
            for (column, out) in out.iter_mut().enumerate() {
                *out = self.of_set(&sets[row * length + column]);
            }
        });
        vec![result]
    }

    /// One operation for each element.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        Cost::once(inputs[0].len() as u64, inputs, &self.outputs(inputs).unwrap_or_default())
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, _: &[TensorDesc], _: &[Option<&HostTensor>]) -> Result<()> {
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let sets = self.sets(&inputs[0]);
        match capabilities.backend {
            Backend::Cpu => self.native(sets),
            Backend::Gpu if inputs[0].dtype == Dtype::F16 && !capabilities.f16 => Vec::new(),
            Backend::Gpu => {
                let launch = |main| self.launch(main, &sets, inputs[0].dtype, capabilities);
                let along_rows = sets.reduced.last().is_some_and(|axis| axis.strides[0] == 1);
                let steps = sets.count * sets.reduced.len().max(1);
                let mut launches = Vec::from_iter(capabilities.completes(row_rounds(steps)).then(|| launch(TREE)));
                if steps <= MAX_ALONE {
                    // Few elements leave most lanes of a workgroup idle.
                    launches.insert(usize::from(along_rows && sets.count >= 16), launch(EACH));
                }
                let fours = self.fours(&sets, inputs[0].dtype, capabilities);
                let first = if capabilities.software { 0 } else { launches.len() };
                launches.splice(first..first, fours);
                launches.into_iter().map(Technique::Gpu).collect()
            }
        }
    }
}

/// Kept and reduced axes with the input's strides.
#[derive(Debug, Clone)]
struct Sets {
    kept: Vec<Axis>,
    reduced: Vec<Axis>,
    outputs: usize,
    count: usize,
}

impl Reduce {
    fn output_shape(&self, shape: &[usize]) -> Vec<usize> {
        let sizes = shape.iter().enumerate().filter_map(|(axis, &size)| match self.reduced {
            _ if !self.axes.contains(&axis) => Some(size),
            ReducedAxes::Kept => Some(1),
            ReducedAxes::Dropped => None,
        });
        sizes.collect()
    }

    fn of_set(&self, set: &[f64]) -> f64 {
        let sum: f64 = set.iter().sum();
        match self.reduction {
            Reduction::Sum => sum,
            Reduction::Mean => sum / set.len() as f64,
            Reduction::Max if set.iter().any(|x| x.is_nan()) => f64::NAN,
            Reduction::Max => set.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }

    fn sets(&self, x: &TensorDesc) -> Sets {
        let mut strides = vec![1; x.rank()];
        for axis in (1..x.rank()).rev() {
            strides[axis - 1] = strides[axis] * x.shape[axis] as isize;
        }
        let axes = |wanted: &dyn Fn(usize) -> bool| -> Vec<Axis> {
            let axes = (0..x.rank()).filter(|&axis| wanted(axis));
            axes.map(|axis| Axis { size: x.shape[axis], strides: [strides[axis], 0, 0, 0] }).collect()
        };
        let (kept, reduced) = (axes(&|axis| !self.axes.contains(&axis)), axes(&|axis| self.axes.contains(&axis)));
        let count = |axes: &[Axis]| axes.iter().map(|axis| axis.size).product();
        Sets { outputs: count(&kept), count: count(&reduced), kept: merged(&kept), reduced: merged(&reduced) }
    }

    /// What a maximum, sum or mean of nothing is.
    fn of_nothing(&self) -> f32 {
        match self.reduction {
            Reduction::Sum => 0.0,
            Reduction::Mean => f32::NAN,
            Reduction::Max => f32::NEG_INFINITY,
        }
    }

    fn native(&self, sets: Sets) -> Vec<Technique> {
        let (empty, divisor) = (self.of_nothing(), self.divisor(&sets));
        let fold = if self.reduction == Reduction::Max { kernel::Fold::Max } else { kernel::Fold::Sum { divisor } };
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let sets = kernel::Sets { kept: &sets.kept, reduced: &sets.reduced, count: sets.count, fold, empty };
            kernel::reduce(&sets, Elements::of(&inputs[0]), ElementsMut::of(&mut outputs[0]));
        };
        vec![Technique::Cpu(CpuKernel { name: "reduce_native", run: Arc::new(run) })]
    }

    fn divisor(&self, sets: &Sets) -> f32 {
        if self.reduction == Reduction::Mean { sets.count as f32 } else { 1.0 }
    }

    fn launch(&self, main: Source, sets: &Sets, dtype: Dtype, capabilities: &Capabilities) -> Launch {
        let (lanes, per_workgroup) = match main.name {
            "reduce_each" => (64, 64),
            _ if sets.count <= 256 => (64, 1),
            _ => (256, 1),
        };
        let fold_library = if self.reduction == Reduction::Max { FOLD_MAX } else { FOLD_SUM };
        let shader = Shader {
            main,
            libraries: vec![fold_library, AXES],
            constants: vec![("LANES", Constant::U32(lanes)), ("Elem", Constant::Scalar(dtype))],
        };
        let (divisor, empty) = (self.divisor(sets), self.of_nothing().to_bits());
        let params = ReduceParams {
            kept: packed(&sets.kept),
            reduced: packed(&sets.reduced),
            outputs: index(sets.outputs),
            count: index(sets.count),
            kept_axes: index(sets.kept.len()),
            reduced_axes: index(sets.reduced.len()),
            divisor,
            empty,
        };
        let workgroups = fold(sets.outputs.div_ceil(per_workgroup), capabilities);
        Launch { shader, params: params.into(), workgroups, bindings: Bindings::in_order(1, 1) }
    }
}

/// Vectors of a row that a lane walks alone: some cache lines.
const LANE_FOURS: std::ops::RangeInclusive<usize> = 8..=64;

impl Reduce {
    /// For rows that follow each other, each of some whole vectors.
    fn fours(&self, sets: &Sets, dtype: Dtype, capabilities: &Capabilities) -> Option<Launch> {
        let rows = match &sets.kept[..] {
            [] => true,
            [rows] => rows.strides[0].unsigned_abs() == sets.count,
            _ => false,
        };
        let dense = matches!(&sets.reduced[..], [row] if row.strides[0] == 1);
        let fours = sets.count / 4;
        if !(rows && dense && sets.count.is_multiple_of(4) && LANE_FOURS.contains(&fours)) {
            return None;
        }
        let lanes = 64;
        let fold_library = if self.reduction == Reduction::Max { FOLD_MAX } else { FOLD_SUM };
        let constants = vec![("LANES", Constant::U32(lanes)), ("Elem", Constant::Scalar(dtype))];
        let params = FoursParams { outputs: index(sets.outputs), fours: index(fours), divisor: self.divisor(sets) };
        Some(Launch {
            shader: Shader { main: FOURS, libraries: vec![fold_library], constants },
            params: params.into(),
            workgroups: fold(sets.outputs.div_ceil(lanes as usize), capabilities),
            bindings: Bindings::in_order(1, 1),
        })
    }
}

/// Sizes and strides, the fastest axis first.
fn packed(axes: &[Axis]) -> [[u32; 4]; MAX_RANK] {
    let mut packed = [[0; 4]; MAX_RANK];
    for (to, axis) in packed.iter_mut().zip(axes.iter().rev()) {
        *to = [index(axis.size), index(axis.strides[0] as usize), 0, 0];
    }
    packed
}

/// Rows of whole vectors and others, columns, inner axes, alternate axes, all and none; lengths around the lanes and blocks of 64 and 256; empty
/// sets and empty outputs; NaN and infinities; more than 65,535 workgroups.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for reduction in [Reduction::Sum, Reduction::Mean, Reduction::Max] {
            for length in [1, 2, 63, 64, 65, 255, 256, 257, 1021] {
                cases.push(case(dtype, reduction, &[3, length], &[1], 1.0));
                cases.push(case(dtype, reduction, &[length, 5], &[0], 1.0));
            }
            let shape = [2, 3, 5, 4, 7, 3];
            for axes in [&[][..], &[0], &[5], &[2], &[0, 2, 4], &[1, 3, 5], &[5, 0], &[2, 3], &[0, 1, 2, 3, 4, 5]] {
                cases.push(case(dtype, reduction, &shape, axes, 20.0));
            }
            for (shape, axes) in
                [(&[][..], &[][..]), (&[0, 4], &[0]), (&[4, 0], &[0]), (&[3, 0, 2], &[1, 2]), (&[0], &[0])]
            {
                cases.push(case(dtype, reduction, shape, axes, 1.0));
            }
            cases.push(case(dtype, reduction, &[2, 300_007], &[1], 0.1));
            cases.push(case(dtype, reduction, &[131, 32], &[1], 1.0));
            cases.push(case(dtype, reduction, &[100], &[0], 1.0));
            cases.push(case(dtype, reduction, &[1500, 130], &[0], 1.0));
            cases.push(edges(dtype, reduction));
        }
    }
    cases.push(case(Dtype::F32, Reduction::Sum, &[66_000, 3], &[1], 1.0));
    cases
}

fn case(dtype: Dtype, reduction: Reduction, shape: &[usize], axes: &[usize], deviation: f32) -> Case {
    let count: usize = axes.iter().map(|&axis| shape[axis]).product();
    // Partial sums of n normals reach 5 √n; each of n roundings is that times ε at most, and √n of them add up. The
    // division rounds once more in WGSL, by up to 2.5 units.
    let of_sum = 5.0 * count as f64 * f64::from(deviation) * EPSILON_F32;
    let (absolute, roundings) = match reduction {
        Reduction::Sum => (of_sum, 6.0),
        Reduction::Mean => (of_sum / count.max(1) as f64, 6.0),
        Reduction::Max => (0.0, 0.0),
    };
    // Both sides are rounded, and neighbours are a unit in the last place apart, or the smallest subnormal.
    let (storage, subnormal) = if dtype == Dtype::F16 { (2.0 * EPSILON_F16, 6e-8) } else { (0.0, 0.0) };
    let relative = roundings * EPSILON_F32 + storage;
    let tolerance = Tolerance { of_scale: 0.0, relative, absolute: absolute + subnormal };
    let name = format!("{dtype} {reduction:?} {shape:?} over {axes:?}");
    let reduced = if shape.len().is_multiple_of(2) { ReducedAxes::Dropped } else { ReducedAxes::Kept };
    let op = Reduce { reduction, axes: axes.to_vec(), reduced };
    Case::new(name, op, vec![CaseInput::normal(dtype, shape, deviation)], tolerance)
}

/// One NaN, both infinities, −∞ alone, negative numbers alone, zeros.
fn edges(dtype: Dtype, reduction: Reduction) -> Case {
    let (inf, nan) = (f32::INFINITY, f32::NAN);
    let rows = [
        [1.0, nan, 2.0],
        [nan, inf, 1.0],
        [-nan, -1.0, -2.0],
        [1.0, inf, 2.0],
        [-inf, 1.0, 2.0],
        [-inf, -inf, -inf],
        [-3.0, -1.0, -2.0],
        [0.0, 0.0, 0.0],
        [-1.0, 0.0, -2.0],
    ];
    let data: Vec<f32> = rows.concat();
    let tensor = match dtype {
        Dtype::F16 => HostTensor::f16(&[9, 3], data.into_iter().map(f16::from_f32).collect()),
        _ => HostTensor::f32(&[9, 3], data),
    };
    let tensor = tensor.expect("nine rows of three");
    let input = CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) };
    let op = Reduce { reduction, axes: vec![1], reduced: ReducedAxes::Dropped };
    let relative = 6.0 * EPSILON_F32 + if dtype == Dtype::F16 { 2.0 * EPSILON_F16 } else { 0.0 };
    let tolerance = Tolerance { of_scale: 0.0, relative, absolute: 0.0 };
    Case::new(format!("{dtype} {reduction:?} edges"), op, vec![input], tolerance)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduce(reduction: Reduction, axes: &[usize], reduced: ReducedAxes) -> Reduce {
        Reduce { reduction, axes: axes.to_vec(), reduced }
    }

    #[test]
    fn reference_by_hand() {
        let x = HostTensor::f32(&[2, 3], vec![1.0, 2.0, 3.0, 4.0, 5.0, 9.0]).unwrap();
        let of = |op: Reduce| op.reference(&[&x], Rows::All).remove(0);
        let rows = of(reduce(Reduction::Mean, &[1], ReducedAxes::Kept));
        assert_eq!((rows.shape(), rows.as_f64().unwrap()), (&[2, 1][..], &[2.0, 6.0][..]));
        let columns = of(reduce(Reduction::Sum, &[0], ReducedAxes::Dropped));
        assert_eq!((columns.shape(), columns.as_f64().unwrap()), (&[3][..], &[5.0, 7.0, 12.0][..]));
        let all = of(reduce(Reduction::Max, &[1, 0], ReducedAxes::Dropped));
        assert_eq!((all.shape(), all.as_f64().unwrap()), (&[][..], &[9.0][..]));
        assert_eq!(of(reduce(Reduction::Max, &[], ReducedAxes::Kept)).as_f64().unwrap(), x.to_f64());
    }

    #[test]
    fn nothing_and_nan() {
        let of = |reduction, set: &[f64]| reduce(reduction, &[], ReducedAxes::Kept).of_set(set);
        assert_eq!((of(Reduction::Sum, &[]), of(Reduction::Max, &[])), (0.0, f64::NEG_INFINITY));
        assert!(of(Reduction::Mean, &[]).is_nan() && of(Reduction::Max, &[1.0, f64::NAN, 2.0]).is_nan());
    }

    #[test]
    fn refusals_name_both_sides() {
        let refusal = |axes: &[usize], x: TensorDesc| {
            reduce(Reduction::Sum, axes, ReducedAxes::Kept).outputs(&[x]).unwrap_err().to_string()
        };
        let x = TensorDesc::new(Dtype::F32, [2, 3]);
        assert_eq!(refusal(&[2], x.clone()), "reduce: axis 2 is outside f32 [2, 3]");
        assert_eq!(refusal(&[1, 1], x), "reduce: axis 1 is given twice in [1, 1]");
        let x = TensorDesc::new(Dtype::U32, [2]);
        assert_eq!(refusal(&[0], x), "reduce: takes f32 or f16 of rank up to 6, got u32 [2]");
    }
}
