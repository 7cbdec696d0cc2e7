//! Order statistics of durations.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

/// Summary of a set of durations, in their own unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics {
    /// How many.
    pub runs: usize,
    /// Half are shorter.
    pub median: f64,
    /// One in twenty is shorter.
    pub p05: f64,
    /// One in twenty is longer.
    pub p95: f64,
    /// One in four is shorter.
    pub first_quartile: f64,
    /// Third quartile less the first.
    pub iqr: f64,
    /// The shortest.
    pub min: f64,
    /// The longest.
    pub max: f64,
    /// How many lie more than 1.5 interquartile ranges outside the quartiles (Tukey).
    pub outliers: usize,
}

impl Statistics {
    /// Summary of at least one finite number; `None` where there is none.
    pub fn new(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (first, third) = (quantile(&sorted, 0.25), quantile(&sorted, 0.75));
        let iqr = third - first;
        let inside = first - 1.5 * iqr..=third + 1.5 * iqr;
        Some(Self {
            runs: sorted.len(),
            median: quantile(&sorted, 0.5),
            p05: quantile(&sorted, 0.05),
            p95: quantile(&sorted, 0.95),
            first_quartile: first,
            iqr,
            min,
            max,
            outliers: sorted.iter().filter(|sample| !inside.contains(sample)).count(),
        })
    }
}

/// How much longer one set of durations is than another, and within what bounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Median of the second over that of the first.
    pub ratio: f64,
    /// Lower bound of the ratio at 95 % confidence.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// Sets that are drawn for a standard deviation, which is then known within some 4 %.
const DRAWN: usize = 300;

/// The standard deviation of a statistic of some numbers by the bootstrap: they are drawn anew from themselves, by a generator with a
/// fixed seed.
pub(super) fn deviation(numbers: &[f64], statistic: impl Fn(&[f64]) -> f64) -> f64 {
    let mut random = StdRng::seed_from_u64(1);
    let mut draw = || -> Vec<f64> { numbers.iter().map(|_| numbers[random.random_range(0..numbers.len())]).collect() };
    let values: Vec<f64> = (0..DRAWN).map(|_| statistic(&draw())).collect();
    let mean = values.iter().sum::<f64>() / DRAWN as f64;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / DRAWN as f64).sqrt()
}

/// Resampled pairs of sets: the bounds are the 25th from either end, and move by about 1 % of their distance when repeated.
const RESAMPLES: usize = 1000;

/// The ratio of the medians, `b` over `a`, with its 95 % interval by the percentile bootstrap: each set is drawn anew from itself,
/// by a generator with a fixed seed, so that equal samples give equal bounds. NaN where a set is empty.
pub fn ratio_interval(a: &[f64], b: &[f64]) -> Interval {
    if a.is_empty() || b.is_empty() {
        return Interval { ratio: f64::NAN, low: f64::NAN, high: f64::NAN };
    }
    let mut random = StdRng::seed_from_u64(1);
    let mut drawn = Vec::new();
    let mut resampled = |set: &[f64]| {
        drawn.clear();
        drawn.extend((0..set.len()).map(|_| set[random.random_range(0..set.len())]));
        median(&mut drawn)
    };
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(|_| resampled(b) / resampled(a)).collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = median(&mut b.to_vec()) / median(&mut a.to_vec());
    Interval { ratio, low: quantile(&ratios, 0.025), high: quantile(&ratios, 0.975) }
}

/// The median of at least one number, which are put into another order.
fn median(samples: &mut [f64]) -> f64 {
    let half = samples.len() / 2;
    let even = samples.len().is_multiple_of(2);
    let (below, &mut above, _) = samples.select_nth_unstable_by(half, f64::total_cmp);
    if even { (below.iter().copied().fold(f64::MIN, f64::max) + above) / 2.0 } else { above }
}

