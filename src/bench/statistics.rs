//! Order statistics of durations.

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
    /// Third quartile less the first.
    pub iqr: f64,
    /// The shortest.
    pub min: f64,
    /// How many lie more than 1.5 interquartile ranges outside the quartiles (Tukey).
    pub outliers: usize,
}

impl Statistics {
    /// Summary of at least one finite number; `None` where there is none.
    pub fn new(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let min = *sorted.first()?;
        let (first, third) = (quantile(&sorted, 0.25), quantile(&sorted, 0.75));
        let iqr = third - first;
        let inside = first - 1.5 * iqr..=third + 1.5 * iqr;
        Some(Self {
            runs: sorted.len(),
            median: quantile(&sorted, 0.5),
            p05: quantile(&sorted, 0.05),
            p95: quantile(&sorted, 0.95),
            iqr,
            min,
            outliers: sorted.iter().filter(|sample| !inside.contains(sample)).count(),
        })
    }
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
        let wanted = Statistics { runs: 5, median: 3.0, p05: 1.2, p95: 4.8, iqr: 2.0, min: 1.0, outliers: 0 };
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
}
