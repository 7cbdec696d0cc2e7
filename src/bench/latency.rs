//! How long a program waits for its first result: the seed-2 layer in processes of their own, with empty and with filled caches.
//!
//! A child measures itself and prints what it has the moment the first result is there; its parent reads the clock then.

use std::hash::{DefaultHasher, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::statistics::Statistics;
use super::suite::Suite;
use super::task::Task;
use crate::capabilities::{Backend, Capabilities};
use crate::compare::{NanMeans, compare};
use crate::device::{Cache, Device, DeviceOptions, Select};
use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::tensor::HostTensor;

/// What lines of `regard bench --suite latency --json` say they are.
pub const LATENCY_SCHEMA: &str = "regard.latency/1";

/// Runs in steady state, of which the median counts.
const STEADY_RUNS: usize = 5;

/// Where the driver of software devices keeps its own compiled shaders.
const MESA_CACHE: &str = "MESA_SHADER_CACHE_DIR";

/// What a process found out about itself. Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Phases {
    /// Drawing weights and inputs, which a program reads from elsewhere; not part of the first result.
    pub inputs_ms: f64,
    /// Instance, adapter and device.
    pub open_ms: f64,
    /// Techniques, shaders, pipelines and buffers.
    pub plan_ms: f64,
    /// Inputs to the device, the first run, and its result back.
    pub run_ms: f64,
    /// Of the result's bytes.
    pub result: u64,
}

/// What the process found out after its first result.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Steady {
    /// Another plan of the same graph, whose weights and pipelines are there. Milliseconds.
    pub plan_ms: f64,
    /// Median of later runs, with inputs and result. Milliseconds.
    pub run_ms: f64,
    /// Median time for encoding and submitting one, in microseconds; `None` on the CPU backend, where that is the run.
    pub submit_us: Option<f64>,
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// From the call that starts the process to its first result, less `inputs_ms`.
    pub first_result_ms: f64,
    /// Its parts; what is left is the process's own start.
    pub phases: Phases,
    /// Afterwards.
    pub steady: Steady,
}

/// First results with caches empty and filled, a pair in each round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// [`LATENCY_SCHEMA`].
    pub schema: String,
    /// The layer.
    pub problem: String,
    /// What ran it.
    pub device: String,
    /// With an empty folder for caches, and another for the driver's own.
    pub cold: Vec<Process>,
    /// With what the cold process left there.
    pub cached: Vec<Process>,
}

impl Latency {
    /// Medians of a number over processes.
    pub fn median(processes: &[Process], number: impl Fn(&Process) -> f64) -> f64 {
        let numbers: Vec<f64> = processes.iter().map(number).collect();
        Statistics::new(&numbers).map_or(f64::NAN, |statistics| statistics.median)
    }

    /// Starts `program` twice a round, each as `arguments(folder)` says, which must come to [`first_result`]. The result of this
    /// process is checked against the reference, and every child's must be the same to the bit.
    ///
    /// # Errors
    /// A child that cannot be started or fails, a result that is wrong.
    pub fn measure(device: &Device, rounds: usize, child: impl Fn(&Path) -> Command) -> Result<Self> {
        let task = task()?;
        let (result, device) = (checked(device, &task)?, device.name());
        let (mut cold, mut cached) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            let folder = Folder::new(round)?;
            for processes in [&mut cold, &mut cached] {
                let process = start(child(&folder.0.join("ours")).env(MESA_CACHE, folder.0.join("mesa")))?;
                if process.phases.result != result {
                    return Err(Error::Device("a new process got another result than this one".into()));
                }
                processes.push(process);
            }
        }
        Ok(Self { schema: LATENCY_SCHEMA.into(), problem: task.problem, device, cold, cached })
    }
}

/// A folder that is there for a round.
struct Folder(PathBuf);

impl Folder {
    fn new(round: usize) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("regard-latency-{}-{round}", std::process::id()));
        let fail = |error: std::io::Error| failed(&folder, &error);
        std::fs::create_dir_all(folder.join("mesa")).map_err(fail)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays behind is in the folder for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn failed(path: &Path, error: &dyn std::error::Error) -> Error {
    Error::File { path: path.display().to_string(), message: error.to_string() }
}

fn task() -> Result<Task> {
    Ok(Suite::Layer.tasks(&Capabilities::baseline(), None)?.remove(0))
}