/// Linear between the two nearest samples (type 7 of Hyndman and Fan, the default of NumPy and R).
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let statistics = Statistics::new(&[5.0, 1.0, 3.0, 2.0, 4.0]).unwrap();
        let (p05, p95, first_quartile) = (1.2, 4.8, 2.0);
        let wanted =
            Statistics { runs: 5, median: 3.0, p05, p95, first_quartile, iqr: 2.0, min: 1.0, max: 5.0, outliers: 0 };
        assert!((statistics.p05 - wanted.p05).abs() < 1e-12 && (statistics.p95 - wanted.p95).abs() < 1e-12);
        assert_eq!(Statistics { p05: wanted.p05, p95: wanted.p95, ..statistics }, wanted);
        assert_eq!(Statistics::new(&[1.0, 2.0]).unwrap().median, 1.5);
    }

    #[test]
    fn one_sample_and_none() {
        let one = Statistics::new(&[7.0]).unwrap();
        assert_eq!((one.median, one.iqr, one.p95, one.outliers), (7.0, 0.0, 7.0, 0));
        assert_eq!(Statistics::new(&[]), None);
    }

    #[test]
    fn outliers_by_hand() {
        // Quartiles 2 and 4: outside are those below −1 and above 7.
        assert_eq!(Statistics::new(&[1.0, 2.0, 3.0, 4.0, 100.0]).unwrap().outliers, 1);
        assert_eq!(Statistics::new(&[1.0, 2.0, 3.0, 4.0, 7.0]).unwrap().outliers, 0);
    }

    #[test]
    fn medians_by_hand() {
        assert_eq!([median(&mut [3.0]), median(&mut [4.0, 1.0]), median(&mut [9.0, 1.0, 2.0])], [3.0, 2.5, 2.0]);
        assert_eq!(median(&mut [5.0, 7.0, 1.0, 6.0]), 5.5);
    }

    #[test]
    fn deviation_of_a_mean() {
        let numbers: Vec<f64> = (0..100).map(f64::from).collect();
        let mean = |numbers: &[f64]| numbers.iter().sum::<f64>() / numbers.len() as f64;
        // σ of 0 to 99 is 28.87, that of the mean of a hundred a tenth of it.
        let found = deviation(&numbers, mean);
        assert!((2.6..3.2).contains(&found), "{found}");
        assert_eq!(deviation(&[2.0; 5], mean), 0.0);
    }

    #[test]
    fn a_ratio_lies_in_its_interval() {
        let noisy = |scale: f64| (0..40).map(|at| scale * (1.0 + 0.01 * f64::from(at * 17 % 11))).collect::<Vec<_>>();
        let interval = ratio_interval(&noisy(2.0), &noisy(3.0));
        assert!((interval.ratio - 1.5).abs() < 1e-12, "{interval:?}");
        assert!(interval.low < 1.5 && 1.5 < interval.high && interval.high - interval.low < 0.15, "{interval:?}");
        assert_eq!(interval, ratio_interval(&noisy(2.0), &noisy(3.0)));
        let same = ratio_interval(&noisy(2.0), &noisy(2.0));
        assert!(same.low <= 1.0 && 1.0 <= same.high, "{same:?}");
    }

    #[test]
    fn intervals_of_few_samples() {
        assert_eq!(ratio_interval(&[2.0], &[3.0]), Interval { ratio: 1.5, low: 1.5, high: 1.5 });
        assert!(ratio_interval(&[], &[3.0]).ratio.is_nan() && ratio_interval(&[1.0], &[]).low.is_nan());
    }

    /// Of 200 pairs of sets from one distribution, about 190 intervals must hold 1.
    #[test]
    fn intervals_hold_the_truth_as_often_as_they_say() {
        let mut random = StdRng::seed_from_u64(7);
        let mut draw = || (0..25).map(|_| 1.0 + random.random::<f64>()).collect::<Vec<_>>();
        let held = (0..200).filter(|_| {
            let interval = ratio_interval(&draw(), &draw());
            interval.low <= 1.0 && 1.0 <= interval.high
        });
        let held = held.count();
        assert!((180..=199).contains(&held), "{held} of 200");
    }
}
