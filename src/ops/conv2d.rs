//! `conv2d`: convolution of images with stride, padding, dilation and groups, in both orders of the axes.
//!
//! Techniques: `conv2d_tiled` (patches times kernel, without storing the patches), `conv2d_each` (one lane per element;
//! first where a group has few output channels), `conv2d_native` (gathered patches times kernel).

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::Case;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::conv as kernel;
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Bindings, Cost, CpuKernel, Launch, Op, Rows, Technique, Update, fold, index};
use crate::ops::windows::{IMAGE_NCHW, IMAGE_NHWC, Image, ImageLayout, Padding, Rounding, Window2d, axes, image};
use crate::ops::{conv2d_cases, conv2d_reference};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{HostTensor, TensorDesc, View, ViewMut};

const TILED: Source = wgsl!("conv2d_tiled");
const EACH: Source = wgsl!("conv2d_each");
const CONV_PARAMS: Source = wgsl!("lib/conv_params");
const TAPS_NCHW: Source = wgsl!("lib/taps_nchw");
const TAPS_NHWC: Source = wgsl!("lib/taps_nhwc");
const COLUMN_BIAS_NONE: Source = wgsl!("lib/column_bias_none");
const COLUMN_BIAS_DENSE: Source = wgsl!("lib/column_bias_dense");
const COLUMN_BIAS_BINDING: u32 = 10;

/// Output channels of a group from which on a tile of 64 pays.
const TILED_CHANNELS: usize = 8;

/// `y[b, o, i, j] = bias[o] + Σ x[b, c, i · stride + u · dilation − top, …] · kernel[o, c, u, v]`, over the window's
/// rows u and columns v and over the channels c of o's group. Padding reads as zero. As in every framework the kernel
/// is not flipped.
///
/// `x` and the result are images of `layout`; the kernel is `[out, in / groups, height, width]` for
/// [`ImageLayout::Nchw`] (torch, ONNX) and `[height, width, in / groups, out]` for [`ImageLayout::Nhwc`] (Keras); the
/// bias is `[out]`. Storage is f32 or f16, per tensor, the result's that of `x`; sums are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2d {
    /// Axes of images and kernel.
    pub layout: ImageLayout,
    /// Rows and columns from one window to the next.
    pub stride: [usize; 2],
    /// Zeros around the image.
    pub padding: Padding,
    /// Rows and columns from one tap of the window to the next.
    pub dilation: [usize; 2],
    /// Consecutive input channels and consecutive output channels that meet each other only.
    pub groups: usize,
}

impl Default for Conv2d {
    fn default() -> Self {
        let layout = ImageLayout::default();
        Self { layout, stride: [1, 1], padding: Padding::default(), dilation: [1, 1], groups: 1 }
    }
}

impl Graph {
    /// Adds [`Conv2d`]. Shapes as there; the result has `(padded − span) / stride + 1` rows and columns, rounded down,
    /// where a window spans `(kernel − 1) · dilation + 1`.
    ///
    /// # Errors
    /// Ranks other than 4, channels that `groups` does not divide or that differ from the kernel's, a bias that is not
    /// `[out]`, a window larger than the padded image, a stride or dilation of zero.
    pub fn conv2d(&mut self, x: Tensor, kernel: Tensor, bias: Option<Tensor>, options: Conv2d) -> Result<Tensor> {
        let inputs: Vec<Tensor> = [x, kernel].into_iter().chain(bias).collect();
        Ok(self.add(options, &inputs)?[0])
    }

    /// [`Graph::conv2d`] along one axis: x `[batch, in, width]` and kernel `[out, in / groups, width]`, or in NHWC
    /// `[batch, width, in]` and `[width, in / groups, out]`. What `options` say of columns holds, and nothing of rows.
    ///
    /// # Errors
    /// As [`Graph::conv2d`], and ranks other than 3.
    pub fn conv1d(&mut self, x: Tensor, kernel: Tensor, bias: Option<Tensor>, options: Conv2d) -> Result<Tensor> {
        let [x_desc, kernel_desc] = [self.desc(x)?.clone(), self.desc(kernel)?.clone()];
        let (&[batch, a, b], &[first, second, third]) = (&x_desc.shape[..], &kernel_desc.shape[..]) else {
            let message = format!("x and kernel of one axis have rank 3, x is {x_desc}, kernel is {kernel_desc}");
            return Err(Error::shape("conv2d", message));
        };
        let (x_shape, kernel_shape) = match options.layout {
            ImageLayout::Nchw => ([batch, a, 1, b], [first, second, 1, third]),
            ImageLayout::Nhwc => ([batch, 1, a, b], [1, first, second, third]),
        };
        let (x, kernel) = (self.reshape(x, &x_shape)?, self.reshape(kernel, &kernel_shape)?);
        let options = Conv2d {
            stride: [1, options.stride[1]],
            padding: Padding { top: 0, bottom: 0, ..options.padding },
            dilation: [1, options.dilation[1]],
            ..options
        };
        let y = self.conv2d(x, kernel, bias, options)?;
        let shape = self.desc(y)?.shape.clone();
        let shape = match options.layout {
            ImageLayout::Nchw => [shape[0], shape[1], shape[3]],
            ImageLayout::Nhwc => [shape[0], shape[2], shape[3]],
        };
        self.reshape(y, &shape)
    }
}

