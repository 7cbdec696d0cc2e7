//! `locally_connected`: a convolution whose every output pixel has a kernel of its own.
//!
//! Techniques: `locally_connected_each` (one lane per element), `locally_connected_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::{Case, CaseInput};
use crate::compare::Tolerance;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::local as kernel;
use crate::cpu::kernels::windows::Axis;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::windows::{Image, ImageLayout, Padding, Rounding, Window2d, axes, image};
use crate::ops::{EPSILON_F16, EPSILON_F32};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const EACH: Source = wgsl!("locally_connected_each");
const COLUMN_BIAS_NONE: Source = wgsl!("lib/column_bias_none");
const COLUMN_BIAS_DENSE: Source = wgsl!("lib/column_bias_dense");
const COLUMN_BIAS_BINDING: u32 = 10;

/// `y[b, i, j, o] = bias[i, j, o] + Σ x[b, i · stride + u, j · stride + v, c] · kernel[(i, j), (u, v, c), o]`.
///
/// `LocallyConnected2D` of Keras 2 as its implementation 1 stores it: x `[batch, height, width, in]`, kernel `[out_rows
/// · out_columns, rows · columns · in, out]`, bias `[out_rows, out_columns, out]`, no padding. Storage is f32 or f16,
/// per tensor, the result's that of `x`; sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocallyConnected {
    /// Rows and columns of the window; their product times the channels is the kernel's second axis.
    pub kernel: [usize; 2],
    /// Rows and columns from one window to the next.
    pub stride: [usize; 2],
}

impl Graph {
    /// Adds [`LocallyConnected`]. Shapes as there.
    ///
    /// # Errors
    /// Images of a rank other than 4, a window larger than the image, a kernel or bias of another shape than they ask
    /// for.
    pub fn locally_connected(
        &mut self,
        x: Tensor,
        kernel: Tensor,
        bias: Option<Tensor>,
        options: LocallyConnected,
    ) -> Result<Tensor> {
        let inputs: Vec<Tensor> = [x, kernel].into_iter().chain(bias).collect();
        Ok(self.add(options, &inputs)?[0])
    }
}

params! {
    struct LocallyConnectedParams {
        count: u32, in_height: u32, in_width: u32, in_channels: u32, out_height: u32, out_width: u32, out_channels: u32,
        kernel_height: u32, kernel_width: u32, stride_y: u32, stride_x: u32,
    }
}

/// An image, the windows over it, and the channels that come out.
struct Problem {
    image: Image,
    axes: [Axis; 2],
    out: usize,
}

