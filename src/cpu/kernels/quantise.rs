//! Rows of floats as signed levels with a scale each, and back.

use half::{bf16, f16};
use rayon::prelude::*;

use super::args::{Elements, ElementsMut};
use super::scratch::{Arena, with_scratch};

/// Fewest elements worth a task of their own.
const MIN_ELEMENTS: usize = 1 << 13;

/// Levels and scales of the rows of `x`, which are as many as `scales`.
///
/// A row of zeros has scale 0 and levels 0; one that holds an infinity or NaN has scale infinity and levels 0.
///
/// # Panics
///
/// When `levels` has another length than `x`, or the rows do not divide it.
pub fn quantise(x: Elements<'_>, levels: &mut [i8], scales: &mut [f32]) {
    let width = width(x.len(), scales.len());
    assert_eq!(x.len(), levels.len(), "one level for each element");
    if width == 0 {
        return scales.fill(0.0);
    }
    let rows = levels.par_chunks_exact_mut(width).zip(scales).enumerate();
    rows.with_min_len(MIN_ELEMENTS.div_ceil(width)).for_each(|(row, (levels, scale))| {
        with_scratch(|lines| {
            let wide: &mut [f32] = Arena::new(lines, 4 * width, 1).take(width);
            x.read(row * width, wide);
            let largest = wide.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let fit = wide.iter().all(|x| x.is_finite());
            *scale = if fit { largest / 127.0 } else { f32::INFINITY };
            let level = |x: f32| (x / *scale).round_ties_even().clamp(-127.0, 127.0) as i8;
            let zero = !fit || *scale == 0.0;
            wide.iter().zip(levels).for_each(|(&x, out)| *out = if zero { 0 } else { level(x) });
        });
    });
}

/// Element = level × scale of its row.
///
/// # Panics
///
/// When `y` has another length than `levels`, or the rows do not divide it.
pub fn dequantise(levels: &[i8], scales: &[f32], y: ElementsMut<'_>) {
    assert_eq!(levels.len(), y.len(), "one element for each level");
    match y {
        ElementsMut::F32(y) => rows(levels, scales, y, |x| x),
        ElementsMut::F16(y) => rows(levels, scales, y, f16::from_f32),
        ElementsMut::BF16(y) => rows(levels, scales, y, bf16::from_f32),
    }
}

fn rows<T: Send>(levels: &[i8], scales: &[f32], y: &mut [T], store: impl Fn(f32) -> T + Sync) {
    let width = width(levels.len(), scales.len()).max(1);
    let rows = levels.par_chunks_exact(width).zip(scales).zip(y.par_chunks_exact_mut(width));
    rows.with_min_len(MIN_ELEMENTS.div_ceil(width)).for_each(|((levels, &scale), y)| {
        levels.iter().zip(y).for_each(|(&level, y)| *y = store(f32::from(level) * scale));
    });
}

fn width(elements: usize, rows: usize) -> usize {
    let width = elements.checked_div(rows).unwrap_or(0);
    assert_eq!(width * rows, elements, "whole rows");
    width
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_by_hand() {
        let x = [127.0, -2.5, 1.5, 0.4, 0.0, 0.0, 0.0, 0.0, 1.0, f32::NAN, 2.0, 3.0];
        let (mut levels, mut scales) = ([9; 12], [9.0; 3]);
        quantise(Elements::F32(&x), &mut levels, &mut scales);
        assert_eq!(levels, [127, -2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(scales, [1.0, 0.0, f32::INFINITY]);
        let mut y = [9.0; 12];
        dequantise(&levels, &scales, ElementsMut::F32(&mut y));
        assert_eq!(y[..8], [127.0, -2.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        assert!(y[8..].iter().all(|y| y.is_nan()));
    }
}
