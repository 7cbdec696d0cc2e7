//! `pool2d`: maximum and average of windows of images, in both orders of the axes.
//!
//! Techniques: `pool2d_each` (one lane per element), `pool2d_wide` (one workgroup per element; averages, first where
//! windows are large), `pool2d_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::Case;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::pool as kernel;
pub use crate::cpu::kernels::pool::{Counted, PoolKind};
use crate::cpu::kernels::windows::Axis;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::windows::{
    IMAGE_NCHW, IMAGE_NHWC, Image, ImageLayout, Padding, Rounding, Window2d, axes, image, refuse_windows_of_padding,
};
use crate::ops::{EXCLUDED, REDUCE_WORKGROUP, pool2d_cases, row_rounds};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("pool2d_each");
const WIDE: Source = wgsl!("pool2d_wide");
const POOL_PARAMS: Source = wgsl!("lib/pool_params");
const MAX: Source = wgsl!("lib/pool_max");
const AVERAGE: Source = wgsl!("lib/pool_average");

/// Taps of a window from which on a workgroup of 64 has two for each lane.
const WIDE_TAPS: usize = 128;

/// Maximum or average of each window of each channel. Padding takes no part.
///
/// `x` and the result are images of `layout`, f32 or f16. Averages are sums in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool2d {
    /// Maximum or average.
    pub kind: PoolKind,
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
    /// Adds [`Pool2d`]: images into images of as many windows as fit.
    ///
    /// # Errors
    /// Ranks other than 4, a window larger than the padded image, sizes or steps of zero; windows that lie in the
    /// padding only, which have neither a maximum nor an average over the image.
    pub fn pool2d(&mut self, x: Tensor, options: Pool2d) -> Result<Tensor> {
        Ok(self.add(options, &[x])?[0])
    }

    /// The average of each channel: [`Graph::pool2d`] with one window, the image. `[batch, channels, 1, 1]`, or in NHWC
    /// `[batch, 1, 1, channels]`; reshape it where a framework drops the unit axes.
    ///
    /// # Errors
    /// Ranks other than 4, images without rows or columns.
    pub fn global_average_pool(&mut self, x: Tensor, layout: ImageLayout) -> Result<Tensor> {
        let Image { size, .. } = image("pool2d", self.desc(x)?, layout)?;
        let window = Window2d { kernel: size, stride: [1, 1], dilation: [1, 1] };
        let kind = PoolKind::Average(Counted::Image);
        self.pool2d(x, Pool2d { kind, layout, window, padding: Padding::default(), rounding: Rounding::Floor })
    }
}

params! {
    struct Pool2dParams {
        count: u32, channels: u32, in_height: u32, in_width: u32, out_height: u32, out_width: u32,
        kernel_height: u32, kernel_width: u32, stride_y: u32, stride_x: u32, dilation_y: u32, dilation_x: u32,
        pad_top: u32, pad_left: u32, box_top: u32, box_left: u32, box_height: u32, box_width: u32,
    }
}

/// An image and the windows over it.
struct Problem {
    image: Image,
    axes: [Axis; 2],
}

impl Op for Pool2d {
    fn name(&self) -> &'static str {
        "pool2d"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let Problem { image, axes } = self.problem(inputs)?;
        let y = Image { size: axes.map(|axis| axis.output), ..image };
        Ok(vec![TensorDesc::new(inputs[0].dtype, y.shape(self.layout))])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        // Intermediates come as f64, which `outputs` refuses; only the shape is asked for.
        let x_shape = inputs[0].shape();
        let described = [TensorDesc::new(Dtype::F32, x_shape)];
        let shape = self.outputs(&described).expect("the graph accepted this shape").remove(0).shape;
        let x = inputs[0].to_f64();
        let result = rows.compute(&shape, |row, out| {
            let row_length = out.len();
            for (column, value) in out.iter_mut().enumerate() {
                *value = self.element(&x, x_shape, &shape, row * row_length + column);
            }
        });
        vec![result]
    }

    /// One operation for each tap, and a division for an average.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let Ok(outputs) = self.outputs(inputs) else { return Cost::default() };
        let [height, width] = self.window.kernel.map(|size| size as u64);
        let each = height * width + if self.kind == PoolKind::Max { 0 } else { 1 };
        Cost::once(outputs[0].len() as u64 * each, inputs, &outputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, _: &[TensorDesc], _: &[Option<&HostTensor>]) -> Result<()> {
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let Ok(problem) = self.problem(inputs) else { return Vec::new() };
        if capabilities.backend == Backend::Cpu {
            return vec![self.native(&problem)];
        }
        if inputs[0].dtype == Dtype::F16 && !capabilities.f16 {
            return Vec::new();
        }
        let [rows, columns] = self.window.kernel;
        let each =
            capabilities.completes(rows * (columns + 2)).then(|| self.each(&problem, inputs[0].dtype, capabilities));
        let mut launches = Vec::from_iter(each);
        if self.kind != PoolKind::Max && capabilities.completes(row_rounds(rows * columns)) {
            launches.push(self.wide(&problem, inputs[0].dtype, capabilities));
            if rows * columns >= WIDE_TAPS {
                launches.reverse();
            }
        }
        launches.into_iter().map(Technique::Gpu).collect()
    }
}

