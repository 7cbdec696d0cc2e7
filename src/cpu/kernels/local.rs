//! Locally connected images: a kernel of its own for each output pixel.
//!
//! Bound by reading the kernels, which are read once: a task owns some pixels in every image of the batch.

use super::args::{Elements, ElementsMut};
use super::scratch::{Arena, with_scratch};
use super::windows::Axis;
use pulp::Arch;
use rayon::prelude::*;

/// Fewest multiplications worth a task of their own.
const MIN_PRODUCTS: usize = 1 << 14;

/// A locally connected layer and its tensors, channels last.
#[derive(Debug, Clone, Copy)]
pub struct LocalArgs<'a> {
    /// Images.
    pub batch: usize,
    /// Channels of the images and of the result.
    pub channels: [usize; 2],
    /// Rows and columns of the window, without padding or dilation.
    pub axes: [Axis; 2],
    /// `[batch, height, width, in]`.
    pub x: Elements<'a>,
    /// `[pixels, taps · in, out]`.
    pub kernel: Elements<'a>,
    /// `[pixels, out]`.
    pub bias: Option<Elements<'a>>,
}

impl LocalArgs<'_> {
    fn pixels(&self) -> usize {
        self.axes[0].output * self.axes[1].output
    }

    fn depth(&self) -> usize {
        self.axes[0].kernel * self.axes[1].kernel * self.channels[0]
    }
}

/// Computes `args` into `out`, `[batch, pixels, out]`.
pub fn locally_connected(args: &LocalArgs, mut out: ElementsMut) {
    if out.len() == 0 {
        return;
    }
    let (pixels, channels) = (args.pixels(), args.channels[1]);
    let block = args.batch * channels;
    with_scratch(|scratch| {
        // [pixels, batch, out], so that a task's results are contiguous.
        let sums: &mut [f32] = Arena::new(scratch, 4 * pixels * block, 1).take(pixels * block);
        let parts = sums.par_chunks_exact_mut(block).enumerate();
        parts.with_min_len(MIN_PRODUCTS.div_ceil(block * args.depth().max(1))).for_each(|(pixel, sums)| {
            with_scratch(|scratch| {
                let mut arena = Arena::new(scratch, 4 * (args.depth() + channels), 2);
                let (patch, weights): (&mut [f32], &mut [f32]) = (arena.take(args.depth()), arena.take(channels));
                Arch::new().dispatch(|| one_pixel(args, pixel, sums, patch, weights));
            });
        });
        for (pixel, sums) in sums.chunks_exact(block).enumerate() {
            for (image, sums) in sums.chunks_exact(channels).enumerate() {
                out.write((image * pixels + pixel) * channels, sums);
            }
        }
    });
}

/// One pixel of every image.
#[inline(always)]
fn one_pixel(args: &LocalArgs, pixel: usize, sums: &mut [f32], patch: &mut [f32], weights: &mut [f32]) {
    let [rows, columns] = args.axes;
    let channels = weights.len();
    let run = columns.kernel * args.channels[0];
    let (row, column) = (pixel / columns.output, pixel % columns.output);
    for (image, sums) in sums.chunks_exact_mut(channels).enumerate() {
        match args.bias {
            Some(bias) => bias.read(pixel * channels, sums),
            None => sums.fill(0.0),
        }
        for (tap, patch) in patch.chunks_exact_mut(run.max(1)).enumerate() {
            let line = image * rows.input + row * rows.stride + tap;
            args.x.read((line * columns.input + column * columns.stride) * args.channels[0], patch);
        }
        let first = pixel * patch.len();
        if let (Elements::F32(kernel), 1) = (args.kernel, channels) {
            // One channel: the kernel is a row, and adding rows of one would not vectorise.
            sums[0] += dot(patch, &kernel[first..][..patch.len()]);
            continue;
        }
        for (k, x) in patch.iter().enumerate() {
            args.kernel.read((first + k) * channels, weights);
            for (sum, weight) in sums.iter_mut().zip(&*weights) {
                *sum += x * weight;
            }
        }
    }
}

/// In eight sums, which vectorise.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    let ((a_body, a_tail), (b_body, b_tail)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a_body.iter().zip(b_body) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + tail
}
