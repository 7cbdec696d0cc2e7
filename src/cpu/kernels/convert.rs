//! Floats into another type.

use rayon::prelude::*;

use super::args::{Elements, ElementsMut};

/// Elements of one task.
const CHUNK: usize = 1 << 14;

/// Rounds every element to nearest even.
///
/// # Panics
///
/// When the lengths differ.
pub fn cast(x: Elements<'_>, y: ElementsMut<'_>) {
    assert_eq!(x.len(), y.len(), "one result for each element");
    match y {
        ElementsMut::F32(y) => y.par_chunks_mut(CHUNK).enumerate().for_each(|(at, y)| x.read(at * CHUNK, y)),
        ElementsMut::F16(y) => parts(y, |at, y| convert(&x, at, ElementsMut::F16(y))),
        ElementsMut::BF16(y) => parts(y, |at, y| convert(&x, at, ElementsMut::BF16(y))),
    }
}

fn parts<T: Send>(y: &mut [T], each: impl Fn(usize, &mut [T]) + Sync) {
    y.par_chunks_mut(CHUNK).enumerate().for_each(|(at, y)| each(at * CHUNK, y));
}

fn convert(x: &Elements<'_>, at: usize, mut y: ElementsMut<'_>) {
    let mut wide = [0.0; 256];
    for start in (0..y.len()).step_by(wide.len()) {
        let part = &mut wide[..(y.len() - start).min(256)];
        x.read(at + start, part);
        y.write(start, part);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn rounds_to_nearest_even_across_tasks() {
        let x: Vec<f32> = (0..40_000).map(|at| 1.0 + at as f32 / 4096.0).collect();
        let mut y = vec![bf16::ZERO; x.len()];
        cast(Elements::F32(&x), ElementsMut::BF16(&mut y));
        assert!(x.iter().zip(&y).all(|(&x, &y)| y == bf16::from_f32(x)));
    }
}