impl Op for LocallyConnected {
    fn name(&self) -> &'static str {
        "locally_connected"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let Problem { image, axes: [rows, columns], out } = self.problem(inputs)?;
        Ok(vec![TensorDesc::new(inputs[0].dtype, [image.batch, rows.output, columns.output, out])])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        let (x, kernel) = (inputs[0].to_f64(), inputs[1].to_f64());
        let bias = inputs.get(2).map(|bias| bias.to_f64());
        let &[batch, height, width, channels] = inputs[0].shape() else { unreachable!("the graph accepted rank 4") };
        let [out_height, out_width] =
            [0, 1].map(|axis| ([height, width][axis] - self.kernel[axis]) / self.stride[axis] + 1);
        let shape = [batch, out_height, out_width, inputs[1].shape()[2]];
        let result = rows.compute(&shape, |row, out| {
            let (b, i, j) = (row / out_width / out_height, row / out_width % out_height, row % out_width);
            let width_out = out.len();
            for (o, value) in out.iter_mut().enumerate() {
                *value = bias.as_ref().map_or(0.0, |bias| bias[(i * out_width + j) * width_out + o]);
                for u in 0..self.kernel[0] {
                    for v in 0..self.kernel[1] {
                        for c in 0..channels {
                            let (y, x_at) = (i * self.stride[0] + u, j * self.stride[1] + v);
                            let k = (u * self.kernel[1] + v) * channels + c;
                            let depth = self.kernel[0] * self.kernel[1] * channels;
                            *value += x[((b * height + y) * width + x_at) * channels + c]
                                * kernel[((i * out_width + j) * depth + k) * width_out + o];
                        }
                    }
                }
            }
        });
        vec![result]
    }

    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let (Ok(outputs), Some(kernel)) = (self.outputs(inputs), inputs.get(1)) else { return Cost::default() };
        let products = 2 * kernel.shape[1] as u64 + u64::from(inputs.len() > 2);
        Cost::once(outputs[0].len() as u64 * products, inputs, &outputs)
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
            Backend::Cpu => vec![native(problem)],
            Backend::Gpu => each(&problem, inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl LocallyConnected {
    fn problem(&self, inputs: &[TensorDesc]) -> Result<Problem> {
        const OP: &str = "locally_connected";
        let fail = |message: String| Err(Error::shape(OP, message));
        let ([x, kernel] | [x, kernel, _]) = inputs else {
            return fail(format!("takes images, a kernel and a bias, got {} tensors", inputs.len()));
        };
        let image = image(OP, x, ImageLayout::Nhwc)?;
        if let Some(desc) = inputs[1..].iter().find(|desc| !desc.dtype.is_device_float()) {
            return fail(format!("takes f32 or f16, got {desc}"));
        }
        let window = Window2d { kernel: self.kernel, stride: self.stride, dilation: [1, 1] };
        let axes = axes(OP, image.size, window, Padding::default(), Rounding::Floor)?;
        let [pixels, taps] = [axes.map(|axis| axis.output), self.kernel].map(|[a, b]| a.saturating_mul(b));
        let expected = [pixels, taps.saturating_mul(image.channels)];
        let &[_, _, out] = &kernel.shape[..] else {
            return fail(format!("kernel is [pixels, taps · in, out], got {kernel}"));
        };
        if kernel.shape[..2] != expected {
            let (shape, size) = (&kernel.shape[..2], self.kernel);
            return fail(format!(
                "kernel has {shape:?} pixels and taps, {x} under windows of {size:?} has {expected:?}"
            ));
        }
        let wanted = [axes[0].output, axes[1].output, out];
        if let Some(bias) = inputs.get(2).filter(|bias| bias.shape != wanted) {
            return fail(format!("bias is {bias}, it must be {wanted:?}"));
        }
        Ok(Problem { image, axes, out })
    }
}

fn native(Problem { image, axes, out }: Problem) -> Technique {
    let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
        let args = kernel::LocalArgs {
            batch: image.batch,
            channels: [image.channels, out],
            axes,
            x: Elements::of(&inputs[0]),
            kernel: Elements::of(&inputs[1]),
            bias: inputs.get(2).map(Elements::of),
        };
        kernel::locally_connected(&args, ElementsMut::of(&mut outputs[0]));
    };
    Technique::Cpu(CpuKernel { name: "locally_connected_native", run: Arc::new(run) })
}

/// `None` when the device lacks f16 and a tensor has it.
fn each(problem: &Problem, inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
    let mut constants = vec![
        ("ElemX", Constant::Scalar(inputs[0].dtype)),
        ("ElemK", Constant::Scalar(inputs[1].dtype)),
        ("Elem", Constant::Scalar(inputs[0].dtype)),
    ];
    let mut libraries = vec![COLUMN_BIAS_NONE];
    let mut bindings = Bindings::in_order(2, 1);
    if let Some(bias) = inputs.get(2) {
        libraries[0] = COLUMN_BIAS_DENSE;
        constants.push(("ColumnElem", Constant::Scalar(bias.dtype)));
        bindings.inputs.push(COLUMN_BIAS_BINDING);
    }
    let shader = Shader { main: EACH, libraries, constants };
    let rounds = problem.axes[0].kernel * (problem.axes[1].kernel * problem.image.channels + 2);
    if (shader.needs_f16() && !capabilities.f16) || !capabilities.completes(rounds) {
        return None;
    }
    let Problem { image, axes: [rows, columns], out } = *problem;
    let count = image.batch * rows.output * columns.output * out;
    let params = LocallyConnectedParams {
        count: index(count),
        in_height: index(rows.input),
        in_width: index(columns.input),
        in_channels: index(image.channels),
        out_height: index(rows.output),
        out_width: index(columns.output),
        out_channels: index(out),
        kernel_height: index(rows.kernel),
        kernel_width: index(columns.kernel),
        stride_y: index(rows.stride),
        stride_x: index(columns.stride),
    };
    Some(Launch { shader, params: params.into(), workgroups: fold(count.div_ceil(256), capabilities), bindings })
}

