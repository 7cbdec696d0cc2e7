//! Which element of each window of images is its maximum.
//!
//! A task owns some lines of the output, a line being one row of windows, and fills a line tap by tap.

use super::args::Elements;
use super::scratch::{Arena, with_scratch};
use super::windows::{Axis, ImageLayout};
use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

/// Fewest taps worth a task of their own.
const MIN_TAPS: usize = 1 << 13;

/// A pooling and its tensors.
#[derive(Debug, Clone, Copy)]
pub struct PoolIndicesArgs<'a> {
    /// Axes of the images.
    pub layout: ImageLayout,
    /// Channels of an image.
    pub channels: usize,
    /// Rows and columns of the window.
    pub axes: [Axis; 2],
    /// The images.
    pub x: Elements<'a>,
    /// A number for each element; its position without them.
    pub numbers: Option<&'a [u32]>,
}

/// The largest element of a window so far, and where it is.
#[derive(Clone, Copy, Zeroable, Pod)]
#[repr(C)]
struct Winner {
    value: f32,
    position: u32,
}

/// No element is there: tensors have fewer.
const NONE: Winner = Winner { value: f32::NEG_INFINITY, position: u32::MAX };

/// Computes `args` into `out`. Every window has an element in the image.
pub fn max_pool_indices(args: &PoolIndicesArgs, out: &mut [u32]) {
    if out.is_empty() {
        return;
    }
    let [rows, columns] = args.axes;
    // Channels that lie side by side, and so are pooled together.
    let inner = if args.layout == ImageLayout::Nhwc { args.channels } else { 1 };
    let line = columns.output * inner;
    let each = MIN_TAPS.div_ceil(line * rows.kernel * columns.kernel);
    out.par_chunks_mut(each * line).enumerate().for_each(|(part, out)| {
        with_scratch(|lines| {
            let mut arena = Arena::new(lines, 4 * columns.input * inner + size_of::<Winner>() * line, 2);
            let (source, winners) = (arena.take(columns.input * inner), arena.take(line));
            for (index, out) in out.chunks_exact_mut(line).enumerate() {
                winners.fill(NONE);
                pool_line(args, part * each + index, inner, winners, source);
                for (number, winner) in out.iter_mut().zip(&*winners) {
                    *number = args.numbers.map_or(winner.position, |numbers| numbers[winner.position as usize]);
                }
            }
        });
    });
}

fn pool_line(args: &PoolIndicesArgs, line: usize, inner: usize, winners: &mut [Winner], source: &mut [f32]) {
    let [rows, columns] = args.axes;
    // An image in NHWC, one channel of an image in NCHW.
    let (plane, row) = (line / rows.output, line % rows.output);
    for y in (0..rows.kernel).filter_map(|tap| rows.source(row, tap)) {
        let start = (plane * rows.input + y) * source.len();
        args.x.read(start, source);
        for tap in 0..columns.kernel {
            for window in columns.inside(tap) {
                let left = (window * columns.stride + tap * columns.dilation - columns.before) * inner;
                let pixel = &source[left..left + inner];
                for ((winner, &value), at) in winners[window * inner..].iter_mut().zip(pixel).zip(start + left..) {
                    let larger = value > winner.value || value.is_nan();
                    if winner.position == NONE.position || (larger && !winner.value.is_nan()) {
                        *winner = Winner { value, position: at as u32 };
                    }
                }
            }
        }
    }
}
