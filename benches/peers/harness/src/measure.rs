//! The check and the clock, both as in `regard bench`.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{Attention, VARIANTS};

/// Before the clock counts: at least this long, and at least three runs.
const WARM_UP: Duration = Duration::from_millis(200);
/// Fewest measured runs.
const LEAST_RUNS: usize = 5;
/// Most runs that are measured; more tell nothing.
const MOST_RUNS: usize = 10_000;

/// How far a result is from what was expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Deviation {
    /// Largest |got − expected|.
    pub(crate) max: f64,
    /// The same as a share of the largest magnitude expected.
    pub(crate) of_scale: f64,
}

/// Compares what is not NaN in `expected`. A result that is not finite, or has another length, is infinitely far off.
pub(crate) fn check(got: &[f32], expected: &[f64]) -> Deviation {
    if got.len() != expected.len() {
        return Deviation { max: f64::INFINITY, of_scale: f64::INFINITY };
    }
    let (mut max, mut scale) = (0.0_f64, 0.0_f64);
    for (&got, &expected) in got.iter().zip(expected).filter(|(_, expected)| !expected.is_nan()) {
        let difference = (f64::from(got) - expected).abs();
        max = if difference.is_finite() { max.max(difference) } else { f64::INFINITY };
        scale = scale.max(expected.abs());
    }
    Deviation { max, of_scale: max / scale }
}

/// Runs for about this long after a warm-up, alternating the query.
pub(crate) fn time(way: &mut dyn Attention, budget: Duration) -> Statistics {
    let mut variants = (0..VARIANTS.len()).cycle();
    let mut once = || {
        way.select(variants.next().expect("variants repeat"));
        let start = Instant::now();
        way.run();
        start.elapsed()
    };
    let start = Instant::now();
    for run in 1.. {
        once();
        let elapsed = start.elapsed();
        if (elapsed >= WARM_UP && run >= 3) || elapsed >= budget {
            break;
        }
    }
    let mut seconds = Vec::new();
    let start = Instant::now();
    while seconds.len() < LEAST_RUNS || (start.elapsed() < budget && seconds.len() < MOST_RUNS) {
        seconds.push(once().as_secs_f64());
    }
    Statistics::new(seconds)
}

/// Order statistics of durations in seconds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Statistics {
    /// In the order of the runs.
    samples: Vec<f64>,
    median: f64,
    p05: f64,
    p95: f64,
    iqr: f64,
    min: f64,
    max: f64,
    outliers: usize,
}

impl Statistics {
    fn new(samples: Vec<f64>) -> Self {
        let mut seconds = samples.clone();
        seconds.sort_by(f64::total_cmp);
        let (first, third) = (quantile(&seconds, 0.25), quantile(&seconds, 0.75));
        let iqr = third - first;
        let inside = first - 1.5 * iqr..=third + 1.5 * iqr;
        Self {
            median: quantile(&seconds, 0.5),
            p05: quantile(&seconds, 0.05),
            p95: quantile(&seconds, 0.95),
            iqr,
            min: seconds[0],
            max: seconds[seconds.len() - 1],
            outliers: seconds.iter().filter(|sample| !inside.contains(sample)).count(),
            samples,
        }
    }

    pub(crate) fn keys(&self, flops: u64) -> Value {
        json!({
            "clock": "host clock",
            "cache": "warm",
            "runs": self.samples.len(),
            "median_ms": self.median * 1e3,
            "p05_ms": self.p05 * 1e3,
            "p95_ms": self.p95 * 1e3,
            "iqr_ms": self.iqr * 1e3,
            "min_ms": self.min * 1e3,
            "max_ms": self.max * 1e3,
            "outliers": self.outliers,
            "tflops": flops as f64 / self.median / 1e12,
            "samples_ms": self.samples.iter().map(|seconds| seconds * 1e3).collect::<Vec<_>>(),
        })
    }
}

/// Linear between the two nearest samples.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deviations_by_hand() {
        let expected = [1.0, -4.0, f64::NAN];
        assert_eq!(check(&[1.5, -4.0, 9.0], &expected), Deviation { max: 0.5, of_scale: 0.125 });
        assert_eq!(check(&[1.0, f32::NAN, 0.0], &expected).of_scale, f64::INFINITY);
        assert_eq!(check(&[f32::NAN, -4.0, 0.0], &expected).of_scale, f64::INFINITY);
        assert_eq!(check(&[1.0], &expected).of_scale, f64::INFINITY);
    }

    #[test]
    fn statistics_by_hand() {
        let statistics = Statistics::new(vec![5.0, 1.0, 3.0, 2.0, 100.0]);
        assert_eq!((statistics.median, statistics.iqr, statistics.outliers), (3.0, 3.0, 1));
        let keys = statistics.keys(6_000_000_000_000);
        assert_eq!((&keys["tflops"], &keys["runs"], &keys["samples_ms"][1]), (&2.0.into(), &5.into(), &1000.0.into()));
    }
}
