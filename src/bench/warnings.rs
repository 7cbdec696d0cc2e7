//! What to know before believing a line: what happened, why it matters, what to do.

use super::report::Timing;
use super::statistics::Statistics;

/// Interquartile range, as a share of the median, above which a line carries a warning.
const WIDE_SPREAD: f64 = 0.1;

/// Difference between the medians of the first and the last third of the runs, as a share of the first, above which the
/// machine changed its speed meanwhile.
const DRIFT: f64 = 0.05;

/// Fewer runs than these say little about their spread.
const FEW: usize = 10;

/// Share of a measured peak that no run can reach, but for the noise of measuring both.
const BEYOND: f64 = 1.1;

/// What a device and its clock add to every line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances {
    /// Shaders run on the CPU.
    pub software: bool,
    /// Seconds of an empty submission that were subtracted.
    pub subtracted: f64,
}

/// Every warning that a measurement earns.
pub(super) fn warnings(timing: &Timing, circumstances: Circumstances) -> Vec<String> {
    let mut warnings = Vec::new();
    if timing.iqr_ms > WIDE_SPREAD * timing.median_ms {
        warnings.push(
            "the middle half of the runs spreads over more than 10 % of the median, so small differences mean \
             nothing; stop other work on this machine and repeat"
                .into(),
        );
    }
    if drift(&timing.samples_ms).is_some_and(|drift| drift.abs() > DRIFT) {
        warnings.push(
            "the last third of the runs took more than 5 % longer or shorter than the first, as when clocks change \
             with heat; let the machine settle, or give a longer --budget"
                .into(),
        );
    }
    if timing.runs < FEW {
        warnings.push(format!(
            "there are fewer than {FEW} runs, too few to know their spread; give a longer --budget, or --runs"
        ));
    }
    if circumstances.subtracted > 0.0 && timing.median_ms * 1e-3 < circumstances.subtracted {
        warnings.push(
            "a run takes less than the empty submission that was subtracted, so that it is lost in its noise; \
             measure a larger problem"
                .into(),
        );
    }
    if timing.bound.as_ref().is_some_and(|bound| bound.bound_share > BEYOND) {
        warnings.push(
            "it is faster than the peak that was measured on this device, or its data stay in a cache; where the \
             machine was busy then, `regard info --roofline` measures again"
                .into(),
        );
    }
    if circumstances.software {
        warnings.push(
            "a software device runs shaders on the CPU, so this says nothing about a GPU; \
             use --device cpu for the native backend"
                .into(),
        );
    }
    warnings
}

/// Median of the last third over that of the first, less one; `None` of too few samples.
fn drift(samples: &[f64]) -> Option<f64> {
    let third = samples.len() / 3;
    if third < 3 {
        return None;
    }
    let median = |part: &[f64]| Statistics::new(part).map(|statistics| statistics.median);
    let (first, last) = (median(&samples[..third])?, median(&samples[samples.len() - third..])?);
    (first > 0.0).then_some(last / first - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Work;

    const QUIET: Circumstances = Circumstances { software: false, subtracted: 0.0 };

    fn told(samples: &[f64], circumstances: Circumstances) -> Vec<String> {
        warnings(&Timing::new(samples, ["host clock", "cold"], &Work::default()), circumstances)
    }

    #[test]
    fn steady_runs_earn_none() {
        assert!(told(&[1.0; 12], QUIET).is_empty());
    }

    #[test]
    fn each_is_earned_alone() {
        let spread: Vec<f64> = (0..12).map(|run| if run % 2 == 0 { 1.0 } else { 1.5 }).collect();
        let drift: Vec<f64> = (0..30).map(|run| 1.0 + 0.003 * f64::from(run)).collect();
        let slow = Circumstances { subtracted: 2.0, ..QUIET };
        for (samples, circumstances, expected) in [
            (&spread[..], QUIET, "spreads over more than 10 %"),
            (&drift[..], QUIET, "the last third of the runs"),
            (&[1.0; 9][..], QUIET, "fewer than 10 runs"),
            (&[1.0; 12][..], slow, "less than the empty submission"),
            (&[1.0; 12][..], Circumstances { software: true, ..QUIET }, "a software device"),
        ] {
            let told = told(samples, circumstances);
            assert!(told.len() == 1 && told[0].contains(expected), "{expected}: {told:?}");
        }
    }

    #[test]
    fn drift_by_hand() {
        let samples = [1.0, 1.0, 1.0, 5.0, 5.0, 5.0, 1.1, 1.2, 1.3];
        assert!((drift(&samples).unwrap() - 0.2).abs() < 1e-12);
        assert_eq!(drift(&samples[..8]), None);
    }
}
