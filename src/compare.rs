//! Comparing a result with its reference.

use std::fmt;

use crate::tensor::HostTensor;

/// How far an element may be off: `of_scale × max|wanted| + relative × |wanted| + absolute`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Times the largest finite magnitude of the reference.
    pub of_scale: f64,
    /// Times the magnitude of the element itself.
    pub relative: f64,
    /// Whatever the magnitudes.
    pub absolute: f64,
}

impl Tolerance {
    /// A share of the largest magnitude of the reference.
    pub const fn of_scale(of_scale: f64) -> Self {
        Self { of_scale, relative: 0.0, absolute: 0.0 }
    }
}

/// Outcome of a comparison. `passed` only if every compared element is within its tolerance.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Elements compared; NaN in the reference means that the element was not sampled, unless `nan` was said to count.
    pub compared: usize,
    /// Elements outside the tolerance.
    pub failed: usize,
    /// Largest |got − wanted|; infinite when one side is not finite and the other differs.
    pub worst_error: f64,
    /// The tolerance at that element.
    pub worst_tolerance: f64,
    /// Coordinates of that element.
    pub worst_at: Vec<usize>,
    /// Value there.
    pub got: f64,
    /// Value wanted there.
    pub wanted: f64,
    /// Largest error as a share of the largest magnitude of the reference.
    pub error_of_scale: f64,
}

impl Comparison {
    /// Every element was within its tolerance, and there was one, or there were none to compare.
    pub fn passed(&self) -> bool {
        self.failed == 0
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "worst at {:?}: got {:e}, wanted {:e}, off by {:.2e}, tolerance {:.2e}; {} of {} elements outside",
            self.worst_at, self.got, self.wanted, self.worst_error, self.worst_tolerance, self.failed, self.compared
        )
    }
}

/// What a NaN in the reference means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NanMeans {
    /// The row was not computed; skip it.
    NotSampled,
    /// The definition gives NaN; the result must be NaN too.
    Nan,
}

/// Compares every element. A NaN or infinity that the reference lacks is a failure; so is another shape.
pub fn compare(got: &HostTensor, wanted: &HostTensor, tolerance: Tolerance, nan: NanMeans) -> Comparison {
    let (got_values, wanted_values) = (got.to_f64(), wanted.to_f64());
    let scale = wanted_values.iter().filter(|x| x.is_finite()).fold(0.0, |max: f64, x| max.max(x.abs()));
    let mut worst = Worst { excess: f64::NEG_INFINITY, error: 0.0, tolerance: 0.0, index: 0 };
    let (mut compared, mut failed, mut largest) = (0, 0, 0.0_f64);
    if got.shape() != wanted.shape() {
        failed = wanted_values.len().max(1);
    }
    for (index, (&g, &w)) in got_values.iter().zip(&wanted_values).enumerate() {
        if w.is_nan() && nan == NanMeans::NotSampled {
            continue;
        }
        compared += 1;
        let equal = g == w || (g.is_nan() && w.is_nan());
        let error = if equal { 0.0 } else { (g - w).abs() };
        let error = if error.is_nan() { f64::INFINITY } else { error };
        let allowed = tolerance.of_scale * scale + tolerance.absolute + tolerance.relative * finite(w);
        if !(error <= allowed) {
            failed += 1;
        }
        largest = largest.max(error);
        worst.offer(error, allowed, index);
    }
    Comparison {
        compared,
        failed,
        worst_error: worst.error,
        worst_tolerance: worst.tolerance,
        worst_at: coordinates(worst.index, wanted.shape()),
        got: got_values.get(worst.index).copied().unwrap_or(f64::NAN),
        wanted: wanted_values.get(worst.index).copied().unwrap_or(f64::NAN),
        error_of_scale: if largest == 0.0 { 0.0 } else { largest / scale },
    }
}

struct Worst {
    excess: f64,
    error: f64,
    tolerance: f64,
    index: usize,
}

impl Worst {
    /// Keeps the element that exceeds its tolerance most.
    fn offer(&mut self, error: f64, tolerance: f64, index: usize) {
        let excess = error - tolerance;
        if excess > self.excess {
            *self = Self { excess, error, tolerance, index };
        }
    }
}

fn finite(x: f64) -> f64 {
    if x.is_finite() { x.abs() } else { 0.0 }
}

fn coordinates(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut at = vec![0; shape.len()];
    for (axis, &size) in shape.iter().enumerate().rev() {
        at[axis] = index % size.max(1);
        index /= size.max(1);
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(got: &[f64], wanted: &[f64], tolerance: Tolerance) -> Comparison {
        let tensor = |data: &[f64]| HostTensor::f64(&[data.len()], data.to_vec()).unwrap();
        compare(&tensor(got), &tensor(wanted), tolerance, NanMeans::Nan)
    }

    #[test]
    fn finds_the_worst_element() {
        let outcome = check(&[1.0, 2.5, 3.0], &[1.0, 2.0, 4.0], Tolerance::of_scale(0.2));
        assert_eq!((outcome.failed, outcome.worst_at, outcome.worst_error), (1, vec![2], 1.0));
    }

    #[test]
    fn non_finite_values_must_agree() {
        let loose = Tolerance::of_scale(1e9);
        for (got, wanted, passes) in [
            (f64::NAN, 1.0, false),
            (f64::INFINITY, 1.0, false),
            (1.0, f64::INFINITY, false),
            (f64::NEG_INFINITY, f64::INFINITY, false),
            (f64::INFINITY, f64::INFINITY, true),
            (f64::NAN, f64::NAN, true),
            (1.0, f64::NAN, false),
        ] {
            assert_eq!(check(&[got], &[wanted], loose).passed(), passes, "{got} for {wanted}");
        }
    }

    #[test]
    fn shapes_must_agree() {
        assert!(!check(&[1.0, 2.0], &[1.0], Tolerance::of_scale(1.0)).passed());
    }
}
