//! One result out of results over shares of the keys.

use super::args::ElementsMut;
use super::scratch::{Arena, with_scratch};
use rayon::prelude::*;

/// Fewest partial elements worth a task of their own.
const MIN_ELEMENTS: usize = 1 << 13;

/// Results over shares of the keys and the logarithms of their sums.
#[derive(Debug, Clone, Copy)]
pub struct Shares<'a> {
    /// `[splits, batch, heads, seq_q, head_dim_v]`.
    pub shape: [usize; 5],
    /// Contiguous.
    pub partials: &'a [f32],
    /// `[splits, batch, heads, seq_q]`, contiguous; negative infinity for a share that takes no part.
    pub sums: &'a [f32],
    /// Per head, a score more, which has no value.
    pub sinks: Option<&'a [f32]>,
}

/// The rows of all keys, written to `out` with strides in rows of `head_dim_v` elements per (batch, head, query), and the
/// logarithms of their sums to `log_sums`, `[batch, heads, seq_q]`. Whether a row is a query is not known here.
pub fn combine(shares: &Shares, mut out: ElementsMut, strides: [usize; 3], log_sums: Option<&mut [f32]>) {
    let [splits, _, heads, seq_q, width] = shares.shape;
    let rows = shares.sums.len() / splits;
    with_scratch(|lines| {
        let mut arena = Arena::new(lines, 4 * rows * (width + 1), 2);
        let (values, sums): (&mut [f32], &mut [f32]) = (arena.take(rows * width), arena.take(rows));
        let min_rows = MIN_ELEMENTS.div_ceil((splits * width).max(1));
        if width == 0 {
            sums.iter_mut().enumerate().for_each(|(row, sum)| *sum = of_row(shares, rows, row, &mut []));
        } else {
            let each = values.par_chunks_mut(width).zip(&mut *sums).enumerate().with_min_len(min_rows);
            each.for_each(|(row, (values, sum))| *sum = of_row(shares, rows, row, values));
        }
        for (row, values) in values.chunks(width.max(1)).enumerate() {
            let at = [row / seq_q / heads, row / seq_q % heads, row % seq_q];
            let place: usize = at.iter().zip(strides).map(|(at, stride)| at * stride).sum();
            out.write(place * width, values);
        }
        if let Some(log_sums) = log_sums {
            log_sums.copy_from_slice(sums);
        }
    });
}

/// Leaves the row's values in `out`; returns the logarithm of its sum.
fn of_row(shares: &Shares, rows: usize, row: usize, out: &mut [f32]) -> f32 {
    let [splits, _, heads, seq_q, width] = shares.shape;
    let sink = shares.sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[row / seq_q % heads]);
    let places = (0..splits).map(|share| share * rows + row);
    let taking_part = places.filter(|&at| shares.sums[at] != f32::NEG_INFINITY);
    let base = taking_part.clone().fold(sink, |base, at| base.max(shares.sums[at]));
    out.fill(0.0);
    if base == f32::NEG_INFINITY {
        // Nothing but NaN, or nothing.
        let sum: f32 = taking_part.map(|at| shares.sums[at]).sum();
        if sum.is_nan() {
            out.fill(f32::NAN);
        }
        return if sum.is_nan() { sum } else { base };
    }
    let mut total = (sink - base).exp();
    for at in taking_part {
        let weight = (shares.sums[at] - base).exp();
        total += weight;
        // One that rounds to nothing may have a NaN.
        if weight != 0.0 {
            out.iter_mut().zip(&shares.partials[at * width..]).for_each(|(out, partial)| *out += weight * partial);
        }
    }
    out.iter_mut().for_each(|out| *out /= total);
    base + total.ln()
}
