//! Check, then time.

use std::time::{Duration, Instant};

use super::cold::CacheState;
use super::host::{processor, too_large};
use super::report::{Check, Line, StepTime, Timing, Versus};
use super::roofline::{Roofline, threads};
use super::statistics::Statistics;
use super::stopwatch::Stopwatch;
use super::task::{Refusal, Task};
use super::warnings::{Circumstances, warnings};
use super::work::Work;
use crate::capabilities::Backend;
use crate::compare::{Comparison, NanMeans, Tolerance, compare};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::gpu::adapters;
use crate::op::Rows;
use crate::plan::{Plan, StepDescription};
use crate::tensor::HostTensor;

/// How to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Most time for runs before the clock counts; they end sooner when two batches of them take the same.
    pub warm_up: Duration,
    /// Time for measured runs; there are at least `least_runs` all the same.
    pub budget: Duration,
    /// Fewest measured runs.
    pub least_runs: usize,
    /// So many measured runs, whatever time they take.
    pub runs: Option<usize>,
    /// What a run finds in the caches.
    pub cache: CacheState,
    /// A problem of a suite whose one run takes longer is skipped: judging by the fastest line before it, then by the run
    /// that is checked.
    pub longest_run: Option<Duration>,
    /// Once the bench is this old, the problems of a suite that are left are skipped.
    pub total: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            warm_up: Duration::from_secs(1),
            budget: Duration::from_millis(1500),
            least_runs: 5,
            runs: None,
            cache: CacheState::default(),
            longest_run: Some(Duration::from_millis(1500)),
            total: None,
        }
    }
}

/// Measures problems on one device, one after the other.
#[derive(Debug)]
pub struct Bench {
    /// Git commit of the program that measures, if it knows: every line has it.
    pub commit: Option<String>,
    /// Peaks of the device, if they are known: lines say how near they come.
    pub roofline: Option<Roofline>,
    device: Device,
    settings: Settings,
    driver: String,
    cpu: String,
    stopwatch: Stopwatch,
    started: Instant,
    /// Exact flops a second of the fastest problem so far.
    rate: Option<f64>,
}

/// A plan whose result was right.
struct Candidate {
    plan: Plan,
    work: Work,
    line: Line,
}

/// What comes of a task before it is timed.
enum Prepared {
    Right(Box<Candidate>),
    /// Skipped or wrong.
    Told(Box<Line>),
}

impl Bench {
    /// A bench for this device.
    ///
    /// # Errors
    /// A device that is lost, or without memory for what empties its caches.
    pub fn new(device: Device, settings: Settings) -> Result<Self> {
        let name = device.name();
        let on_gpu = device.capabilities().backend == Backend::Gpu;
        let listed = if on_gpu { adapters() } else { Vec::new() };
        let driver = listed.into_iter().find(|adapter| adapter.describe() == name).map(|adapter| adapter.driver);
        Ok(Self {
            commit: None,
            roofline: None,
            settings,
            driver: driver.unwrap_or_default(),
            cpu: processor(),
            stopwatch: Stopwatch::new(&device, settings.cache)?,
            started: Instant::now(),
            rate: None,
            device,
        })
    }

    /// What measures runs, in words.
    pub fn clock(&self) -> String {
        self.stopwatch.describe()
    }

    /// Checks a problem, then times it.
    ///
    /// # Errors
    /// A problem that the user asked for and the device cannot run; a lost device.
    pub fn run(&mut self, task: &Task) -> Result<Line> {
        match self.prepare(task)? {
            Prepared::Told(line) => Ok(*line),
            Prepared::Right(candidate) => Ok(self.time(vec![*candidate])?.remove(0)),
        }
    }

    /// Checks two ways to compute a problem, then times them in turns, so that what changes the machine's speed meanwhile
    /// changes both. The second line says how it compares with the first.
    ///
    /// # Errors
    /// As [`Bench::run`].
    pub fn run_against(&mut self, [first, second]: &[Task; 2]) -> Result<[Line; 2]> {
        let (first, second) = match (self.prepare(first)?, self.prepare(second)?) {
            (Prepared::Right(first), Prepared::Right(second)) => {
                let mut lines = self.time(vec![*first, *second])?.into_iter();
                let mut next = || lines.next().expect("a line for each candidate");
                let (first, second) = (next(), next());
                let versus = Versus::new(&first, &second);
                return Ok([first, Line { versus, ..second }]);
            }
            alone => alone,
        };
        let mut finish = |prepared| match prepared {
            Prepared::Told(line) => Ok(*line),
            Prepared::Right(candidate) => self.time(vec![*candidate]).map(|mut lines| lines.remove(0)),
        };
        Ok([finish(first)?, finish(second)?])
    }

