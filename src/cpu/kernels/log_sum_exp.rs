//! The logarithm of the sum of exponentials along the last axis.

use super::args::Elements;
use super::scratch::{Arena, with_scratch};
use super::softmax::{Exponentials, Max, RowSinks, finite_base};
use pulp::Arch;
use rayon::prelude::*;

/// Fewest elements worth a task of their own.
const MIN_ELEMENTS: usize = 1 << 13;

/// `ln Σ exp(input)` of each row of `row_length` elements, in which the row's sink counts as one element more.
///
/// Negative infinity for a row of nothing else, and NaN for one with a NaN. Whether a row exists is not known here:
/// that of a query beyond its sequence's length has its sink.
///
/// # Panics
///
/// When `input` is not `out.len()` rows.
pub fn log_sum_exp(input: Elements, row_length: usize, sinks: Option<RowSinks>, out: &mut [f32]) {
    assert_eq!(input.len(), out.len() * row_length, "log_sum_exp: input and output differ in rows");
    let sink = |row: usize| sinks.map_or(f32::NEG_INFINITY, |sinks| sinks.of(row));
    let rows = out.par_iter_mut().enumerate().with_min_len(MIN_ELEMENTS.div_ceil(row_length.max(1)));
    rows.for_each(|(index, out)| {
        with_scratch(|lines| {
            let mut arena = Arena::new(lines, 8 * row_length, 2);
            let (from, weights): (&mut [f32], &mut [f32]) = (arena.take(row_length), arena.take(row_length));
            input.read(index * row_length, from);
            *out = of_row(from, sink(index), weights);
        });
    });
}

fn of_row(input: &[f32], sink: f32, weights: &mut [f32]) -> f32 {
    let arch = Arch::new();
    let base = finite_base(arch.dispatch(Max { input, scale: 1.0 }).max(sink));
    let sum = arch.dispatch(Exponentials { input, scale: 1.0, base, out: weights });
    base + (sum + (sink - base).exp()).ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn lengths_magnitudes_and_sinks() {
        for (row_length, magnitude) in [(1, 1.0), (7, 30.0), (64, 1e4), (1001, 3.0)] {
            let value = |i: usize| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * magnitude;
            let input: Vec<f32> = (0..6 * row_length).map(value).collect();
            let data = [0.5, f32::NEG_INFINITY, 2.0 * magnitude];
            for sinks in [None, Some(RowSinks { data: &data, rows: 1 })] {
                let mut out = [f32::NAN; 6];
                log_sum_exp(Elements::F32(&input), row_length, sinks, &mut out);
                for (index, (row, &got)) in input.chunks(row_length).zip(&out).enumerate() {
                    let sink = sinks.map(|_| data[index % 3]);
                    let scores: Vec<f64> = row.iter().chain(&sink).map(|&x| f64::from(x)).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let want = max + scores.iter().map(|s| (s - max).exp()).sum::<f64>().ln();
                    // The sum errs by some roundings, the result by one more.
                    assert!((f64::from(got) - want).abs() <= 2e-6 + 1e-7 * want.abs(), "{got} is not {want}");
                }
            }
        }
    }

    #[test]
    fn rows_of_nothing_and_nan() {
        let lowest = bf16::NEG_INFINITY;
        let input = [lowest, lowest, bf16::ONE, lowest, bf16::NAN, bf16::ONE];
        let mut out = [7.0; 3];
        log_sum_exp(Elements::BF16(&input), 2, None, &mut out);
        assert_eq!(out[..2], [f32::NEG_INFINITY, 1.0]);
        assert!(out[2].is_nan());
        log_sum_exp(Elements::BF16(&input), 2, Some(RowSinks { data: &[3.0], rows: 3 }), &mut out);
        assert_eq!(out[0], 3.0);
        log_sum_exp(Elements::F32(&[]), 0, Some(RowSinks { data: &[3.0, f32::NEG_INFINITY], rows: 1 }), &mut out[..2]);
        assert_eq!(out[..2], [3.0, f32::NEG_INFINITY]);
        log_sum_exp(Elements::F32(&[]), 4, None, &mut []);
    }
}