/// The hash of this device's result, which the reference agrees with.
fn checked(device: &Device, task: &Task) -> Result<u64> {
    let inputs = task.draw();
    let mut plan = Plan::new(device, &task.graph)?;
    let result = run(&mut plan, task, &inputs)?;
    let comparison = compare(&result, &task.expected(&inputs)?, task.tolerance, NanMeans::Nan);
    match comparison.passed() {
        true => Ok(hash(&result)),
        false => Err(Error::Device(format!("{}: {comparison}", task.problem))),
    }
}

fn run(plan: &mut Plan, task: &Task, inputs: &[HostTensor]) -> Result<HostTensor> {
    let named: Vec<_> = task.inputs.iter().map(|(name, _)| name.as_str()).zip(inputs).collect();
    let mut outputs = plan.run(&named)?;
    outputs.remove("out").ok_or_else(|| Error::Plan("the layer has no output `out`".into()))
}

fn hash(tensor: &HostTensor) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(tensor.bytes());
    hasher.finish()
}

/// Starts a process and reads what it says, the first line with the clock in hand.
fn start(command: &mut Command) -> Result<Process> {
    let program = PathBuf::from(command.get_program());
    let fail = |error: &dyn std::error::Error| failed(&program, error);
    let started = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(|error| fail(&error))?;
    let mut lines = BufReader::new(child.stdout.take().expect("it was asked for")).lines();
    let mut line = || lines.next().transpose().map_err(|error| fail(&error)).map(Option::unwrap_or_default);
    let first = line()?;
    let elapsed = 1e3 * started.elapsed().as_secs_f64();
    let rest = line()?;
    let status = child.wait().map_err(|error| fail(&error))?;
    if !status.success() {
        return Err(Error::Device(format!("a process that was to measure itself ended with {status}")));
    }
    let phases: Phases = serde_json::from_str(&first).map_err(|error| fail(&error))?;
    let steady = serde_json::from_str(&rest).map_err(|error| fail(&error))?;
    Ok(Process { first_result_ms: elapsed - phases.inputs_ms, phases, steady })
}

/// What a child does: the first result, a line about it, some more runs, and a line about them.
///
/// # Errors
/// A device that cannot be opened or is lost, and lines that cannot be written.
pub fn first_result(select: Select, cache: Cache, out: &mut impl Write) -> Result<()> {
    let mut clock = Instant::now();
    let mut lap = || {
        let elapsed = 1e3 * clock.elapsed().as_secs_f64();
        clock = Instant::now();
        elapsed
    };
    let task = task()?;
    let inputs = task.draw();
    let inputs_ms = lap();
    let device = Device::new(&DeviceOptions { select, cache, ..DeviceOptions::default() })?;
    let open_ms = lap();
    let mut plan = Plan::new(&device, &task.graph)?;
    let plan_ms = lap();
    let result = run(&mut plan, &task, &inputs)?;
    let run_ms = lap();
    let phases = Phases { inputs_ms, open_ms, plan_ms, run_ms, result: hash(&result) };
    print(out, &phases)?;
    lap();
    drop(Plan::new(&device, &task.graph)?);
    let plan_ms = lap();
    let (mut runs, mut submissions) = (Vec::new(), Vec::new());
    for _ in 0..STEADY_RUNS {
        lap();
        run(&mut plan, &task, &inputs)?;
        runs.push(lap());
        plan.submit()?;
        submissions.push(1e3 * lap());
        plan.read("out")?;
    }
    let median = |samples: &[f64]| Statistics::new(samples).map_or(f64::NAN, |statistics| statistics.median);
    let on_gpu = device.capabilities().backend == Backend::Gpu;
    print(out, &Steady { plan_ms, run_ms: median(&runs), submit_us: on_gpu.then(|| median(&submissions)) })
}

fn print(out: &mut impl Write, line: &impl Serialize) -> Result<()> {
    let fail = |error: &dyn std::error::Error| failed(Path::new("the output"), error);
    let text = serde_json::to_string(line).map_err(|error| fail(&error))?;
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|error| fail(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_prints_two_lines() {
        let mut out = Vec::new();
        first_result(Select::Cpu, Cache::None, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let [first, rest] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
        let phases: Phases = serde_json::from_str(first).unwrap();
        let steady: Steady = serde_json::from_str(rest).unwrap();
        assert!(phases.run_ms > 0.0 && steady.run_ms > 0.0 && steady.submit_us.is_none());
        assert_eq!(phases.result, checked(&Device::cpu(), &task().unwrap()).unwrap());
    }
}
