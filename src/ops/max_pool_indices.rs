//! `max_pool_indices`: which element of each window of images is its maximum.
//!
//! Techniques: `max_pool_indices_each` (one lane per window), `max_pool_indices_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::Elements;
use crate::cpu::kernels::pool_indices as kernel;
use crate::cpu::kernels::windows::Axis;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::EXCLUDED;
use crate::ops::windows::{
    IMAGE_NCHW, IMAGE_NHWC, Image, ImageLayout, Padding, Rounding, Window2d, axes, image, refuse_windows_of_padding,
};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("max_pool_indices_each");
const POSITION: Source = wgsl!("lib/numbers_position");
const DENSE: Source = wgsl!("lib/numbers_dense");

/// The number of the largest element of each window of each channel, u32. Padding takes no part; of several that are the
/// largest it is the first in the order of rows and columns, and a NaN is larger than all others.
///
/// `x` is an image of `layout`, f32 or f16, and the result one number for each window, in the same layout. An element's
/// number is its position in `x`, batch and channels included, or what `numbers`, u32 of x's shape, has in its place: so
/// windows may follow one another along more axes than two, and count in another order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxPoolIndices {
    /// Axes of the images.
    pub layout: ImageLayout,
    /// Size and steps of the window.
    pub window: Window2d,
    /// Rows and columns around the image.
    pub padding: Padding,
    /// Whether what the last whole window leaves gets one of its own.
    pub rounding: Rounding,
}

impl Graph {
    /// Adds [`MaxPoolIndices`]: images into the number of each window's largest element, u32.
    ///
    /// # Errors
    /// As [`Graph::pool2d`]; numbers that are not u32 of the shape of `x`.
    pub fn max_pool_indices(&mut self, x: Tensor, numbers: Option<Tensor>, options: MaxPoolIndices) -> Result<Tensor> {
        let inputs: Vec<Tensor> = [x].into_iter().chain(numbers).collect();
        Ok(self.add(options, &inputs)?[0])
    }
}

params! {
    struct MaxPoolIndicesParams {
        count: u32, channels: u32, in_height: u32, in_width: u32, out_height: u32, out_width: u32,
        kernel_height: u32, kernel_width: u32, stride_y: u32, stride_x: u32, dilation_y: u32, dilation_x: u32,
        pad_top: u32, pad_left: u32,
    }
}

/// An image and the windows over it.
struct Problem {
    image: Image,
    axes: [Axis; 2],
}

impl Op for MaxPoolIndices {
    fn name(&self) -> &'static str {
        "max_pool_indices"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let Problem { image, axes } = self.problem(inputs)?;
        let y = Image { size: axes.map(|axis| axis.output), ..image };
        Ok(vec![TensorDesc::new(Dtype::U32, y.shape(self.layout))])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        // Intermediates come as f64, which `outputs` refuses; only the shape is asked for.
        let x_shape = inputs[0].shape();
        let described = [TensorDesc::new(Dtype::F32, x_shape)];
        let shape = self.outputs(&described).expect("the graph accepted this shape").remove(0).shape;
        let (x, numbers) = (inputs[0].to_f64(), inputs.get(1).map(|numbers| numbers.to_f64()));
        let result = rows.compute(&shape, |row, out| {
            let row_length = out.len();
            for (column, number) in out.iter_mut().enumerate() {
                let winner = self.winner(&x, x_shape, &shape, row * row_length + column);
                *number = numbers.as_ref().map_or(winner as f64, |numbers| numbers[winner]);
            }
        });
        vec![result]
    }

    /// One operation for each tap. Of the numbers those of the winners are read.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let Ok(outputs) = self.outputs(inputs) else { return Cost::default() };
        let [height, width] = self.window.kernel.map(|size| size as u64);
        let once = Cost::once(outputs[0].len() as u64 * height * width, &inputs[..1], &outputs);
        Cost { read: once.read + if inputs.len() > 1 { outputs[0].bytes() } else { 0 }, ..once }
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
            Backend::Cpu => vec![self.native(&problem)],
            Backend::Gpu if inputs[0].dtype == Dtype::F16 && !capabilities.f16 => Vec::new(),
            Backend::Gpu if !capabilities.completes(self.window.kernel[0] * (self.window.kernel[1] + 2)) => Vec::new(),
            Backend::Gpu => vec![Technique::Gpu(self.each(&problem, inputs, capabilities))],
        }
    }
}

