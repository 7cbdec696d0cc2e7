//! Convolutions of images.
//!
//! Patches are gathered (im2col) for some lines of output pixels at a time, few enough to stay in cache, and multiplied
//! by the blocked product of `matmul`. Kernels of one pixel in NHWC need no gathering. Groups in NHWC, whose kernels
//! are not contiguous, add whole rows of channels instead.

use super::args::{Elements, ElementsMut};
use super::matmul::{BatchOffsets, MatmulArgs, RightLayout, Zeros, matmul};
use super::scratch::{Arena, with_scratch};
use super::windows::{Axis, ImageLayout, Lines};
use pulp::Arch;
use rayon::prelude::*;

/// Elements of the patches that are gathered together: 2 MiB.
const BLOCK: usize = 1 << 19;

/// Fewest elements worth a task of their own.
const MIN_ELEMENTS: usize = 1 << 13;

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Groups of channels that do not meet.
    pub groups: usize,
    /// Input channels of a group.
    pub in_group: usize,
    /// Output channels of a group.
    pub out_group: usize,
    /// Rows and columns of the window.
    pub axes: [Axis; 2],
    /// Axes of images and kernel.
    pub layout: ImageLayout,
}

impl ConvShape {
    /// Products in the sum of one output element.
    pub fn depth(&self) -> usize {
        self.in_group * self.axes[0].kernel * self.axes[1].kernel
    }

    fn in_channels(&self) -> usize {
        self.groups * self.in_group
    }

    fn out_channels(&self) -> usize {
        self.groups * self.out_group
    }

    /// Rows of output pixels in the whole batch.
    fn lines(&self) -> usize {
        self.batch * self.axes[0].output
    }
}

/// A convolution and its tensors.
#[derive(Debug, Clone, Copy)]
pub struct ConvArgs<'a> {
    /// Sizes.
    pub shape: ConvShape,
    /// The images.
    pub x: Elements<'a>,
    /// `[out, in / groups, height, width]`, or `[height, width, in / groups, out]`.
    pub kernel: Elements<'a>,
    /// `[out]`.
    pub bias: Option<Elements<'a>>,
}

/// Computes `args` into `out`.
pub fn conv2d(args: &ConvArgs, out: ElementsMut) {
    if out.len() == 0 {
        return;
    }
    // Once, not once for each block.
    with_scratch(|scratch| {
        let kernel = match args.kernel {
            Elements::F32(kernel) => kernel,
            kernel => {
                let converted = Arena::new(scratch, 4 * kernel.len(), 1).take(kernel.len());
                kernel.read(0, converted);
                converted
            }
        };
        let args = &ConvArgs { kernel: Elements::F32(kernel), ..*args };
        match args.shape.layout {
            ImageLayout::Nchw => planes(args, out),
            ImageLayout::Nhwc if args.shape.groups > 1 => grouped_pixels(args, out),
            ImageLayout::Nhwc => pixels(args, out),
        }
    });
}

/// NHWC with one group: patches `[pixels, depth]` times the kernel `[depth, out]`.
fn pixels(args: &ConvArgs, mut out: ElementsMut) {
    let shape = args.shape;
    let (k, n, [rows, columns]) = (shape.depth(), shape.out_channels(), shape.axes);
    let mut product = |a: Elements, m: usize, first: usize| {
        let batches = &[BatchOffsets { a: 0, b: 0 }];
        let args = MatmulArgs {
            m,
            n,
            k,
            alpha: 1.0,
            a,
            b: args.kernel,
            layout: RightLayout::RowMajor,
            bias: args.bias,
            batches,
            zeros: Zeros::Multiply,
            steps: &[],
            residual: None,
        };
        matmul(&args, out.part(first * n, m * n));
    };
    if rows.is_pointwise() && columns.is_pointwise() {
        return product(args.x, shape.lines() * columns.output, 0);
    }
    let line = columns.output * k;
    let lines = (BLOCK / line.max(1)).clamp(1, shape.lines());
    with_scratch(|scratch| {
        let patches: &mut [f32] = Arena::new(scratch, 4 * lines * line, 1).take(lines * line);
        for first in (0..shape.lines()).step_by(lines) {
            let count = lines.min(shape.lines() - first);
            let patches = &mut patches[..count * line];
            let parts = patches.par_chunks_exact_mut(line.max(1)).enumerate();
            parts.with_min_len(MIN_ELEMENTS.div_ceil(line.max(1))).for_each(|(index, part)| {
                gather_pixels(&shape, args.x, first + index, part);
            });
            product(Elements::F32(patches), count * columns.output, first * columns.output);
        }
    });
}

