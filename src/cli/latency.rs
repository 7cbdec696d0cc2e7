//! `regard bench --suite latency`, and the hidden command that its processes run.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::Command;

use regard::bench::latency::{Latency, Process, first_result};
use regard::capabilities::Backend;
use regard::{Cache, Device, Select};

use super::bench_output::Target;
use super::text::{duration, wrap};
use super::{Ending, Failure, Result, parse_select};

/// Processes with empty caches, and as many with filled ones.
const ROUNDS: usize = 5;

#[derive(Debug, clap::Args)]
pub(crate) struct ChildArgs {
    #[arg(long, value_parser = parse_select)]
    device: Select,
    #[arg(long)]
    cache: PathBuf,
}

/// What a measured process does.
pub(crate) fn child(args: &ChildArgs, out: &mut impl Write) -> Result {
    first_result(args.device.clone(), Cache::Folder(args.cache.clone()), out)?;
    Ok(Ending::Good)
}

/// `file` gets the JSON line too.
pub(crate) fn run(
    device: &Device,
    json: bool,
    file: Option<&mut Target>,
    out: &mut impl Write,
) -> std::result::Result<Latency, Failure> {
    let program = std::env::current_exe()?;
    let before = words_before();
    let on_cpu = device.capabilities().backend == Backend::Cpu;
    let name = if on_cpu { "cpu".to_owned() } else { device.name() };
    let latency = Latency::measure(device, ROUNDS, |cache| {
        let mut command = Command::new(&program);
        command.args(&before).args(["first-result", "--device", &name, "--cache"]).arg(cache);
        command
    })?;
    let line = serde_json::to_string(&latency).map_err(io::Error::from)?;
    if let Some(file) = file {
        file.write(&format!("{line}\n"))?;
    }
    match json {
        true => writeln!(out, "{line}")?,
        false => print(&latency, out)?,
    }
    Ok(latency)
}

/// What stands between the executable and its arguments where a dynamic loader was asked to start this program, as the runner of
/// `scripts/software-gpu` is: the loader, which is the executable then, has taken its own words away, and the kernel has kept them.
fn words_before() -> Vec<OsString> {
    #[cfg(target_os = "linux")]
    {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;

        // Without it there is no telling, and no loader is the rule.
        let line = std::fs::read("/proc/self/cmdline").unwrap_or_default();
        let words: Vec<_> = line.strip_suffix(&[0]).unwrap_or(&line).split(|&byte| byte == 0).collect();
        let before = words.len().saturating_sub(std::env::args_os().len());
        words[1..=before].iter().map(|word| OsStr::from_bytes(word).to_owned()).collect()
    }
    #[cfg(not(target_os = "linux"))]
    Vec::new()
}

fn print(latency: &Latency, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}", wrap(&latency.device, 0))?;
    writeln!(out, "{}\n", latency.problem)?;
    let titles = ["first result", "start", "device", "plan", "first run", "plan again", "run again", "submit"];
    writeln!(out, "{:8}{}", "caches", titles.map(|title| format!("{title:>12}")).concat())?;
    for (name, processes) in [("empty", &latency.cold), ("filled", &latency.cached)] {
        let median = |number: fn(&Process) -> f64| Latency::median(processes, number);
        let numbers = [
            median(|process| process.first_result_ms),
            median(|process| {
                let phases = &process.phases;
                process.first_result_ms - phases.open_ms - phases.plan_ms - phases.run_ms
            }),
            median(|process| process.phases.open_ms),
            median(|process| process.phases.plan_ms),
            median(|process| process.phases.run_ms),
            median(|process| process.steady.plan_ms),
            median(|process| process.steady.run_ms),
            median(|process| process.steady.submit_us.map_or(f64::NAN, |us| us / 1e3)),
        ];
        let text = |ms: f64| if ms.is_nan() { "the run".into() } else { duration(ms) };
        writeln!(out, "{name:8}{}", numbers.map(|ms| format!("{:>12}", text(ms))).concat())?;
    }
    let rounds = latency.cold.len();
    let text = format!(
        "Medians of {rounds} processes each, from the call that starts a process to the bytes of its result, without the \
         time in which weights and inputs are drawn. Every result is the one that was checked against the reference."
    );
    writeln!(out, "\n{}", wrap(&text, 0))
}