/// One pixel and one channel, windows of one pixel, strides, primes, zero sizes, both dtypes and two magnitudes, more
/// than 65,535 workgroups.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for (image, out, kernel, stride) in [
            ([1, 1, 1, 1], 1, [1, 1], [1, 1]),
            ([1, 12, 12, 16], 1, [1, 1], [1, 1]),
            ([3, 7, 5, 4], 6, [3, 2], [1, 1]),
            ([2, 9, 11, 3], 17, [3, 3], [2, 3]),
            ([2, 16, 16, 5], 1, [2, 2], [1, 1]),
            ([2, 4, 4, 0], 3, [2, 2], [1, 1]),
            ([0, 4, 4, 2], 3, [2, 2], [1, 1]),
            ([2, 4, 4, 2], 0, [2, 2], [1, 1]),
        ] {
            cases.push(case(dtype, image, out, LocallyConnected { kernel, stride }, 1.0));
        }
    }
    let op = LocallyConnected { kernel: [2, 2], stride: [1, 1] };
    cases.push(case(Dtype::F32, [2, 6, 7, 3], 5, op, 30.0));
    let pointwise = LocallyConnected { kernel: [1, 1], stride: [1, 1] };
    cases.push(case(Dtype::F32, [2100, 20, 20, 1], 20, pointwise, 1.0));
    cases
}

fn case(dtype: Dtype, image: [usize; 4], out: usize, op: LocallyConnected, deviation: f32) -> Case {
    let [rows, columns] = [0, 1].map(|axis| (image[axis + 1] - op.kernel[axis]) / op.stride[axis] + 1);
    let depth = op.kernel[0] * op.kernel[1] * image[3];
    let mut inputs =
        vec![CaseInput::normal(dtype, &image, deviation), CaseInput::normal(dtype, &[rows * columns, depth, out], 1.0)];
    if out % 2 == 1 {
        inputs.push(CaseInput::normal(dtype, &[rows, columns, out], 1.0));
    }
    // As a matrix product's: k roundings of partial sums of about √k terms, of which about √k add up, times 4 for the
    // tails; result and reference are rounded to storage, and may fall to either side of a middle.
    let storage = 2.0 * if dtype == Dtype::F16 { EPSILON_F16 } else { EPSILON_F32 };
    let absolute = 4.0 * EPSILON_F32 * (depth as f64 + 1.0) * f64::from(deviation);
    let tolerance = Tolerance { of_scale: storage + EPSILON_F32, relative: 0.0, absolute };
    let name = format!("{dtype} {image:?} to {out} by {:?} stride {:?} of {deviation}", op.kernel, op.stride);
    Case::new(name, op, inputs, tolerance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_by_hand() {
        let x = HostTensor::f32(&[1, 1, 3, 1], vec![1.0, 2.0, 3.0]).unwrap();
        let kernel = HostTensor::f32(&[2, 2, 2], vec![1.0, 0.1, 10.0, 0.2, 100.0, 0.3, 1000.0, 0.4]).unwrap();
        let bias = HostTensor::f32(&[1, 2, 2], vec![0.0, 1.0, 0.5, 2.0]).unwrap();
        let op = LocallyConnected { kernel: [1, 2], stride: [1, 1] };
        let out = op.reference(&[&x, &kernel, &bias], Rows::All).remove(0);
        assert_eq!(out.shape(), [1, 1, 2, 2]);
        for (got, want) in out.as_f64().unwrap().iter().zip([21.0, 1.5, 3200.5, 3.8]) {
            assert!((got - want).abs() < 1e-6, "{got} is not {want}");
        }
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let refused = |inputs: &[&[usize]], message: &str| {
            let inputs: Vec<_> = inputs.iter().map(|shape| TensorDesc::new(Dtype::F32, *shape)).collect();
            let op = LocallyConnected { kernel: [2, 2], stride: [1, 1] };
            assert_eq!(op.outputs(&inputs).unwrap_err().to_string(), format!("locally_connected: {message}"));
        };
        let x: &[usize] = &[1, 3, 4, 5];
        refused(&[x], "takes images, a kernel and a bias, got 1 tensors");
        refused(&[&[3, 4, 5], &[6, 20, 2]], "takes f32 or f16 [batch, height, width, channels], got f32 [3, 4, 5]");
        refused(&[x, &[6, 20]], "kernel is [pixels, taps · in, out], got f32 [6, 20]");
        refused(
            &[x, &[5, 20, 2]],
            "kernel has [5, 20] pixels and taps, f32 [1, 3, 4, 5] under windows of [2, 2] has [6, 20]",
        );
        refused(&[x, &[6, 20, 2], &[6, 2]], "bias is f32 [6, 2], it must be [2, 3, 2]");
        refused(&[&[1, 1, 4, 5], &[6, 20, 2]], "the window spans 2 rows, the padded image has 1");
    }
}