    fn prepare(&mut self, task: &Task) -> Result<Prepared> {
        let line = self.line(task);
        let preview = match Plan::preview(&self.device, &task.graph, &task.options) {
            Ok(preview) => preview,
            Err(error) => return refuse(line, task, error),
        };
        let work = Work::new(&preview, task);
        let line = Line { work: Some(work.clone()), ..line };
        let skipped = too_large(&preview, task).or_else(|| self.too_slow(&work, task));
        if let Some(reason) = skipped.or_else(|| self.too_late(&work, task)) {
            return Ok(Prepared::skip(line, reason));
        }
        match Plan::with_options(&self.device, &task.graph, &task.options) {
            Ok(plan) => self.check(Candidate { plan, work, line }, task),
            Err(error) => refuse(line, task, error),
        }
    }

    fn line(&self, task: &Task) -> Line {
        Line {
            commit: self.commit.clone(),
            driver: self.driver.clone(),
            cpu: self.cpu.clone(),
            threads: threads(self.device.capabilities()),
            ..Line::new(&self.device, task)
        }
    }

    /// Runs once and compares.
    fn check(&mut self, mut candidate: Candidate, task: &Task) -> Result<Prepared> {
        let Candidate { plan, line, .. } = &mut candidate;
        let inputs = task.draw();
        for ((name, _), value) in task.inputs.iter().zip(&inputs) {
            plan.write(name, value)?;
        }
        let start = Instant::now();
        plan.submit()?;
        let got = plan.read("out")?;
        let seconds = start.elapsed().as_secs_f64();
        if let Some(reason) = self.skip_longer(seconds, "takes", task) {
            // Those after it need not run to be known as longer.
            self.learn(candidate.work.flops_exact as f64 / seconds);
            return Ok(Prepared::skip(candidate.line, reason));
        }
        let (check, comparison) = check(task, &got, &task.expected(&inputs)?);
        line.check = Some(check);
        if comparison.passed() {
            return Ok(Prepared::Right(Box::new(candidate)));
        }
        Ok(Prepared::Told(Box::new(Line { failed: Some(comparison.to_string()), ..candidate.line })))
    }

    /// Times candidates in turns.
    fn time(&mut self, mut candidates: Vec<Candidate>) -> Result<Vec<Line>> {
        let (stopwatch, settings) = (&mut self.stopwatch, &self.settings);
        for candidate in &mut candidates {
            stopwatch.warm_up(&mut candidate.plan, settings)?;
        }
        let mut plans: Vec<_> = candidates.iter_mut().map(|candidate| &mut candidate.plan).collect();
        let samples = stopwatch.sample(&mut plans, settings)?;
        candidates.into_iter().zip(samples).map(|(candidate, samples)| self.finish(candidate, &samples)).collect()
    }

    fn finish(&mut self, mut candidate: Candidate, samples: &[f64]) -> Result<Line> {
        let clock = self.stopwatch.describe();
        let timing = Timing::new(samples, [&clock, self.stopwatch.cache().name()], &candidate.work);
        self.learn(timing.tflops_exact * 1e12);
        let software = self.device.capabilities().software;
        let bound = self.roofline.as_ref().and_then(|peaks| peaks.bound(&candidate.work, timing.median_ms * 1e-3));
        let timing = Timing { bound, ..timing };
        let warnings = warnings(&timing, Circumstances { software, subtracted: self.stopwatch.subtracted() });
        let steps = steps(&mut candidate.plan, &timing, &mut self.stopwatch)?;
        Ok(Line { timing: Some(timing), steps, warnings, ..candidate.line })
    }

    fn learn(&mut self, rate: f64) {
        self.rate = Some(self.rate.map_or(rate, |fastest| fastest.max(rate)));
    }

    /// Seconds of one run at the rate of the fastest line so far.
    fn estimate(&self, work: &Work) -> Option<f64> {
        self.rate.filter(|&rate| rate > 0.0).map(|rate| work.flops_exact as f64 / rate)
    }