impl MaxPoolIndices {
    fn problem(&self, inputs: &[TensorDesc]) -> Result<Problem> {
        let op = "max_pool_indices";
        let (Some(x), true) = (inputs.first(), inputs.len() <= 2) else {
            return Err(Error::shape(op, format!("takes one tensor or two, got {}", inputs.len())));
        };
        let image = image(op, x, self.layout)?;
        let axes = axes(op, image.size, self.window, self.padding, self.rounding)?;
        refuse_windows_of_padding(op, &axes)?;
        match inputs.get(1) {
            Some(numbers) if numbers.dtype != Dtype::U32 || numbers.shape != x.shape => {
                Err(Error::shape(op, format!("numbers are u32 {:?}, got {numbers}", x.shape)))
            }
            _ => Ok(Problem { image, axes }),
        }
    }

    fn native(&self, problem: &Problem) -> Technique {
        let (layout, channels, axes) = (self.layout, problem.image.channels, problem.axes);
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let numbers = inputs.get(1).map(|numbers| bytemuck::cast_slice(numbers.bytes));
            let x = Elements::of(&inputs[0]);
            let args = kernel::PoolIndicesArgs { layout, channels, axes, x, numbers };
            kernel::max_pool_indices(&args, bytemuck::cast_slice_mut(outputs[0].bytes));
        };
        Technique::Cpu(CpuKernel { name: "max_pool_indices_native", run: Arc::new(run) })
    }

    fn each(&self, problem: &Problem, inputs: &[TensorDesc], capabilities: &Capabilities) -> Launch {
        let images = if self.layout == ImageLayout::Nhwc { IMAGE_NHWC } else { IMAGE_NCHW };
        let (numbers, bound) = if inputs.len() > 1 { (DENSE, vec![1, 3]) } else { (POSITION, vec![1]) };
        let constants = vec![("Elem", Constant::Scalar(inputs[0].dtype))];
        let shader = Shader { main: EACH, libraries: vec![images, EXCLUDED, numbers], constants };
        let (channels, [rows, columns]) = (problem.image.channels, problem.axes);
        let count = problem.image.batch * channels * rows.output * columns.output;
        let params = MaxPoolIndicesParams {
            count: index(count),
            channels: index(channels),
            in_height: index(rows.input),
            in_width: index(columns.input),
            out_height: index(rows.output),
            out_width: index(columns.output),
            kernel_height: index(rows.kernel),
            kernel_width: index(columns.kernel),
            stride_y: index(rows.stride),
            stride_x: index(columns.stride),
            dilation_y: index(rows.dilation),
            dilation_x: index(columns.dilation),
            pad_top: index(rows.before),
            pad_left: index(columns.before),
        };
        let workgroups = fold(count.div_ceil(256), capabilities);
        Launch { shader, params: params.into(), workgroups, bindings: Bindings { inputs: bound, outputs: vec![2] } }
    }

    /// For the reference: where in x a window's largest element is.
    fn winner(&self, x: &[f64], x_shape: &[usize], y_shape: &[usize], window: usize) -> usize {
        let [_, b, c, d] = [0, 1, 2, 3].map(|axis| y_shape[axis]);
        let at = [window / d / c / b, window / d / c % b, window / d % c, window % d];
        let spatial = if self.layout == ImageLayout::Nhwc { [1, 2] } else { [2, 3] };
        let before = [self.padding.top, self.padding.left];
        let mut taps = Vec::new();
        for u in 0..self.window.kernel[0] {
            for v in 0..self.window.kernel[1] {
                // The same batch element and channel, another row and column.
                let mut place = at.map(|at| at as i64);
                for ((axis, tap), side) in spatial.into_iter().zip([u, v]).zip(0..) {
                    let from_edge = at[axis] * self.window.stride[side] + tap * self.window.dilation[side];
                    place[axis] = from_edge as i64 - before[side] as i64;
                }
                if place.iter().zip(x_shape).all(|(&at, &size)| (0..size as i64).contains(&at)) {
                    taps.push(place.iter().zip(x_shape).fold(0, |offset, (&at, &size)| offset * size + at as usize));
                }
            }
        }
        let most = taps.iter().map(|&tap| x[tap]).fold(f64::NEG_INFINITY, f64::max);
        let nan = taps.iter().position(|&tap| x[tap].is_nan());
        let first = nan.or_else(|| taps.iter().position(|&tap| x[tap] == most));
        taps[first.expect("a window has an element in the image")]
    }
}

