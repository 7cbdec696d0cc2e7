//! Maxima and averages of windows of images.
//!
//! A task owns some lines of the output, a line being one row of windows. The line is filled tap by tap: neighbouring
//! windows in NCHW, and neighbouring channels in NHWC, lie side by side.

use super::args::{Elements, ElementsMut};
use super::scratch::{Arena, with_scratch};
use super::windows::{Axis, ImageLayout, Lines};
use pulp::Arch;

/// Fewest taps worth a task of their own.
const MIN_TAPS: usize = 1 << 14;

/// What becomes of the elements under a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// The largest, padding left out; NaN when there is one.
    Max,
    /// Their sum, divided by a number of taps.
    Average(Counted),
}

/// The taps by whose number a sum is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Counted {
    /// Those in the image: `count_include_pad = 0` of torch and ONNX, and what Keras does.
    Image,
    /// Those in the image and its padding, but not past it, where rounding up puts some: `count_include_pad = 1`.
    Padded,
}

/// A pooling and its tensor.
#[derive(Debug, Clone, Copy)]
pub struct PoolArgs<'a> {
    /// Maximum or average.
    pub kind: PoolKind,
    /// Axes of the images.
    pub layout: ImageLayout,
    /// Channels of an image.
    pub channels: usize,
    /// Rows and columns of the window.
    pub axes: [Axis; 2],
    /// The images.
    pub x: Elements<'a>,
}

/// Computes `args` into `out`.
pub fn pool2d(args: &PoolArgs, out: ElementsMut) {
    if out.len() == 0 {
        return;
    }
    let [rows, columns] = args.axes;
    // Channels that lie side by side, and so are pooled together.
    let inner = if args.layout == ImageLayout::Nhwc { args.channels } else { 1 };
    let line = columns.output * inner;
    let each = MIN_TAPS.div_ceil(line * rows.kernel * columns.kernel);
    with_scratch(|scratch| {
        let mut arena = Arena::new(scratch, 4 * (rows.output + columns.output), 2);
        let counts = args.axes.map(|axis| {
            let counts: &mut [f32] = arena.take(axis.output);
            counts.iter_mut().enumerate().for_each(|(window, count)| *count = counted(args.kind, &axis, window));
            &*counts
        });
        Lines { first: 0, length: line, data: out }.in_parts(each, &|Lines { first, data: mut part, .. }: Lines| {
            with_scratch(|scratch| {
                let width = columns.input * inner;
                let mut arena = Arena::new(scratch, 4 * (line + width), 2);
                let (sums, source): (&mut [f32], &mut [f32]) = (arena.take(line), arena.take(width));
                for index in 0..part.len() / line {
                    Arch::new().dispatch(|| pool_line(args, counts, first + index, inner, sums, source));
                    part.write(index * line, sums);
                }
            });
        });
    });
}

fn counted(kind: PoolKind, axis: &Axis, window: usize) -> f32 {
    let padded = axis.before + axis.input + axis.after;
    let counts = |tap: &usize| match kind {
        PoolKind::Max => false,
        PoolKind::Average(Counted::Image) => axis.source(window, *tap).is_some(),
        PoolKind::Average(Counted::Padded) => window * axis.stride + tap * axis.dilation < padded,
    };
    (0..axis.kernel).filter(counts).count() as f32
}

/// One line of windows; `counts` are the taps that count for each row and for each column of windows.
#[inline(always)]
fn pool_line(args: &PoolArgs, counts: [&[f32]; 2], line: usize, inner: usize, sums: &mut [f32], source: &mut [f32]) {
    let [rows, columns] = args.axes;
    // An image in NHWC, one channel of an image in NCHW.
    let (plane, row) = (line / rows.output, line % rows.output);
    let maximum = args.kind == PoolKind::Max;
    sums.fill(if maximum { f32::NEG_INFINITY } else { 0.0 });
    for y in (0..rows.kernel).filter_map(|tap| rows.source(row, tap)) {
        args.x.read((plane * rows.input + y) * source.len(), source);
        if columns.output == 1 && columns.dilation == 1 && inner == 1 {
            // One window: its taps lie side by side, as windows do elsewhere.
            let last = columns.kernel.saturating_sub(columns.before).min(columns.input);
            sums[0] = if maximum { largest(sums[0], &source[..last]) } else { sums[0] + sum_of(&source[..last]) };
            continue;
        }
        let taps = (0..columns.kernel).map(|tap| (tap, columns.inside(tap)));
        for (tap, inside) in taps.filter(|(_, inside)| !inside.is_empty()) {
            let left = inside.start * columns.stride + tap * columns.dilation - columns.before;
            let sums = &mut sums[inside.start * inner..inside.end * inner];
            match (columns.stride, maximum) {
                (1, true) => raise(sums, &source[left * inner..]),
                (1, false) => add(sums, &source[left * inner..]),
                (stride, true) if inner == 1 => {
                    let values = source[left..].iter().step_by(stride);
                    sums.iter_mut().zip(values).for_each(|(sum, &value)| *sum = larger(*sum, value));
                }
                (stride, false) if inner == 1 => {
                    let values = source[left..].iter().step_by(stride);
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                }
                (stride, _) => {
                    let pixels = source[left * inner..].chunks(stride * inner);
                    for (sums, pixel) in sums.chunks_exact_mut(inner).zip(pixels) {
                        if maximum { raise(sums, pixel) } else { add(sums, pixel) }
                    }
                }
            }
        }
    }
    if !maximum {
        for (sums, count) in sums.chunks_exact_mut(inner).zip(counts[1]) {
            let count = count * counts[0][row];
            sums.iter_mut().for_each(|sum| *sum /= count);
        }
    }
}

/// A NaN wins, and stays.
#[inline(always)]
fn larger(largest: f32, value: f32) -> f32 {
    if value > largest || value.is_nan() { value } else { largest }
}

#[inline(always)]
fn raise(largest: &mut [f32], values: &[f32]) {
    for (largest, &value) in largest.iter_mut().zip(values) {
        *largest = larger(*largest, value);
    }
}

/// Of all values, in sixteen maxima, which vectorise.
#[inline(always)]
fn largest(start: f32, values: &[f32]) -> f32 {
    let (body, tail) = values.as_chunks::<16>();
    let mut lanes = [start; 16];
    body.iter().for_each(|values| raise(&mut lanes, values));
    lanes.iter().chain(tail).fold(start, |most, &value| larger(most, value))
}

/// Of all values, in sixteen sums, which vectorise.
#[inline(always)]
fn sum_of(values: &[f32]) -> f32 {
    let (body, tail) = values.as_chunks::<16>();
    let mut lanes = [0.0; 16];
    body.iter().for_each(|values| add(&mut lanes, values));
    lanes.iter().chain(tail).sum()
}

#[inline(always)]
fn add(sums: &mut [f32], values: &[f32]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}