    fn too_slow(&self, work: &Work, task: &Task) -> Option<String> {
        self.skip_longer(self.estimate(work)?, "would take", task)
    }

    fn skip_longer(&self, seconds: f64, takes: &str, task: &Task) -> Option<String> {
        let longest = self.settings.longest_run?.as_secs_f64();
        (task.refusal == Refusal::Skip && seconds > longest).then(|| {
            format!(
                "one run {takes} about {seconds:.1} s here, more than the {longest} s that a suite allows; \
                 --all runs it, and problems given by --problem have no such limit"
            )
        })
    }

    fn too_late(&self, work: &Work, task: &Task) -> Option<String> {
        let total = self.settings.total?;
        let estimate =
            self.estimate(work).map_or_else(String::new, |seconds| format!(" (one run: about {seconds:.1} s)"));
        (task.refusal == Refusal::Skip && self.started.elapsed() > total).then(|| {
            format!("the lines before took the {} s that this suite has; --all runs it{estimate}", total.as_secs())
        })
    }
}

impl Prepared {
    fn skip(line: Line, reason: String) -> Self {
        Self::Told(Box::new(line.skip(reason)))
    }
}

/// Runs that time each step.
const PROFILED: usize = 5;

/// What each step of a plan takes.
fn steps(plan: &mut Plan, timing: &Timing, stopwatch: &mut Stopwatch) -> Result<Vec<StepTime>> {
    let steps = plan.describe().steps;
    let time = |step: &StepDescription, ms: f64| {
        let (step, flops, bytes) = (step.technique_and_reason(), step.cost.flops, step.cost.bytes());
        StepTime { step, ms, flops, bytes }
    };
    if let [step] = &steps[..] {
        return Ok(vec![time(step, timing.median_ms)]);
    }
    let profiles = (0..PROFILED).map(|_| stopwatch.profile(plan)).collect::<Result<Vec<_>>>()?;
    let median = |at: usize| {
        let seconds: Vec<_> = profiles.iter().map(|profile| profile[at]).collect();
        Statistics::new(&seconds).map_or(0.0, |seconds| seconds.median)
    };
    Ok(steps.iter().enumerate().map(|(at, step)| time(step, median(at) * 1e3)).collect())
}

/// A device that lacks what a task needs: a skip, or an error where the user asked for this very task.
fn refuse(line: Line, task: &Task, error: Error) -> Result<Prepared> {
    match (&error, task.refusal) {
        (Error::Unsupported { .. } | Error::TooLarge { .. }, Refusal::Skip) => {
            Ok(Prepared::skip(line, error.to_string()))
        }
        _ => Err(error),
    }
}

fn check(task: &Task, got: &HostTensor, expected: &HostTensor) -> (Check, Comparison) {
    let rows = task.rows();
    let nan = if rows == Rows::All { NanMeans::Nan } else { NanMeans::NotSampled };
    let comparison = compare(got, expected, task.tolerance, nan);
    let scale = expected.to_f64().into_iter().filter(|x| x.is_finite()).fold(0.0, |max: f64, x| max.max(x.abs()));
    let Tolerance { of_scale, absolute, .. } = task.tolerance;
    let check = Check {
        max_error: comparison.error_of_scale * scale,
        error_of_scale: comparison.error_of_scale,
        tolerance_of_scale: if absolute == 0.0 { of_scale } else { of_scale + absolute / scale },
        checked_rows: match rows {
            Rows::All => "all".into(),
            Rows::Every(n) => format!("1 in {n}"),
        },
    };
    (check, comparison)
}

#[cfg(test)]
mod tests {
    use super::super::host::free_bytes;
    use super::*;

    const SHORT: Settings = Settings {
        warm_up: Duration::ZERO,
        budget: Duration::ZERO,
        least_runs: 2,
        runs: None,
        cache: CacheState::Warm,
        longest_run: None,
        total: None,
    };

    fn task() -> Task {
        Task::attention("problem", &"b=1,h=2,s=9,d=8,causal".parse().unwrap()).unwrap()
    }

    fn run(task: &Task, settings: Settings) -> Result<Line> {
        Bench::new(Device::cpu(), settings)?.run(task)
    }