/// Both layouts and dtypes, with and without numbers, over windows that overlap, leave gaps, are dilated, padded and
/// rounded up, most with equal elements; primes, zero sizes, infinities and NaN, more than 65,535 workgroups.
pub(super) fn cases() -> Vec<Case> {
    let window = |kernel, stride, dilation| Window2d { kernel, stride, dilation };
    let (none, one, ragged) = (Padding::default(), Padding::all(1), Padding { top: 0, left: 2, bottom: 1, right: 0 });
    let (floor, ceil) = (Rounding::Floor, Rounding::Ceil);
    let sizes = [
        ([1, 1, 1, 1], window([1, 1], [1, 1], [1, 1]), none, floor),
        ([2, 3, 8, 8], window([2, 2], [2, 2], [1, 1]), none, floor),
        ([1, 33, 13, 11], window([3, 2], [1, 1], [1, 1]), none, floor),
        ([2, 5, 7, 9], window([3, 3], [2, 2], [1, 1]), one, ceil),
        ([1, 4, 6, 6], window([3, 4], [2, 3], [1, 1]), ragged, ceil),
        ([1, 2, 9, 10], window([2, 3], [1, 2], [3, 2]), one, floor),
        ([1, 2, 9, 10], window([2, 2], [3, 5], [2, 2]), none, ceil),
        ([1, 3, 37, 31], window([35, 31], [1, 1], [1, 1]), one, floor),
        ([0, 3, 5, 5], window([2, 2], [1, 1], [1, 1]), none, floor),
        ([2, 0, 5, 5], window([2, 2], [1, 1], [1, 1]), none, floor),
    ];
    let mut cases = Vec::new();
    for (dtype, layout) in [Dtype::F32, Dtype::F16].into_iter().flat_map(|d| LAYOUTS.map(|layout| (d, layout))) {
        for (number, (image, window, padding, rounding)) in sizes.into_iter().enumerate() {
            let op = MaxPoolIndices { layout, window, padding, rounding };
            let numbered = if number % 2 == 0 { Numbers::Given } else { Numbers::Positions };
            cases.push(case(levels(dtype, image, layout), op, numbered));
            if number == 2 {
                let drawn = CaseInput::normal(dtype, &levels(dtype, image, layout).desc.shape, 30.0);
                cases.push(case(drawn, op, Numbers::Positions));
            }
        }
    }
    let wide = window([1, 2], [1, 1], [1, 1]);
    let op = |window, padding| MaxPoolIndices { layout: ImageLayout::Nchw, window, padding, rounding: floor };
    // 256 windows for each of 65,537 workgroups.
    cases.push(case(CaseInput::normal(Dtype::F32, &[4097, 64, 8, 9], 1.0), op(wide, none), Numbers::Positions));
    let (nan, high, low) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    let x = HostTensor::f32(
        &[1, 1, 2, 8],
        vec![low, low, 1.0, nan, nan, low, high, low, low, low, 4.0, 5.0, 2.0, low, high, 0.0],
    );
    let x = x.expect("2 x 8");
    let input = CaseInput { desc: x.desc().clone(), values: Values::Given(x) };
    let not_finite = case(input, op(window([2, 2], [1, 1], [1, 1]), one), Numbers::Positions);
    cases.push(Case { name: "f32 infinities and NaN".into(), ..not_finite });
    cases
}

const LAYOUTS: [ImageLayout; 2] = [ImageLayout::Nchw, ImageLayout::Nhwc];

/// Whether a case has numbers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Numbers {
    Positions,
    Given,
}

/// An image of five numbers, so that most windows have their largest element more than once.
fn levels(dtype: Dtype, image: [usize; 4], layout: ImageLayout) -> CaseInput {
    let [batch, channels, height, width] = image;
    let shape = Image { batch, channels, size: [height, width] }.shape(layout);
    let values = (0..shape.iter().product()).map(|i: usize| (i * i * 7 / 3 % 5) as f32 - 2.0);
    let x = HostTensor::f32(&shape, values.collect()).expect("as many as the shape says").cast(dtype);
    CaseInput { desc: x.desc().clone(), values: Values::Given(x) }
}