params! {
    struct Conv2dParams {
        pixels: u32, depth: u32, groups: u32, in_group: u32, out_group: u32, in_height: u32, in_width: u32,
        out_height: u32, out_width: u32, kernel_height: u32, kernel_width: u32, stride_y: u32, stride_x: u32,
        dilation_y: u32, dilation_x: u32, pad_top: u32, pad_left: u32,
    }
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let shape = self.problem(inputs)?;
        let size = shape.axes.map(|axis| axis.output);
        let y = Image { batch: shape.batch, channels: shape.groups * shape.out_group, size };
        Ok(vec![TensorDesc::new(inputs[0].dtype, y.shape(self.layout))])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        conv2d_reference::reference(self, inputs, rows)
    }

    /// Taps in the padding count as work.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let (Ok(outputs), Ok(shape)) = (self.outputs(inputs), self.problem(inputs)) else { return Cost::default() };
        let products = 2 * shape.depth() as u64 + u64::from(inputs.len() > 2);
        Cost::once(outputs[0].len() as u64 * products, inputs, &outputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, _: &[TensorDesc], _: &[Option<&HostTensor>]) -> Result<()> {
        Ok(())
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let Ok(shape) = self.problem(inputs) else { return Vec::new() };
        if capabilities.backend == Backend::Cpu {
            return vec![native(shape)];
        }
        let pixels = shape.batch * shape.axes[0].output * shape.axes[1].output;
        let tiles = shape.groups * pixels.div_ceil(64) * shape.out_group.div_ceil(64);
        let elements = (pixels * shape.groups * shape.out_group).div_ceil(256);
        let mut launches = [(TILED, tiles), (EACH, elements)];
        if shape.out_group < TILED_CHANNELS {
            launches.reverse();
        }
        let launches = launches.map(|(main, workgroups)| self.launch(main, workgroups, &shape, inputs, capabilities));
        launches.into_iter().flatten().map(Technique::Gpu).collect()
    }
}

impl Conv2d {
    fn problem(&self, inputs: &[TensorDesc]) -> Result<kernel::ConvShape> {
        let fail = |message: String| Err(Error::shape("conv2d", message));
        let ([x, weights] | [x, weights, _]) = inputs else {
            return fail(format!("takes images, a kernel and a bias, got {} tensors", inputs.len()));
        };
        let image = image("conv2d", x, self.layout)?;
        let (out, in_group, size) = match (self.layout, &weights.shape[..]) {
            (ImageLayout::Nchw, &[out, channels, height, width]) => (out, channels, [height, width]),
            (ImageLayout::Nhwc, &[height, width, channels, out]) => (out, channels, [height, width]),
            (ImageLayout::Nchw, _) => {
                return fail(format!("kernel is [out, in / groups, height, width], got {weights}"));
            }
            (ImageLayout::Nhwc, _) => {
                return fail(format!("kernel is [height, width, in / groups, out], got {weights}"));
            }
        };
        if let Some(desc) = inputs[1..].iter().find(|desc| !desc.dtype.is_device_float()) {
            return fail(format!("takes f32 or f16, got {desc}"));
        }
        let (channels, groups) = (image.channels, self.groups);
        if groups == 0 || channels % groups != 0 || out % groups != 0 {
            return fail(format!("{channels} input and {out} output channels are not divisible by {groups} groups"));
        }
        if channels / groups != in_group {
            return fail(format!(
                "images have {channels} channels, {} in each of {groups} groups, kernel has {in_group} ({weights})",
                channels / groups
            ));
        }
        if let Some(bias) = inputs.get(2).filter(|bias| bias.shape != [out]) {
            return fail(format!("bias is {bias}, the kernel has {out} output channels"));
        }
        let window = Window2d { kernel: size, stride: self.stride, dilation: self.dilation };
        let axes = axes("conv2d", image.size, window, self.padding, Rounding::Floor)?;
        let (batch, out_group, layout) = (image.batch, out / groups, self.layout);
        Ok(kernel::ConvShape { batch, groups, in_group, out_group, axes, layout })
    }

