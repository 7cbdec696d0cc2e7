//! Copies of elements from other places: rows of a table, slices, padding. Bytes are moved, whatever they mean.

use bytemuck::{Pod, cast_slice, cast_slice_mut, pod_read_unaligned};
use rayon::prelude::*;

use super::axes::{Axis, runs};

/// Fewest bytes worth a task of their own.
const MIN_BYTES: usize = 1 << 16;

/// Row `ids[i]` of a table for each i; an id past the end takes the last row.
pub fn embedding(rows: usize, row_bytes: usize, table: &[u8], ids: &[u32], out: &mut [u8]) {
    if out.is_empty() {
        return;
    }
    let chunks = out.par_chunks_exact_mut(row_bytes).with_min_len(MIN_BYTES.div_ceil(row_bytes));
    chunks.zip(ids).for_each(|(out, &id)| {
        let row = (id as usize).min(rows - 1);
        out.copy_from_slice(&table[row * row_bytes..][..row_bytes]);
    });
}

/// The elements that `axes`, merged, visit from element `start` of `x` on.
pub fn slice(axes: &[Axis], start: isize, element: usize, x: &[u8], out: &mut [u8]) {
    match element {
        1 => slice_of::<u8>(axes, start, x, out),
        2 => slice_of::<u16>(axes, start, cast_slice(x), cast_slice_mut(out)),
        _ => slice_of::<u32>(axes, start, cast_slice(x), cast_slice_mut(out)),
    }
}

fn slice_of<T: Pod + Sync + Send>(axes: &[Axis], start: isize, x: &[T], out: &mut [T]) {
    let stride = axes.last().map_or(1, |axis| axis.strides[0]);
    let chunk = MIN_BYTES / size_of::<T>();
    out.par_chunks_mut(chunk).enumerate().for_each(|(index, out)| {
        runs(axes, index * chunk, out.len(), |done, length, offsets| {
            let (from, out) = (start + offsets[0], &mut out[done..done + length]);
            if stride == 1 {
                out.copy_from_slice(&x[from as usize..][..length]);
            } else {
                for (out, i) in out.iter_mut().zip(0..) {
                    *out = x[(from + i * stride) as usize];
                }
            }
        });
    });
}

/// One axis of a padded tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaddedAxis {
    /// Positions of the input.
    pub size: usize,
    /// Positions before them.
    pub before: usize,
    /// Positions after them.
    pub after: usize,
}

/// The input, and around it the element `fill`.
pub fn pad(axes: &[PaddedAxis], fill: &[u8], x: &[u8], out: &mut [u8]) {
    match fill.len() {
        1 => pad_with(axes, fill[0], x, out),
        2 => pad_with(axes, pod_read_unaligned::<u16>(fill), cast_slice(x), cast_slice_mut(out)),
        _ => pad_with(axes, pod_read_unaligned::<u32>(fill), cast_slice(x), cast_slice_mut(out)),
    }
}

fn pad_with<T: Pod + Sync + Send>(axes: &[PaddedAxis], fill: T, x: &[T], out: &mut [T]) {
    if out.is_empty() {
        return;
    }
    let whole = PaddedAxis { size: 1, before: 0, after: 0 };
    let (&row_axis, outer) = axes.split_last().unwrap_or((&whole, &[]));
    let row = row_axis.before + row_axis.size + row_axis.after;
    let rows = out.par_chunks_exact_mut(row).with_min_len(MIN_BYTES.div_ceil(row * size_of::<T>()));
    rows.enumerate().for_each(|(index, out)| match source_row(outer, index) {
        None => out.fill(fill),
        Some(from) => {
            out[..row_axis.before].fill(fill);
            let (inside, after) = out[row_axis.before..].split_at_mut(row_axis.size);
            inside.copy_from_slice(&x[from * row_axis.size..][..row_axis.size]);
            after.fill(fill);
        }
    });
}

/// The input's row that a row of the output is, unless it lies in the padding.
fn source_row(outer: &[PaddedAxis], index: usize) -> Option<usize> {
    let (mut rest, mut row, mut stride) = (index, 0, 1);
    for axis in outer.iter().rev() {
        let size = axis.before + axis.size + axis.after;
        let position = (rest % size).checked_sub(axis.before).filter(|&position| position < axis.size)?;
        row += position * stride;
        stride *= axis.size;
        rest /= size;
    }
    Some(row)
}