    #[test]
    fn a_right_result_is_timed() {
        let line = run(&task(), SHORT).unwrap();
        assert_eq!((line.timing.unwrap().runs, line.failed, line.skipped), (2, None, None));
        assert_eq!(line.check.unwrap().checked_rows, "all");
    }

    #[test]
    fn a_wrong_result_is_not_timed() {
        let wrong = Task {
            definition: Task::attention("problem", &"b=1,h=2,s=9,d=8".parse().unwrap()).unwrap().definition,
            ..task()
        };
        let line = run(&wrong, SHORT).unwrap();
        assert!(line.failed.unwrap().contains("elements outside") && line.timing.is_none() && line.check.is_some());
    }

    #[test]
    fn limits_skip_what_a_suite_asks_for_and_nothing_else() {
        let limits = Settings { longest_run: Some(Duration::ZERO), ..SHORT };
        assert!(run(&task(), limits).unwrap().skipped.unwrap().contains("one run takes about"));
        assert!(run(&Task { refusal: Refusal::Fail, ..task() }, limits).unwrap().timing.is_some());
        let mut bench = Bench::new(Device::cpu(), limits).unwrap();
        assert!(bench.run(&task()).unwrap().skipped.unwrap().contains("one run takes about"));
        let like_it = bench.run(&task()).unwrap();
        assert!(like_it.skipped.unwrap().contains("one run would take about") && like_it.check.is_none());
        let late = Settings { total: Some(Duration::ZERO), ..SHORT };
        assert!(run(&task(), late).unwrap().skipped.unwrap().contains("the lines before took"));
    }

    #[test]
    fn a_technique_that_is_not_offered() {
        let mut task = task();
        task.options.techniques.push(("attention_fused".into(), "attention_none".into()));
        assert!(run(&task, SHORT).unwrap().skipped.unwrap().contains("attention_none"));
        assert!(matches!(run(&Task { refusal: Refusal::Fail, ..task }, SHORT), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn what_does_not_fit_the_host_is_skipped() {
        let task = Task::attention("problem", &"b=512,h=32,s=4096,d=60,strategy=unfused".parse().unwrap()).unwrap();
        let line = run(&task, SHORT).unwrap();
        assert!(free_bytes().is_none() || line.skipped.unwrap().contains("bytes of the host's memory"));
    }

    #[test]
    fn a_line_says_how_it_was_measured() {
        let cold = Settings { cache: CacheState::Cold, runs: Some(3), ..SHORT };
        let mut bench = Bench::new(Device::cpu(), cold).unwrap();
        bench.commit = Some("abc".into());
        let line = bench.run(&task()).unwrap();
        assert_eq!((line.commit.as_deref(), line.threads), (Some("abc"), rayon::current_num_threads()));
        let (timing, [step]) = (line.timing.unwrap(), &line.steps[..]) else { panic!("{:?}", line.steps) };
        assert_eq!((timing.runs, timing.cache.as_str(), timing.clock.as_str()), (3, "cold", "host clock"));
        assert_eq!((step.step.as_str(), step.ms), ("attention_native", timing.median_ms));
    }

    #[test]
    fn two_ways_are_measured_in_turns() {
        let unfused = "b=1,h=2,s=9,d=8,causal,strategy=unfused".parse().unwrap();
        let tasks = [task(), Task::attention("problem", &unfused).unwrap()];
        let [first, second] = Bench::new(Device::cpu(), SHORT).unwrap().run_against(&tasks).unwrap();
        let versus = second.versus.unwrap();
        let medians = [first.timing.unwrap(), second.timing.unwrap()].map(|timing| timing.median_ms);
        assert!((versus.ratio - medians[1] / medians[0]).abs() < 1e-9 * versus.ratio, "{versus:?}");
        assert_eq!((versus.versus.as_str(), first.versus), ("attention_native", None));
        assert!(second.steps.len() > 1 && second.steps.iter().all(|step| step.ms > 0.0), "{:?}", second.steps);
    }

    #[test]
    fn what_cannot_run_has_no_ratio() {
        let mut other = task();
        other.options.techniques.push(("attention_fused".into(), "attention_none".into()));
        let [first, second] = Bench::new(Device::cpu(), SHORT).unwrap().run_against(&[task(), other]).unwrap();
        assert!(first.timing.is_some() && second.skipped.is_some() && second.versus.is_none());
    }
}