impl Pool2d {
    fn problem(&self, inputs: &[TensorDesc]) -> Result<Problem> {
        let [x] = inputs else {
            return Err(Error::shape("pool2d", format!("takes one tensor, got {}", inputs.len())));
        };
        let image = image("pool2d", x, self.layout)?;
        let axes = axes("pool2d", image.size, self.window, self.padding, self.rounding)?;
        if self.kind != PoolKind::Average(Counted::Padded) {
            refuse_windows_of_padding("pool2d", &axes)?;
        }
        Ok(Problem { image, axes })
    }

    fn native(&self, problem: &Problem) -> Technique {
        let (kind, layout, channels, axes) = (self.kind, self.layout, problem.image.channels, problem.axes);
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let args = kernel::PoolArgs { kind, layout, channels, axes, x: Elements::of(&inputs[0]) };
            kernel::pool2d(&args, ElementsMut::of(&mut outputs[0]));
        };
        Technique::Cpu(CpuKernel { name: "pool2d_native", run: Arc::new(run) })
    }

    fn images(&self) -> Source {
        match self.layout {
            ImageLayout::Nchw => IMAGE_NCHW,
            ImageLayout::Nhwc => IMAGE_NHWC,
        }
    }

    fn each(&self, problem: &Problem, dtype: Dtype, capabilities: &Capabilities) -> Launch {
        let libraries = match self.kind {
            PoolKind::Max => vec![POOL_PARAMS, self.images(), EXCLUDED, MAX],
            PoolKind::Average(_) => vec![POOL_PARAMS, self.images(), AVERAGE],
        };
        let shader = Shader { main: EACH, libraries, constants: vec![("Elem", Constant::Scalar(dtype))] };
        let workgroups = fold(problem.count().div_ceil(256), capabilities);
        let params = self.params(problem).into();
        Launch { shader, params, workgroups, bindings: Bindings::in_order(1, 1) }
    }

    fn wide(&self, problem: &Problem, dtype: Dtype, capabilities: &Capabilities) -> Launch {
        let taps = self.window.kernel[0] * self.window.kernel[1];
        let lanes = if taps <= 1024 { 64 } else { 256 };
        let constants = vec![("LANES", Constant::U32(lanes)), ("Elem", Constant::Scalar(dtype))];
        let shader = Shader { main: WIDE, libraries: vec![POOL_PARAMS, self.images(), REDUCE_WORKGROUP], constants };
        let workgroups = fold(problem.count(), capabilities);
        let params = self.params(problem).into();
        Launch { shader, params, workgroups, bindings: Bindings::in_order(1, 1) }
    }

    fn params(&self, problem: &Problem) -> Pool2dParams {
        let [rows, columns] = problem.axes;
        let [(box_top, box_height), (box_left, box_width)] = problem.axes.map(|axis| match self.kind {
            PoolKind::Average(Counted::Padded) => (0, axis.before + axis.input + axis.after),
            _ => (axis.before, axis.input),
        });
        Pool2dParams {
            count: index(problem.count()),
            channels: index(problem.image.channels),
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
            box_top: index(box_top),
            box_left: index(box_left),
            box_height: index(box_height),
            box_width: index(box_width),
        }
    }

    /// For the reference: what one window gives.
    fn element(&self, x: &[f64], x_shape: &[usize], y_shape: &[usize], position: usize) -> f64 {
        let [_, b, c, d] = [0, 1, 2, 3].map(|axis| y_shape[axis]);
        let at = [position / d / c / b, position / d / c % b, position / d % c, position % d];
        let last = self.layout == ImageLayout::Nhwc;
        let [batch, channel, row, column] = if last { [at[0], at[3], at[1], at[2]] } else { at };
        let [height, width] = if last { [1, 2] } else { [2, 3] }.map(|axis| x_shape[axis] as i64);
        let Padding { top, left, bottom, right } = self.padding;
        let mut values = Vec::new();
        let mut padded = 0;
        for u in 0..self.window.kernel[0] {
            for v in 0..self.window.kernel[1] {
                let y = (row * self.window.stride[0] + u * self.window.dilation[0]) as i64 - top as i64;
                let x_at = (column * self.window.stride[1] + v * self.window.dilation[1]) as i64 - left as i64;
                padded += usize::from(y < height + bottom as i64 && x_at < width + right as i64);
                if y >= 0 && y < height && x_at >= 0 && x_at < width {
                    let (y, x_at) = (y as usize, x_at as usize);
                    let at = if last { [batch, y, x_at, channel] } else { [batch, channel, y, x_at] };
                    values.push(x[at.iter().zip(x_shape).fold(0, |offset, (at, size)| offset * size + at)]);
                }
            }
        }
        let sum: f64 = values.iter().sum();
        match self.kind {
            PoolKind::Max if values.iter().any(|value| value.is_nan()) => f64::NAN,
            PoolKind::Max => values.into_iter().fold(f64::NEG_INFINITY, f64::max),
            PoolKind::Average(Counted::Image) => sum / values.len() as f64,
            PoolKind::Average(Counted::Padded) => sum / padded as f64,
        }
    }
}