    /// `None` when the device lacks f16 and a tensor has it.
    fn launch(
        &self,
        main: Source,
        workgroups: usize,
        shape: &kernel::ConvShape,
        inputs: &[TensorDesc],
        capabilities: &Capabilities,
    ) -> Option<Launch> {
        let mut constants = vec![
            ("ElemX", Constant::Scalar(inputs[0].dtype)),
            ("ElemK", Constant::Scalar(inputs[1].dtype)),
            ("Elem", Constant::Scalar(inputs[0].dtype)),
        ];
        let [images, taps] = match self.layout {
            ImageLayout::Nchw => [IMAGE_NCHW, TAPS_NCHW],
            ImageLayout::Nhwc => [IMAGE_NHWC, TAPS_NHWC],
        };
        let mut libraries = vec![CONV_PARAMS, images, taps, COLUMN_BIAS_NONE];
        let mut bindings = Bindings::in_order(2, 1);
        if let Some(bias) = inputs.get(2) {
            libraries[3] = COLUMN_BIAS_DENSE;
            constants.push(("ColumnElem", Constant::Scalar(bias.dtype)));
            bindings.inputs.push(COLUMN_BIAS_BINDING);
        }
        let shader = Shader { main, libraries, constants };
        // Loops over taps and channels; the one over both in steps of 16 takes two rounds more for each step.
        let [rows, columns] = shape.axes.map(|axis| axis.kernel);
        let rounds = rows * (columns * (9 * shape.in_group / 8 + 3) + 2);
        if (shader.needs_f16() && !capabilities.f16) || !capabilities.completes(rounds) {
            return None;
        }
        Some(Launch { shader, params: params(shape).into(), workgroups: fold(workgroups, capabilities), bindings })
    }
}

fn params(shape: &kernel::ConvShape) -> Conv2dParams {
    let [rows, columns] = shape.axes;
    Conv2dParams {
        pixels: index(shape.batch * rows.output * columns.output),
        depth: index(shape.depth()),
        groups: index(shape.groups),
        in_group: index(shape.in_group),
        out_group: index(shape.out_group),
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
    }
}

fn native(shape: kernel::ConvShape) -> Technique {
    let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
        let (x, weights) = (Elements::of(&inputs[0]), Elements::of(&inputs[1]));
        let args = kernel::ConvArgs { shape, x, kernel: weights, bias: inputs.get(2).map(Elements::of) };
        kernel::conv2d(&args, ElementsMut::of(&mut outputs[0]));
    };
    Technique::Cpu(CpuKernel { name: "conv2d_native", run: Arc::new(run) })
}

/// Cases of [`conv2d_cases`].
pub(super) fn cases() -> Vec<Case> {
    conv2d_cases::cases()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn refuses_what_does_not_fit() {
        let desc = |shape: &[usize]| TensorDesc::new(Dtype::F32, shape);
        let refused = |inputs: &[&[usize]], op: Conv2d, message: &str| {
            let inputs: Vec<_> = inputs.iter().map(|shape| desc(shape)).collect();
            assert_eq!(op.outputs(&inputs).unwrap_err().to_string(), format!("conv2d: {message}"));
        };
        let plain = Conv2d::default();
        let (x, kernel): (&[usize], &[usize]) = (&[1, 4, 5, 5], &[6, 4, 3, 3]);
        refused(&[x], plain, "takes images, a kernel and a bias, got 1 tensors");
        refused(&[&[4, 5, 5], kernel], plain, "takes f32 or f16 [batch, channels, height, width], got f32 [4, 5, 5]");
        refused(&[x, &[6, 4, 3]], plain, "kernel is [out, in / groups, height, width], got f32 [6, 4, 3]");
        refused(
            &[x, &[6, 3, 3, 3]],
            plain,
            "images have 4 channels, 4 in each of 1 groups, kernel has 3 (f32 [6, 3, 3, 3])",
        );
        let three = Conv2d { groups: 3, ..plain };
        refused(&[x, kernel], three, "4 input and 6 output channels are not divisible by 3 groups");
        let none = Conv2d { groups: 0, ..plain };
        refused(&[x, kernel], none, "4 input and 6 output channels are not divisible by 0 groups");
        refused(&[x, kernel, &[5]], plain, "bias is f32 [5], the kernel has 6 output channels");
        refused(&[x, &[6, 4, 6, 3]], plain, "the window spans 6 rows, the padded image has 5");
        let far = Conv2d { dilation: [1, usize::MAX], ..plain };
        refused(&[x, kernel], far, &format!("the window spans {} columns, the padded image has 5", usize::MAX));
        refused(&[x, kernel], Conv2d { stride: [0, 1], ..plain }, "stride is [0, 1], both must be 1 or more");
        let wide = Conv2d { padding: Padding { left: 1 << 31, ..Padding::default() }, ..plain };
        let message = "2147483653 padded columns at stride 1, at most 2147483647 are supported";
        refused(&[x, kernel], wide, message);
    }

    #[test]
    fn one_axis_is_a_unit_axis() {
        let mut graph = Graph::new();
        for (layout, x, kernel, y) in [
            (ImageLayout::Nchw, [2, 3, 10], [4, 3, 5], [2, 4, 3]),
            (ImageLayout::Nhwc, [2, 10, 3], [5, 3, 4], [2, 3, 4]),
        ] {
            let [x, kernel] = [("x", x), ("kernel", kernel)].map(|(name, shape)| {
                graph.input(&format!("{name} {layout:?}"), TensorDesc::new(Dtype::F32, shape)).unwrap()
            });
            let options = Conv2d { layout, stride: [7, 2], padding: Padding::default(), ..Conv2d::default() };
            let result = graph.conv1d(x, kernel, None, options).unwrap();
            assert_eq!(graph.desc(result).unwrap().shape, y);
        }
    }
}