/// The patches under one line of output pixels, channels contiguous.
fn gather_pixels(shape: &ConvShape, x: Elements, line: usize, patches: &mut [f32]) {
    let [rows, columns] = shape.axes;
    let channels = shape.in_channels();
    let (image, row) = (line / rows.output, line % rows.output);
    let taps = patches.chunks_exact_mut(channels.max(1)).enumerate();
    for (index, patch) in taps {
        let (column, tap) = (index / columns.kernel / rows.kernel, index % (columns.kernel * rows.kernel));
        let source = rows.source(row, tap / columns.kernel).zip(columns.source(column, tap % columns.kernel));
        match source {
            Some((y, x_at)) => x.read(((image * rows.input + y) * columns.input + x_at) * channels, patch),
            None => patch.fill(0.0),
        }
    }
}

/// NHWC with groups: each output pixel adds, for each tap and input channel, a row of the kernel.
fn grouped_pixels(args: &ConvArgs, out: ElementsMut) {
    let shape = args.shape;
    let line = shape.axes[1].output * shape.out_channels();
    let each = (MIN_ELEMENTS / line.max(1)).clamp(1, shape.lines());
    Lines { first: 0, length: line, data: out }.in_parts(each, &|Lines { first, data: mut part, .. }: Lines| {
        with_scratch(|scratch| {
            let mut arena = Arena::new(scratch, 4 * (line + shape.in_channels()), 2);
            let (sums, pixel): (&mut [f32], &mut [f32]) = (arena.take(line), arena.take(shape.in_channels()));
            for index in 0..part.len() / line {
                Arch::new().dispatch(|| grouped_line(args, first + index, sums, pixel));
                part.write(index * line, sums);
            }
        });
    });
}

#[inline(always)]
fn grouped_line(args: &ConvArgs, line: usize, sums: &mut [f32], pixel: &mut [f32]) {
    let ConvShape { in_group, out_group, axes: [rows, columns], .. } = args.shape;
    let Elements::F32(kernel) = args.kernel else { unreachable!("conv2d widened the kernel") };
    let (image, row) = (line / rows.output, line % rows.output);
    let width = args.shape.out_channels();
    for (column, sums) in sums.chunks_exact_mut(width).enumerate() {
        match args.bias {
            Some(bias) => bias.read(0, sums),
            None => sums.fill(0.0),
        }
        for tap in 0..rows.kernel * columns.kernel {
            let source = rows.source(row, tap / columns.kernel).zip(columns.source(column, tap % columns.kernel));
            let Some((y, x)) = source else { continue };
            args.x.read(((image * rows.input + y) * columns.input + x) * pixel.len(), pixel);
            let kernel = &kernel[tap * in_group * width..][..in_group * width];
            if in_group == 1 && out_group == 1 {
                for ((sum, x), weight) in sums.iter_mut().zip(&*pixel).zip(kernel) {
                    *sum += x * weight;
                }
                continue;
            }
            for (channel, weights) in kernel.chunks_exact(width).enumerate() {
                let groups = sums.chunks_exact_mut(out_group).zip(weights.chunks_exact(out_group));
                for ((sums, weights), pixel) in groups.zip(pixel.chunks_exact(in_group)) {
                    for (sum, weight) in sums.iter_mut().zip(weights) {
                        *sum += pixel[channel] * weight;
                    }
                }
            }
        }
    }
}

