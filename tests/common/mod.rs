//! Which devices the tests run on, and what it means that one is missing.
//!
//! Always the CPU backend; and every adapter that wgpu lists, software Vulkan included, with and without run-time checks.
//! With `CI=true` a missing adapter fails one trial that says so; elsewhere it is a counted skip.

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::{Arc, LazyLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use regard::capabilities::Backend;
use regard::gpu::{Kind, adapters};
use regard::{Cache, Checks, Device, DeviceOptions, Select};

/// What a trial returns; `?` works on every error that prints.
pub type Verdict = Result<Completion, Failed>;

/// A device under test.
#[derive(Debug, Clone)]
pub struct Subject {
    /// As trials name it: `cpu`, `lavapipe unchecked`.
    pub name: String,
    /// The device.
    pub device: Device,
    /// Runs on the host, so a CI machine has it: the CPU backend and software Vulkan devices.
    hosted: bool,
}

/// The devices, or names of those that did not open with the reason.
static SUBJECTS: LazyLock<Vec<Result<Subject, (String, String)>>> = LazyLock::new(|| {
    // What somebody tuned on this machine changes nothing here.
    let cpu = Device::new(&DeviceOptions { select: Select::Cpu, checks: Checks::Unchecked, cache: Cache::None });
    let cpu = Subject { name: "cpu".into(), device: cpu.expect("it is always there"), hosted: true };
    let gpus = adapters().into_iter().flat_map(|adapter| {
        [Checks::Unchecked, Checks::Checked].map(|checks| {
            let hosted = adapter.kind == Kind::Software;
            let short = if adapter.name.contains("llvmpipe") { "lavapipe" } else { &adapter.name };
            let name = format!("{short} {}", if checks == Checks::Checked { "checked" } else { "unchecked" });
            let select = Select::Named(adapter.describe());
            match Device::new(&DeviceOptions { select, checks, cache: Cache::None }) {
                Ok(device) => Ok(Subject { name, device, hosted }),
                Err(error) => Err((name, error.to_string())),
            }
        })
    });
    [Ok(cpu)].into_iter().chain(gpus).collect()
});

/// A trial for each device, named `name/device`, and one that is skipped where there is no adapter.
pub fn each_device(name: &str, body: impl Fn(&Subject) -> Verdict + Send + Sync + 'static) -> Vec<Trial> {
    each_of(&[Backend::Cpu, Backend::Gpu], name, body)
}

/// As [`each_device`], for trials that mean something on some backends only.
pub fn each_of(
    backends: &[Backend],
    name: &str,
    body: impl Fn(&Subject) -> Verdict + Send + Sync + 'static,
) -> Vec<Trial> {
    let body = Arc::new(body);
    let mut trials = Vec::new();
    for subject in SUBJECTS.iter() {
        match subject {
            Ok(subject) if backends.contains(&subject.device.capabilities().backend) => {
                let body = body.clone();
                trials.push(Trial::ignorable_test(format!("{name}/{}", subject.name), move || {
                    strict(subject, body(subject))
                }));
            }
            Ok(_) => {}
            Err((device, why)) => {
                let verdict = move || Err(format!("the adapter does not open: {why}").into());
                trials.push(Trial::test(format!("{name}/{device}"), verdict));
            }
        }
    }
    if SUBJECTS.len() == 1 && backends.contains(&Backend::Gpu) {
        trials.push(Trial::ignorable_test(format!("{name}/any adapter"), || Ok(Completion::ignored_with(NO_ADAPTER))));
    }
    trials
}

const NO_ADAPTER: &str = "there is no Vulkan, Metal or DirectX adapter; scripts/test installs a software one";

/// A skip is counted and printed; in CI it is a failure on devices that every machine can have.
fn strict(subject: &Subject, verdict: Verdict) -> Verdict {
    match verdict {
        Ok(Completion::Ignored { reason }) if in_ci() && subject.hosted => {
            let reason = reason.unwrap_or_default();
            Err(format!("{} must not skip in CI: {reason}", subject.name).into())
        }
        verdict => verdict,
    }
}

/// Runs trials with the standard command line, four times as many at a time as there are cores: those on a software device wait for
/// each other, as it compiles for one at a time, and of fewer trials all may wait for the same one. In CI there must be an adapter.
pub fn run(mut trials: Vec<Trial>) -> ExitCode {
    if in_ci() && SUBJECTS.len() == 1 {
        trials.push(Trial::test("an adapter is present", || Err(NO_ADAPTER.into())));
    }
    let mut arguments = Arguments::from_args();
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    arguments.test_threads.get_or_insert(4 * cores);
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}
