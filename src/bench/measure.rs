//! Check, then time.

use std::time::{Duration, Instant};

use super::cold::CacheState;
use super::host::{parts, processor, too_large};
use super::pace::Pace;
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
use crate::op::Rows;
use crate::plan::{Plan, StepDescription};
use crate::tensor::HostTensor;

/// How to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Most time for runs before the clock counts, of which the run that is checked is the first; they end sooner when two batches
    /// of them take the same.
    pub warm_up: Duration,
    /// Time for measured runs; there are at least `least_runs` all the same.
    pub budget: Duration,
    /// Fewest measured runs.
    pub least_runs: usize,
    /// So many measured runs, whatever time they take.
    pub runs: Option<usize>,
    /// What a run finds in the caches.
    pub cache: CacheState,
    /// A problem of a suite whose one run takes longer is skipped: judging by the lines before it, then by the run that is checked.
    pub longest_run: Option<Duration>,
    /// Time for all problems of a suite, of which each is skipped whose line does not fit into what is left; of runs of two seconds or
    /// more three are enough then.
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
    cpu: String,
    stopwatch: Stopwatch,
    pace: Pace,
}

/// A plan whose result was right.
struct Candidate {
    plan: Plan,
    work: Work,
    line: Line,
    /// Of the run that was checked.
    seconds: f64,
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
        Ok(Self {
            commit: None,
            roofline: None,
            settings,
            cpu: processor(),
            stopwatch: Stopwatch::new(&device, settings.cache)?,
            pace: Pace::new(settings),
            device,
        })
    }

    /// The device's adapter, its driver and its interface; `None` on the CPU backend.
    pub fn adapter(&self) -> Option<[String; 3]> {
        let on_gpu = self.device.capabilities().backend == Backend::Gpu;
        parts(&self.device.name()).filter(|_| on_gpu).map(|parts| parts.map(str::to_owned))
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
        if let Some(reason) = too_large(&preview, task).or_else(|| self.pace.before(&work, task)) {
            return Ok(Prepared::skip(line, reason));
        }
        match Plan::with_options(&self.device, &task.graph, &task.options) {
            Ok(plan) => self.check(Candidate { plan, work, line, seconds: 0.0 }, task),
            Err(error) => refuse(line, task, error),
        }
    }

    fn line(&self, task: &Task) -> Line {
        Line {
            commit: self.commit.clone(),
            driver: self.adapter().map_or_else(String::new, |[_, driver, _]| driver),
            cpu: self.cpu.clone(),
            threads: threads(self.device.capabilities()),
            peaks: self.roofline.as_ref().map(Roofline::peaks),
            ..Line::new(&self.device, task)
        }
    }

    /// Runs once and compares.
    fn check(&mut self, mut candidate: Candidate, task: &Task) -> Result<Prepared> {
        let (start, plan) = (Instant::now(), &mut candidate.plan);
        let inputs = task.draw();
        for ((name, _), value) in task.inputs.iter().zip(&inputs) {
            plan.write(name, value)?;
        }
        let submitted = Instant::now();
        plan.submit()?;
        let got = plan.read("out")?;
        let seconds = submitted.elapsed().as_secs_f64();
        // Those after it need not run to be known as longer.
        self.pace.learn(&candidate.work, seconds);
        if let Some(reason) = self.pace.after(seconds, task) {
            return Ok(Prepared::skip(candidate.line, reason));
        }
        candidate.seconds = seconds;
        let (check, comparison) = check(task, &got, &task.expected(&inputs)?);
        candidate.line.check = Some(check);
        self.pace.checked(start.elapsed().as_secs_f64() - seconds);
        if comparison.passed() {
            self.pace.pledge(seconds);
            return Ok(Prepared::Right(Box::new(candidate)));
        }
        Ok(Prepared::Told(Box::new(Line { failed: Some(comparison.to_string()), ..candidate.line })))
    }

    /// Times candidates in turns.
    fn time(&mut self, mut candidates: Vec<Candidate>) -> Result<Vec<Line>> {
        let slowest = candidates.iter().map(|candidate| candidate.seconds).fold(0.0, f64::max);
        let settings = Settings { least_runs: self.pace.least_runs(slowest), ..self.settings };
        for candidate in &mut candidates {
            let warm_up = settings.warm_up.saturating_sub(Duration::from_secs_f64(candidate.seconds));
            self.stopwatch.warm_up(&mut candidate.plan, &Settings { warm_up, ..settings })?;
        }
        let mut plans: Vec<_> = candidates.iter_mut().map(|candidate| &mut candidate.plan).collect();
        let samples = self.stopwatch.sample(&mut plans, &settings)?;
        self.pace.settle();
        candidates.into_iter().zip(samples).map(|(candidate, samples)| self.finish(candidate, &samples)).collect()
    }

    fn finish(&mut self, mut candidate: Candidate, samples: &[f64]) -> Result<Line> {
        let clock = self.stopwatch.describe();
        let timing = Timing::new(samples, [&clock, self.stopwatch.cache().name()], &candidate.work);
        self.pace.learn(&candidate.work, timing.median_ms * 1e-3);
        let software = self.device.capabilities().software;
        let bound = self.roofline.as_ref().and_then(|peaks| peaks.bound(&candidate.work, timing.median_ms * 1e-3));
        let timing = Timing { bound, ..timing };
        let warnings = warnings(&timing, Circumstances { software, subtracted: self.stopwatch.subtracted() });
        let steps = steps(&mut candidate.plan, &timing, &mut self.stopwatch)?;
        Ok(Line { timing: Some(timing), steps, warnings, ..candidate.line })
    }
}

impl Prepared {
    fn skip(line: Line, reason: String) -> Self {
        Self::Told(Box::new(line.skip(reason)))
    }
}

/// Runs that time each step; one is enough where they are long.
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
    let profiled = if timing.median_ms < 1e3 { PROFILED } else { 1 };
    let profiles = (0..profiled).map(|_| stopwatch.profile(plan)).collect::<Result<Vec<_>>>()?;
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
        assert!(run(&task(), late).unwrap().skipped.unwrap().contains("the lines before it took"));
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