fn case(x: CaseInput, op: MaxPoolIndices, numbers: Numbers) -> Case {
    let MaxPoolIndices { layout, window: Window2d { kernel, stride, dilation }, padding, rounding } = op;
    let Padding { top, left, bottom, right } = padding;
    let name = format!(
        "{} {layout:?} by {kernel:?} stride {stride:?} pads {top},{left},{bottom},{right} dilation {dilation:?} \
         {rounding:?} {numbers:?} {}",
        x.desc,
        if matches!(x.values, Values::Given(_)) { "levels" } else { "drawn" }
    );
    let mut inputs = vec![x];
    if numbers == Numbers::Given {
        let len = inputs[0].desc.len() as u32;
        let scattered = (0..len).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let given = HostTensor::u32(&inputs[0].desc.shape, scattered).expect("one for each element");
        inputs.push(CaseInput { desc: given.desc().clone(), values: Values::Given(given) });
    }
    Case::new(name, op, inputs, Tolerance::of_scale(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(kernel: [usize; 2], padding: Padding) -> MaxPoolIndices {
        let window = Window2d { kernel, stride: [1, 1], dilation: [1, 1] };
        MaxPoolIndices { layout: ImageLayout::Nchw, window, padding, rounding: Rounding::Floor }
    }

    fn of(op: MaxPoolIndices, inputs: &[&HostTensor]) -> Vec<f64> {
        op.reference(inputs, Rows::All).remove(0).as_f64().unwrap().to_vec()
    }

    #[test]
    fn reference_by_hand() {
        // Two channels; equal elements side by side and below one another.
        let x = HostTensor::f32(&[1, 2, 2, 3], vec![1.0, 5.0, 5.0, 5.0, 2.0, 0.0, 7.0, 7.0, 8.0, 7.0, 9.0, 9.0]);
        let x = x.unwrap();
        let op = pool([2, 2], Padding::default());
        assert_eq!(of(op, &[&x]), [1.0, 1.0, 10.0, 10.0]);
        let numbers = HostTensor::u32(x.shape(), (0..12).map(|i| 100 - i).collect()).unwrap();
        assert_eq!(of(op, &[&x, &numbers]), [99.0, 99.0, 90.0, 90.0]);
        let nan = HostTensor::f32(&[1, 1, 1, 4], vec![9.0, f32::NAN, 10.0, f32::NAN]).unwrap();
        assert_eq!(of(pool([1, 4], Padding::default()), &[&nan]), [1.0]);
        let low = HostTensor::f32(&[1, 1, 1, 2], vec![f32::NEG_INFINITY; 2]).unwrap();
        assert_eq!(of(pool([1, 2], Padding { left: 1, right: 1, ..Padding::default() }), &[&low]), [0.0, 0.0, 1.0]);
    }

    #[test]
    fn reference_of_channels_last_by_hand() {
        let x = HostTensor::f32(&[1, 2, 2, 2], vec![1.0, 10.0, 2.0, 20.0, 3.0, 5.0, 4.0, 40.0]).unwrap();
        let op = MaxPoolIndices { layout: ImageLayout::Nhwc, ..pool([2, 1], Padding::default()) };
        assert_eq!(of(op, &[&x]), [4.0, 1.0, 6.0, 7.0]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let refused = |inputs: &[(Dtype, &[usize])], op: MaxPoolIndices, message: &str| {
            let descs: Vec<_> = inputs.iter().map(|&(dtype, shape)| TensorDesc::new(dtype, shape)).collect();
            let error = op.outputs(&descs).unwrap_err().to_string();
            assert_eq!(error, format!("max_pool_indices: {message}"));
        };
        let (op, image) = (pool([2, 2], Padding::default()), (Dtype::F32, &[1, 3, 4, 4][..]));
        refused(&[], op, "takes one tensor or two, got 0");
        refused(&[image; 2], op, "numbers are u32 [1, 3, 4, 4], got f32 [1, 3, 4, 4]");
        refused(&[image, (Dtype::U32, &[1, 3, 4])], op, "numbers are u32 [1, 3, 4, 4], got u32 [1, 3, 4]");
        refused(&[(Dtype::F32, &[1, 3, 1, 4])], op, "the window spans 2 rows, the padded image has 1");
        let outside = pool([2, 2], Padding { right: 2, ..Padding::default() });
        refused(&[image], outside, "window 4 of 5 lies in the padding of 0 and 2 columns around 4 only");
    }
}
