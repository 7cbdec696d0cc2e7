//! What a suite leaves out because it would take too long here.
//!
//! A suite has a total time. A problem is run where what is left of it holds its whole line: drawing inputs, the reference, and the
//! runs. How long a run takes is judged by what ran before it, before anything is drawn, and again by the run that is checked.

use std::time::Instant;

use super::measure::Settings;
use super::task::{Refusal, Task};
use super::work::Work;

/// A run that lasts as long leaves a suite with a total time too few others, so that fewer runs are measured.
const LONG_RUN: f64 = 2.0;

/// Fewest measured runs of those.
const LEAST_OF_LONG: usize = 3;

/// How to run a problem all the same.
const END: &str = "; --all runs it, and problems given by --problem have no such limit";

/// How fast this bench has been, and what time it has left.
#[derive(Debug)]
pub(super) struct Pace {
    settings: Settings,
    started: Instant,
    /// Exact flops a second of the latest problem of each kind, the latest at the end.
    rates: Vec<(Kind, f64)>,
    /// Most seconds that drawing and checking a problem took, without its run.
    checking: f64,
    /// Seconds of runs that are sure to come.
    pledged: f64,
}

/// What problems have in common that are about as fast: techniques and features.
type Kind = (String, Vec<String>);

fn kind(work: &Work) -> Kind {
    (work.path.clone(), work.features.clone())
}

impl Pace {
    pub fn new(settings: Settings) -> Self {
        Self { settings, started: Instant::now(), rates: Vec::new(), checking: 0.0, pledged: 0.0 }
    }

    /// Remembers how long a run of some work takes.
    pub fn learn(&mut self, work: &Work, seconds: f64) {
        let rate = work.flops_exact as f64 / seconds;
        if rate.is_finite() && rate > 0.0 {
            self.rates.retain(|(known, _)| *known != kind(work));
            self.rates.push((kind(work), rate));
        }
    }

    /// Remembers what drawing and checking a problem took.
    pub fn checked(&mut self, seconds: f64) {
        self.checking = self.checking.max(seconds);
    }

    /// Runs of so many seconds are sure to come.
    pub fn pledge(&mut self, seconds: f64) {
        self.pledged += self.measuring(seconds);
    }

    /// Those that were to come have come.
    pub fn settle(&mut self) {
        self.pledged = 0.0;
    }

    /// Why a problem is left out before its inputs are drawn.
    pub fn before(&self, work: &Work, task: &Task) -> Option<String> {
        if task.refusal == Refusal::Fail {
            return None;
        }
        let Some(run) = self.estimate(work) else {
            let (_, total) = self.left().filter(|(left, _)| *left <= 0.0)?;
            return Some(format!("the lines before it took the {total:.0} s that this suite has{END}"));
        };
        // The run that is checked, then those that are measured.
        let line = self.checking + run + self.measuring(run);
        self.too_slow(run, "would take").or_else(|| self.too_late("would take", run, line))
    }

    /// Why a problem is left out whose one run has taken so many seconds.
    pub fn after(&self, seconds: f64, task: &Task) -> Option<String> {
        if task.refusal == Refusal::Fail {
            return None;
        }
        let line = self.checking + self.measuring(seconds);
        self.too_slow(seconds, "takes").or_else(|| self.too_late("takes", seconds, line))
    }

    /// Fewest measured runs of a problem whose run takes so long.
    pub fn least_runs(&self, seconds: f64) -> usize {
        let least = self.settings.least_runs;
        if self.settings.total.is_some() && seconds >= LONG_RUN { least.min(LEAST_OF_LONG) } else { least }
    }

    /// Seconds of the measured runs of a problem.
    fn measuring(&self, seconds: f64) -> f64 {
        match self.settings.runs {
            Some(runs) => runs as f64 * seconds,
            None => (self.least_runs(seconds) as f64 * seconds).max(self.settings.budget.as_secs_f64()),
        }
    }

    /// Seconds of one run at the rate of the latest problem of its kind, else of the fastest of any.
    fn estimate(&self, work: &Work) -> Option<f64> {
        let same = self.rates.iter().find(|(known, _)| *known == kind(work)).map(|(_, rate)| *rate);
        let rate = same.or_else(|| self.rates.iter().map(|(_, rate)| *rate).reduce(f64::max))?;
        Some(work.flops_exact as f64 / rate)
    }