/// NCHW: for each group, the kernel `[out, depth]` times patches `[depth, pixels]`.
fn planes(args: &ConvArgs, mut out: ElementsMut) {
    let shape = args.shape;
    let [rows, columns] = shape.axes;
    let (k, channels, depth) = (shape.depth(), shape.out_channels(), shape.groups * shape.depth());
    let per_line = columns.output * depth.max(channels).max(1);
    let lines = (BLOCK / per_line).clamp(1, shape.lines());
    with_scratch(|scratch| {
        let most = lines * columns.output;
        let bytes = 4 * most * (depth + channels) + size_of::<BatchOffsets>() * shape.groups;
        let mut arena = Arena::new(scratch, bytes, 3);
        let batches: &mut [BatchOffsets] = arena.take(shape.groups);
        let (patches, sums): (&mut [f32], &mut [f32]) = (arena.take(most * depth), arena.take(most * channels));
        for first in (0..shape.lines()).step_by(lines) {
            let count = lines.min(shape.lines() - first);
            let n = count * columns.output;
            let patches = &mut patches[..n * depth];
            let parts = patches.par_chunks_exact_mut(n).enumerate();
            parts.with_min_len(MIN_ELEMENTS.div_ceil(n)).for_each(|(index, part)| {
                gather_planes(&shape, args.x, index, first, part);
            });
            let batch = |group: usize| BatchOffsets { a: group * shape.out_group * k, b: group * k * n };
            batches.iter_mut().enumerate().for_each(|(group, to)| *to = batch(group));
            let product = MatmulArgs {
                m: shape.out_group,
                n,
                k,
                alpha: 1.0,
                a: args.kernel,
                b: Elements::F32(patches),
                layout: RightLayout::RowMajor,
                bias: None,
                batches,
                zeros: Zeros::Multiply,
                steps: &[],
                residual: None,
            };
            matmul(&product, ElementsMut::F32(&mut sums[..n * channels]));
            for (channel, sums) in sums[..n * channels].chunks_exact_mut(n).enumerate() {
                if let Some(bias) = args.bias.map(|bias| bias.get(channel)) {
                    sums.iter_mut().for_each(|sum| *sum += bias);
                }
                for (line, sums) in (first..).zip(sums.chunks_exact(columns.output)) {
                    let (image, row) = (line / rows.output, line % rows.output);
                    out.write(((image * channels + channel) * rows.output + row) * columns.output, sums);
                }
            }
        }
    });
}

/// One row of the patches of some lines from `first` on: what one tap of one input channel reads under each pixel.
fn gather_planes(shape: &ConvShape, x: Elements, index: usize, first: usize, patches: &mut [f32]) {
    let [rows, columns] = shape.axes;
    let taps = rows.kernel * columns.kernel;
    let (channel, tap_y, tap_x) = (index / taps, index % taps / columns.kernel, index % columns.kernel);
    let inside = columns.inside(tap_x);
    for (line, patch) in (first..).zip(patches.chunks_exact_mut(columns.output)) {
        let (image, row) = (line / rows.output, line % rows.output);
        let Some(y) = rows.source(row, tap_y).filter(|_| !inside.is_empty()) else {
            patch.fill(0.0);
            continue;
        };
        patch[..inside.start].fill(0.0);
        patch[inside.end..].fill(0.0);
        let start = ((image * shape.in_channels() + channel) * rows.input + y) * columns.input;
        let left = start + inside.start * columns.stride + tap_x * columns.dilation - columns.before;
        let patch = &mut patch[inside.clone()];
        match columns.stride {
            1 => x.read(left, patch),
            stride => patch.iter_mut().enumerate().for_each(|(i, out)| *out = x.get(left + i * stride)),
        }
    }
}
