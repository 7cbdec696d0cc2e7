//! Check, then time.

use std::time::{Duration, Instant};

use super::report::{Check, Line, StepTime, Timing};
use super::statistics::Statistics;
use super::task::{Refusal, Task};
use super::work::Work;
use crate::capabilities::Backend;
use crate::compare::{Comparison, NanMeans, Tolerance, compare};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::gpu::adapters;
use crate::op::Rows;
use crate::plan::{Clock, Plan, PlanDescription, StepDescription};
use crate::tensor::HostTensor;

/// How long to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Before the clock counts: at least this long, and at least three runs.
    pub warm_up: Duration,
    /// Time for measured runs; there are at least `least_runs` all the same.
    pub budget: Duration,
    /// Fewest measured runs.
    pub least_runs: usize,
    /// A problem of a suite whose one run takes longer is skipped: judging by the fastest line before it, then by the run
    /// that is checked.
    pub longest_run: Duration,
    /// Once the bench is this old, the problems of a suite that are left are skipped.
    pub total: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            warm_up: Duration::from_millis(200),
            budget: Duration::from_millis(1500),
            least_runs: 5,
            longest_run: Duration::from_millis(1500),
            total: None,
        }
    }
}

/// Most runs that are measured; more tell nothing.
const MOST_RUNS: usize = 10_000;

/// Interquartile range, as a share of the median, above which a line carries a warning.
const WIDE_SPREAD: f64 = 0.1;

/// Measures problems on one device, one after the other.
#[derive(Debug)]
pub struct Bench {
    /// Git commit of the program that measures, if it knows: every line has it.
    pub commit: Option<String>,
    device: Device,
    settings: Settings,
    driver: String,
    cpu: String,
    software: bool,
    started: Instant,
    /// Exact flops a second of the fastest line so far.
    rate: Option<f64>,
}

impl Bench {
    /// A bench for this device.
    pub fn new(device: Device, settings: Settings) -> Self {
        let name = device.name();
        let on_gpu = device.capabilities().backend == Backend::Gpu;
        let listed = if on_gpu { adapters() } else { Vec::new() };
        let driver = listed.into_iter().find(|adapter| adapter.describe() == name).map(|adapter| adapter.driver);
        let software = device.capabilities().software;
        let (driver, started) = (driver.unwrap_or_default(), Instant::now());
        Self { commit: None, device, settings, driver, cpu: processor(), software, started, rate: None }
    }

    /// Checks a problem, then times it.
    ///
    /// # Errors
    /// A problem that the user asked for and the device cannot run; a lost device.
    pub fn run(&mut self, task: &Task) -> Result<Line> {
        let line = self.line(task);
        if let Some(reason) = self.too_late(task) {
            return Ok(line.skip(reason));
        }
        let preview = match Plan::preview(&self.device, &task.graph, &task.options) {
            Ok(preview) => preview,
            Err(error) => return refuse(line, task, error),
        };
        let work = Work::new(&preview, task);
        let line = Line { work: Some(work.clone()), ..line };
        if let Some(reason) = too_large(&preview, task).or_else(|| self.too_slow(&work, task)) {
            return Ok(line.skip(reason));
        }
        match Plan::with_options(&self.device, &task.graph, &task.options) {
            Ok(plan) => self.run_plan(plan, task, line, &work),
            Err(error) => refuse(line, task, error),
        }
    }

    fn line(&self, task: &Task) -> Line {
        let capabilities = self.device.capabilities();
        Line {
            commit: self.commit.clone(),
            driver: self.driver.clone(),
            cpu: self.cpu.clone(),
            threads: match capabilities.backend {
                Backend::Cpu => rayon::current_num_threads(),
                Backend::Gpu if capabilities.software => capabilities.processors as usize,
                Backend::Gpu => 0,
            },
            ..Line::new(&self.device, task)
        }
    }

    fn run_plan(&mut self, mut plan: Plan, task: &Task, line: Line, work: &Work) -> Result<Line> {
        let inputs = task.draw();
        for ((name, _), value) in task.inputs.iter().zip(&inputs) {
            plan.write(name, value)?;
        }
        let start = Instant::now();
        plan.submit()?;
        let got = plan.read("out")?;
        if let Some(reason) = self.skip_longer(start.elapsed().as_secs_f64(), "takes", task) {
            return Ok(line.skip(reason));
        }
        let (check, comparison) = check(task, &got, &task.expected(&inputs)?);
        drop(inputs);
        let line = Line { check: Some(check), ..line };
        if !comparison.passed() {
            return Ok(Line { failed: Some(comparison.to_string()), ..line });
        }
        let (seconds, clock) = self.time(&mut plan)?;
        let timing = Timing::new(&seconds, [clock.describe(), "warm"], work);
        let steps = steps(&mut plan, &timing)?;
        let rate = timing.tflops_exact * 1e12;
        self.rate = Some(self.rate.map_or(rate, |fastest| fastest.max(rate)));
        let warnings = self.warnings(&timing);
        Ok(Line { timing: Some(timing), steps, warnings, ..line })
    }