    fn too_slow(&self, seconds: f64, takes: &str) -> Option<String> {
        let longest = self.settings.longest_run?.as_secs_f64();
        (seconds > longest).then(|| {
            format!("one run {takes} about {seconds:.1} s here, more than the {longest} s that a suite allows{END}")
        })
    }

    /// Why a line does not end within the total time.
    fn too_late(&self, takes: &str, run: f64, line: f64) -> Option<String> {
        let (left, total) = self.left()?;
        (line > left).then(|| {
            format!(
                "one run {takes} about {run:.1} s here and its line {line:.0} s, more than the {:.0} s that are left \
                 of the suite's {total:.0} s{END}",
                left.max(0.0)
            )
        })
    }

    /// Seconds that are left, and of how many; `None` where there is no end.
    fn left(&self) -> Option<(f64, f64)> {
        let total = self.settings.total?;
        let left = total.saturating_sub(self.started.elapsed()).as_secs_f64() - self.pledged;
        Some((left, total.as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pace(total: u64) -> Pace {
        let (longest_run, total) = (Some(Duration::from_secs(20)), Some(Duration::from_secs(total)));
        Pace::new(Settings { longest_run, total, ..Settings::default() })
    }

    fn work(path: &str, flops_exact: u64) -> Work {
        Work { path: path.into(), flops_exact, ..Work::default() }
    }

    fn task() -> Task {
        Task::attention("fa", &"b=1,h=1,s=4,d=4".parse().unwrap()).unwrap()
    }

    #[test]
    fn what_does_not_fit_is_left_out_before_and_after_its_first_run() {
        let mut pace = pace(100);
        assert_eq!(pace.before(&work("x", 1_000), &task()), None);
        pace.learn(&work("x", 1_000), 1.0);
        pace.checked(10.0);
        // 10 s of checking, one run that is checked and three that are measured, of 19 s each.
        assert_eq!(pace.before(&work("x", 19_000), &task()), None);
        let reason = pace.before(&work("x", 20_000), &task());
        assert_eq!(reason, None, "10 + 4 · 20 = 90 s");
        pace.checked(30.0);
        let reason = pace.before(&work("x", 20_000), &task()).unwrap();
        let expected = "one run would take about 20.0 s here and its line 110 s, more than the 100 s that are left of";
        assert!(reason.starts_with(expected), "{reason}");
        assert!(pace.after(20.0, &task()).is_none(), "30 + 3 · 20 = 90 s");
        assert!(pace.after(21.0, &task()).unwrap().starts_with("one run takes about 21.0 s here, more than the 20 s"));
        // Two ways in turns: the first one's runs are still to come.
        pace.pledge(5.0);
        assert!(pace.after(20.0, &task()).unwrap().contains("more than the 85 s that are left"));
        let asked_for = Task { refusal: Refusal::Fail, ..task() };
        assert_eq!((pace.before(&work("x", 1 << 40), &asked_for), pace.after(1e9, &asked_for)), (None, None));
    }

    #[test]
    fn a_kind_is_judged_by_its_own_rate() {
        let mut pace = pace(1000);
        pace.learn(&work("fast", 1_000), 0.5);
        pace.learn(&work("slow", 1_000), 4.0);
        let run = |path: &str| pace.estimate(&work(path, 1_000)).unwrap();
        assert_eq!([run("fast"), run("slow"), run("other")], [0.5, 4.0, 0.5]);
        pace.learn(&work("slow", 1_000), 2.0);
        assert_eq!(pace.estimate(&work("slow", 1_000)), Some(2.0));
        // Nothing is learnt from what did nothing.
        pace.learn(&work("slow", 0), 1.0);
        assert_eq!(pace.estimate(&work("slow", 1_000)), Some(2.0));
    }

    #[test]
    fn long_runs_are_fewer_where_the_suite_has_an_end() {
        let endless = Pace::new(Settings::default());
        assert_eq!([pace(9).least_runs(1.9), pace(9).least_runs(2.0), endless.least_runs(2.0)], [5, 3, 5]);
        // A budget that no five runs fill is filled with more of them.
        assert_eq!([pace(9).measuring(0.1), pace(9).measuring(1.0), pace(9).measuring(4.0)], [1.5, 5.0, 12.0]);
        let asked_for = Pace::new(Settings { runs: Some(7), ..Settings::default() });
        assert_eq!(asked_for.measuring(4.0), 28.0);
    }

    #[test]
    fn no_time_at_all() {
        let reason = pace(0).before(&work("x", 1), &task()).unwrap();
        assert!(reason.starts_with("the lines before it took the 0 s"), "{reason}");
    }
}
