//! What one run says of a problem, and how much longer another takes.
//!
//! What disturbs a run makes it longer, never shorter, and the processes of one program differ more than the runs of one process,
//! as their memory lies elsewhere. So a file may hold several lines of a problem, each of a process of its own. What is compared is
//! a quarter's bound, the first quartile, of each process, as its mean over the faster half of the processes on either side: the slower
//! half may have been disturbed. Of 40 processes of one program on a shared machine of two cores, 7 drawn against 7 gave ratios with
//! a standard deviation of 2.3 %, 15 against 15 of 1.6 %; those of the fastest alone had 3.4 and 2.7 %, as one is fast by chance, and
//! the median ones 2.5 and 2.0 %.

use serde::Serialize;

use super::report::{Line, Timing};
use super::statistics::{Interval, Statistics, deviation};

/// Processes from which their own spread says how far they differ.
const ROUNDS: usize = 5;

/// Standard deviation of one process, as a share of its time, where there are fewer: that of quiet processes of one binary on two
/// virtual cores was 2 to 4 %.
const PROCESSES: f64 = 0.03;

/// Least standard deviation of the faster half, where all processes happen to be alike.
const LEAST: f64 = 0.003;

/// Standard deviations in half of a 95 % interval of a normal distribution.
const NORMAL_95: f64 = 1.96;

/// How far the medians' ratio is from that of the quartiles before it is told.
const APART: f64 = 0.1;

/// What of each process is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// The first quartile of its runs.
    Quartiles,
    /// Its median: a line on either side does not hold its runs.
    Medians,
}

/// How sure the difference between processes is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Spread {
    /// From five processes or more on either side.
    Measured,
    /// There are fewer, and 3 % is assumed.
    Assumed,
}

/// How much longer the newer run takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// Time of the newer by that of the older, with its 95 % interval.
    #[serde(flatten)]
    pub interval: Interval,
    /// The older's time.
    pub old_ms: f64,
    /// The newer's time.
    pub new_ms: f64,
    /// What times are.
    pub basis: Basis,
    /// Where the interval comes from.
    pub spread: Spread,
}

/// What one run says of a problem solved in one way.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Side {
    /// Techniques, if known.
    pub path: Option<String>,
    /// What measured it and whether caches were `cold` or `warm`; missing where nothing was measured.
    pub clock: Option<String>,
    /// Median of the processes' medians; missing where nothing was measured.
    pub median_ms: Option<f64>,
    /// Processes that measured it.
    pub rounds: usize,
    /// Why there is no time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    #[serde(skip)]
    timings: Vec<Timing>,
}

impl Side {
    pub(super) fn new(line: &Line) -> Self {
        let timing = line.timing.as_ref();
        Self {
            path: line.work.as_ref().map(|work| work.path.clone()),
            clock: timing.map(|timing| format!("{}, {} caches", timing.clock, timing.cache)),
            median_ms: timing.map(|timing| timing.median_ms),
            rounds: usize::from(timing.is_some()),
            why: line.failed.clone().or_else(|| line.skipped.clone()),
            timings: timing.cloned().into_iter().collect(),
        }
    }

    /// Processes of the same way.
    pub(super) fn add(&mut self, other: Self) {
        self.timings.extend(other.timings);
        self.rounds = self.timings.len();
        self.median_ms = Statistics::new(&self.times(Basis::Medians)).map(|medians| medians.median);
    }

    /// `cold` or `warm`; `None` where nothing was measured.
    pub(super) fn cache(&self) -> Option<&str> {
        self.timings.first().map(|timing| timing.cache.as_str())
    }

    /// The same path, and the same state of the caches as far as they are known.
    pub(super) fn same_way(&self, other: &Self) -> bool {
        self.path == other.path && (self.cache() == other.cache() || self.cache().is_none() || other.cache().is_none())
    }