impl Problem {
    fn count(&self) -> usize {
        self.image.batch * self.image.channels * self.axes[0].output * self.axes[1].output
    }
}

/// Cases of [`pool2d_cases`].
pub(super) fn cases() -> Vec<Case> {
    pool2d_cases::cases()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(kind: PoolKind, kernel: [usize; 2], stride: [usize; 2]) -> Pool2d {
        let window = Window2d { kernel, stride, dilation: [1, 1] };
        let (layout, padding, rounding) = (ImageLayout::Nchw, Padding::default(), Rounding::Floor);
        Pool2d { kind, layout, window, padding, rounding }
    }

    fn of(op: Pool2d, x: &HostTensor) -> (Vec<usize>, Vec<f64>) {
        let out = op.reference(&[x], Rows::All).remove(0);
        (out.shape().to_vec(), out.as_f64().unwrap().to_vec())
    }

    #[test]
    fn reference_by_hand() {
        let x = HostTensor::f32(&[1, 1, 2, 3], vec![1.0, 5.0, 3.0, 4.0, 2.0, 9.0]).unwrap();
        let max = pool(PoolKind::Max, [2, 2], [1, 1]);
        assert_eq!(of(max, &x), (vec![1, 1, 1, 2], vec![5.0, 9.0]));
        assert_eq!(of(pool(PoolKind::Average(Counted::Image), [2, 2], [1, 1]), &x).1, [3.0, 4.75]);
        // One column of padding to the left, one past it by rounding up.
        let padding = Padding { left: 1, right: 1, ..Padding::default() };
        let ceil = |kind| Pool2d { padding, rounding: Rounding::Ceil, ..pool(kind, [1, 3], [2, 3]) };
        assert_eq!(of(ceil(PoolKind::Average(Counted::Image)), &x), (vec![1, 1, 1, 2], vec![3.0, 3.0]));
        assert_eq!(of(ceil(PoolKind::Average(Counted::Padded)), &x).1, [2.0, 1.5]);
    }

    #[test]
    fn reference_of_channels_last_by_hand() {
        let x = HostTensor::f32(&[1, 2, 2, 2], vec![1.0, 10.0, 2.0, 20.0, 3.0, 5.0, 4.0, 40.0]).unwrap();
        let op = Pool2d { layout: ImageLayout::Nhwc, ..pool(PoolKind::Max, [2, 1], [1, 1]) };
        assert_eq!(of(op, &x), (vec![1, 1, 2, 2], vec![3.0, 10.0, 4.0, 40.0]));
    }

    #[test]
    fn global_average_is_one_window() {
        let mut graph = Graph::new();
        let x = graph.input("x", TensorDesc::new(Dtype::F32, [2, 5, 7, 3])).unwrap();
        let y = graph.global_average_pool(x, ImageLayout::Nhwc).unwrap();
        assert_eq!(graph.desc(y).unwrap().shape, [2, 1, 1, 3]);
        let empty = graph.input("empty", TensorDesc::new(Dtype::F32, [2, 3, 0, 3])).unwrap();
        let error = graph.global_average_pool(empty, ImageLayout::Nchw).unwrap_err().to_string();
        assert_eq!(error, "pool2d: kernel is [0, 3], both must be 1 or more");
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let refused = |shape: &[usize], op: Pool2d, message: &str| {
            let error = op.outputs(&[TensorDesc::new(Dtype::F32, shape)]).unwrap_err().to_string();
            assert_eq!(error, format!("pool2d: {message}"));
        };
        let max = pool(PoolKind::Max, [2, 2], [1, 1]);
        refused(&[3, 4, 4], max, "takes f32 or f16 [batch, channels, height, width], got f32 [3, 4, 4]");
        refused(&[1, 3, 1, 4], max, "the window spans 2 rows, the padded image has 1");
        let outside = Pool2d { padding: Padding { right: 2, ..Padding::default() }, ..max };
        refused(&[1, 3, 4, 4], outside, "window 4 of 5 lies in the padding of 0 and 2 columns around 4 only");
        let between = Window2d { kernel: [2, 1], stride: [1, 1], dilation: [2, 1] };
        let between = Pool2d { window: between, padding: Padding::all(1), ..max };
        refused(&[1, 3, 1, 1], between, "window 0 of 1 lies in the padding of 1 and 1 rows around 1 only");
        assert!(max.outputs(&[]).unwrap_err().to_string().contains("takes one tensor, got 0"));
    }
}