    fn time(&self, plan: &mut Plan) -> Result<(Vec<f64>, Clock)> {
        let Settings { warm_up, budget, least_runs, .. } = self.settings;
        let start = Instant::now();
        let mut sample = plan.measure()?;
        for run in 2.. {
            let elapsed = start.elapsed();
            if (elapsed >= warm_up && run > 3) || elapsed >= budget {
                break;
            }
            sample = plan.measure()?;
        }
        let mut seconds = Vec::new();
        let start = Instant::now();
        while seconds.len() < least_runs.max(1) || (start.elapsed() < budget && seconds.len() < MOST_RUNS) {
            sample = plan.measure()?;
            seconds.push(sample.seconds);
        }
        Ok((seconds, sample.clock))
    }

    fn too_slow(&self, work: &Work, task: &Task) -> Option<String> {
        let rate = self.rate.filter(|&rate| rate > 0.0)?;
        self.skip_longer(work.flops_exact as f64 / rate, "would take", task)
    }

    fn skip_longer(&self, seconds: f64, takes: &str, task: &Task) -> Option<String> {
        let longest = self.settings.longest_run.as_secs_f64();
        (task.refusal == Refusal::Skip && seconds > longest).then(|| {
            format!(
                "one run {takes} about {seconds:.1} s here, more than the {longest} s that a suite allows; \
                 problems given by --problem have no such limit"
            )
        })
    }

    fn too_late(&self, task: &Task) -> Option<String> {
        let total = self.settings.total?;
        (task.refusal == Refusal::Skip && self.started.elapsed() > total)
            .then(|| format!("the lines before took the {} s that this suite has", total.as_secs()))
    }

    fn warnings(&self, timing: &Timing) -> Vec<String> {
        let mut warnings = Vec::new();
        if timing.iqr_ms > WIDE_SPREAD * timing.median_ms {
            warnings.push(
                "the middle half of the runs spreads over more than 10 % of the median, so small differences mean \
                 nothing; stop other work on this machine and repeat"
                    .into(),
            );
        }
        if self.software {
            warnings.push(
                "a software device runs shaders on the CPU, so this says nothing about a GPU; \
                 use --device cpu for the native backend"
                    .into(),
            );
        }
        warnings
    }
}

/// Runs that time each step.
const PROFILED: usize = 5;

/// What each step of a plan takes.
fn steps(plan: &mut Plan, timing: &Timing) -> Result<Vec<StepTime>> {
    let steps = plan.describe().steps;
    let time = |step: &StepDescription, ms: f64| {
        let (step, flops, bytes) = (step.technique_and_reason(), step.cost.flops, step.cost.bytes());
        StepTime { step, ms, flops, bytes }
    };
    if let [step] = &steps[..] {
        return Ok(vec![time(step, timing.median_ms)]);
    }
    let profiles = (0..PROFILED).map(|_| plan.profile()).collect::<Result<Vec<_>>>()?;
    let median = |at: usize| {
        let seconds: Vec<_> = profiles.iter().map(|profile| profile.steps[at].1).collect();
        Statistics::new(&seconds).map_or(0.0, |seconds| seconds.median)
    };
    Ok(steps.iter().enumerate().map(|(at, step)| time(step, median(at) * 1e3)).collect())
}

/// The host's processor; empty where the system does not say so in `/proc`.
fn processor() -> String {
    // No figure depends on it.
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(String::new, |(_, name)| name.trim().to_owned())
}

/// A device that lacks what a task needs: a skip, or an error where the user asked for this very task.
fn refuse(line: Line, task: &Task, error: Error) -> Result<Line> {
    match (&error, task.refusal) {
        (Error::Unsupported { .. } | Error::TooLarge { .. }, Refusal::Skip) => Ok(line.skip(error.to_string())),
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

/// Why a problem does not fit into the host's memory, where its inputs, its reference and perhaps its plan live.
fn too_large(plan: &PlanDescription, task: &Task) -> Option<String> {
    let free = free_bytes()?;
    // Drawn, widened to f64 by the reference, and an output in three copies of f64 while it is compared.
    let inputs = task.inputs.iter().map(|(_, input)| input.desc.bytes() + 8 * input.desc.len() as u64).sum();
    let outputs = task.graph.outputs().map(|(_, desc)| 24 * desc.len() as u64).sum();
    let needed = [inputs, outputs, plan.peak_bytes()].into_iter().fold(0, u64::saturating_add);
    (needed > free).then(|| format!("it needs {needed} bytes of the host's memory with its check, and {free} are free"))
}

/// Memory that can be had without swapping; `None` where the system does not say so in `/proc`.
fn free_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Settings = Settings {
        warm_up: Duration::ZERO,
        budget: Duration::ZERO,
        least_runs: 2,
        longest_run: Duration::from_secs(3600),
        total: None,
    };

    fn task() -> Task {
        Task::attention("problem", &"b=1,h=2,s=9,d=8,causal".parse().unwrap()).unwrap()
    }

    fn run(task: &Task, settings: Settings) -> Result<Line> {
        Bench::new(Device::cpu(), settings).run(task)
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
        let limits = Settings { longest_run: Duration::ZERO, ..SHORT };
        assert!(run(&task(), limits).unwrap().skipped.unwrap().contains("one run takes about"));
        assert!(run(&Task { refusal: Refusal::Fail, ..task() }, limits).unwrap().timing.is_some());
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
}