    /// How much longer the newer side takes than this one; `None` where one of them has no time.
    pub(super) fn ratio(&self, new: &Self) -> Option<Ratio> {
        let has_samples = |side: &Self| side.timings.iter().all(|timing| !timing.samples_ms.is_empty());
        let basis = if has_samples(self) && has_samples(new) { Basis::Quartiles } else { Basis::Medians };
        let enough = self.rounds.min(new.rounds) >= ROUNDS;
        let spread = if enough { Spread::Measured } else { Spread::Assumed };
        let [(old_ms, before), (new_ms, after)] = [self.faster_half(basis, spread)?, new.faster_half(basis, spread)?];
        let (ratio, factor) = (new_ms / old_ms, (NORMAL_95 * before.hypot(after)).exp());
        let interval = Interval { ratio, low: ratio / factor, high: ratio * factor };
        Some(Ratio { interval, old_ms, new_ms, basis, spread })
    }

    /// What changed besides the time, and what makes the times hard to compare.
    pub(super) fn changes(&self, new: &Self, ratio: Option<Ratio>) -> Vec<String> {
        let mut notes = Vec::new();
        let mut changed = |what: &str, old: &Option<String>, new: &Option<String>| match (old, new) {
            (Some(old), Some(new)) if old != new => notes.push(format!("{what} changed: {old} → {new}")),
            _ => {}
        };
        changed("path", &self.path, &new.path);
        changed("clock", &self.clock, &new.clock);
        if let (Some(ratio), Some(old), Some(new)) = (ratio, self.median_ms, new.median_ms) {
            let of_medians = new / old;
            if (of_medians / ratio.interval.ratio).ln().abs() > APART {
                notes.push(format!("the ratio of the medians is {of_medians:.3}: some runs were disturbed"));
            }
        }
        notes
    }

    /// The time of each process.
    fn times(&self, basis: Basis) -> Vec<f64> {
        let of = |timing: &Timing| match basis {
            Basis::Medians => timing.median_ms,
            Basis::Quartiles => {
                Statistics::new(&timing.samples_ms).map_or(timing.median_ms, |samples| samples.first_quartile)
            }
        };
        self.timings.iter().map(of).collect()
    }

    /// The mean time of the faster half of the processes, and its standard deviation as a share of it.
    fn faster_half(&self, basis: Basis, spread: Spread) -> Option<(f64, f64)> {
        let times = self.times(basis);
        let mean = faster_half(&times)?;
        let of_processes = match spread {
            Spread::Measured => (deviation(&times, |drawn| faster_half(drawn).unwrap_or(mean)) / mean).max(LEAST),
            Spread::Assumed => PROCESSES / (times.len() as f64).sqrt(),
        };
        // Of a median, as if runs were normally distributed: σ is the interquartile range by 1.349.
        let of_runs = |timing: &Timing| 1.253 * timing.iqr_ms / 1.349 / (timing.runs as f64).sqrt() / timing.median_ms;
        let of_runs = self.timings.iter().map(of_runs).fold(f64::MAX, f64::min);
        Some((mean, of_processes.hypot(of_runs)))
    }
}

/// The mean of the smaller half, the middle one included; `None` where there is none.
fn faster_half(times: &[f64]) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = &sorted[..sorted.len().div_ceil(2)];
    (!half.is_empty()).then(|| half.iter().sum::<f64>() / half.len() as f64)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// A process whose median is off by up to 6 %, whose runs spread by 10 %, and which is disturbed now and then.
    fn timing(random: &mut StdRng, ms: f64) -> Timing {
        let ms = ms * (1.0 + random.random_range(-0.06..0.06) * random.random::<f64>());
        let mut samples: Vec<f64> = (0..100).map(|_| ms * random.random_range(0.95..1.05)).collect();
        if random.random_bool(0.1) {
            samples.iter_mut().skip(30).for_each(|sample| *sample *= 1.3);
        }
        let Statistics { median, iqr, min, max, p05, p95, runs, outliers, .. } = Statistics::new(&samples).unwrap();
        let (clock, cache) = ("host clock".into(), "warm".into());
        let [tflops, tflops_exact, gbps] = [0.0; 3];
        let [median_ms, iqr_ms, min_ms, max_ms, p05_ms, p95_ms] = [median, iqr, min, max, p05, p95];
        #[rustfmt::skip]
        let timing = Timing {
            clock, cache, runs, median_ms, p05_ms, p95_ms, iqr_ms, min_ms, max_ms, outliers, tflops, tflops_exact, gbps,
            samples_ms: samples, bound: None,
        };
        timing
    }

    fn side(random: &mut StdRng, ms: f64, rounds: usize) -> Side {
        let timings: Vec<_> = (0..rounds).map(|_| timing(random, ms)).collect();
        let medians: Vec<_> = timings.iter().map(|timing| timing.median_ms).collect();
        let median_ms = Statistics::new(&medians).map(|medians| medians.median);
        Side { path: None, clock: None, median_ms, rounds, why: None, timings }
    }

    /// How many of 200 pairs with this ratio are an alarm at 5 %.
    fn alarms(ratio: f64, rounds: usize) -> usize {
        let mut random = StdRng::seed_from_u64(3);
        let alarm = |_: &usize| {
            let (old, new) = (side(&mut random, 1.0, rounds), side(&mut random, ratio, rounds));
            let Ratio { interval, spread, .. } = old.ratio(&new).unwrap();
            interval.ratio > 1.05 && (spread == Spread::Measured || interval.low > 1.0)
        };
        (0..200).filter(alarm).count()
    }

    #[test]
    fn processes_of_one_program_differ_without_an_alarm() {
        assert!(alarms(1.0, 1) <= 2, "{}", alarms(1.0, 1));
        // These processes differ by more than quiet ones do; one in fifty may pass for slower.
        assert!(alarms(1.0, 7) <= 4, "{}", alarms(1.0, 7));
    }

    #[test]
    fn a_tenth_slower_is_found_in_several_processes() {
        assert!(alarms(1.1, 7) >= 190, "{}", alarms(1.1, 7));
        assert!(alarms(1.3, 1) >= 190, "{}", alarms(1.3, 1));
    }

    #[test]
    fn the_faster_half_by_hand() {
        assert_eq!(faster_half(&[9.0, 1.0, 4.0]), Some(2.5));
        assert_eq!(faster_half(&[9.0, 1.0, 4.0, 2.0]), Some(1.5));
        assert_eq!((faster_half(&[3.0]), faster_half(&[])), (Some(3.0), None));
    }

    #[test]
    fn what_an_interval_is_taken_from() {
        let mut random = StdRng::seed_from_u64(5);
        let (one, five) = (side(&mut random, 1.0, 1), side(&mut random, 1.0, 5));
        let mut bare = one.clone();
        bare.timings[0].samples_ms.clear();
        let of = |old: &Side, new: &Side| old.ratio(new).unwrap();
        assert_eq!((of(&five, &five).spread, of(&five, &five).basis), (Spread::Measured, Basis::Quartiles));
        assert_eq!((of(&one, &five).spread, of(&one, &bare).basis), (Spread::Assumed, Basis::Medians));
        // Within about ±8 % either way: 1.96 · √2 · 3 %.
        for other in [&one, &bare] {
            let interval = of(other, other).interval;
            assert!((0.91..0.93).contains(&interval.low) && interval.ratio == 1.0, "{interval:?}");
        }
        let none = Side { timings: Vec::new(), ..one.clone() };
        assert_eq!(one.ratio(&none), None);
    }

    #[test]
    fn disturbed_medians_are_told() {
        let mut random = StdRng::seed_from_u64(5);
        let old = side(&mut random, 1.0, 1);
        let mut new = old.clone();
        new.timings[0].samples_ms.iter_mut().skip(40).for_each(|sample| *sample *= 2.0);
        new.median_ms = Some(2.0 * old.median_ms.unwrap());
        let ratio = old.ratio(&new);
        assert!(ratio.unwrap().interval.ratio < 1.1, "{ratio:?}");
        assert_eq!(old.changes(&new, ratio), ["the ratio of the medians is 2.000: some runs were disturbed"]);
    }
}
