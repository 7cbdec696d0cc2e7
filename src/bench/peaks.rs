//! Microkernels that show what a device does at most.
//!
//! Arithmetic is that of [`FmaChain`] and, on cooperative matrices, of [`MatrixChain`], whose data are in registers. Bandwidth is
//! that of a copy, bytes read and written counted both, by a kernel or by the device's own command, or of means of long rows, which
//! only read, all over buffers larger than the caches. Each is the best of some runs, and each result is checked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cold::{DEVICE_BYTES, copied, copied_tensors, copy, host_bytes};
use crate::capabilities::{Backend, Capabilities};
use crate::case::CaseInput;
use crate::compare::{NanMeans, Tolerance, compare};
use crate::device::{Device, DeviceTensor};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::op::{Op, Rows};
use crate::ops::{FmaChain, MatrixChain, Reduce, ReducedAxes, Reduction, matrix_chain_factor};
use crate::plan::Plan;
use crate::tensor::{Dtype, HostTensor};

/// Whether the host's cores do the work.
fn on_host(capabilities: &Capabilities) -> bool {
    capabilities.backend == Backend::Cpu || capabilities.software
}

/// A run of the chain lasts as long at least, so that starting it does not count.
const LONG: Duration = Duration::from_millis(20);
/// Time for runs of which the best counts.
const BUDGET: Duration = Duration::from_millis(400);
/// Most copies in a submission.
const MOST_COPIES: u32 = 1 << 10;
/// Steps in the body of the loop of `fma_chain_lanes`.
const BODY: u32 = 32;
/// Most steps of a chain.
const MOST_STEPS: u32 = 1 << 15;

/// Operations a second of multiply-adds in registers.
pub(super) fn arithmetic(device: &Device, dtype: Dtype) -> Result<f64> {
    // Half a million lanes of a GPU, or whole tasks of the host's cores, 480 KiB.
    let rows = if on_host(device.capabilities()) { 1920 } else { 1 << 16 };
    let x = CaseInput::normal(dtype, &[rows, 64], 0.25).draw(1);
    let tolerance = Tolerance::of_scale(if dtype == Dtype::F16 { 4e-3 } else { 5e-7 });
    peak(|steps| {
        let chain = FmaChain { steps, factor: 0.75, addend: 0.25 };
        Chained::new(device, chain, &[&x], tolerance)
    })
}

/// Operations a second of products of cooperative matrices in registers.
pub(super) fn matrices(device: &Device, edge: usize) -> Result<f64> {
    let groups = if on_host(device.capabilities()) { 1 << 6 } else { 1 << 13 };
    let [a, b] = [matrix_chain_factor(&[8, edge, edge], 3), matrix_chain_factor(&[edge, edge], 1)].map(|x| x.draw(1));
    peak(|steps| Chained::new(device, MatrixChain { groups, steps }, &[&a, &b], Tolerance::of_scale(0.0)))
}

/// A chain that has run once and was right.
struct Chained {
    plan: Plan,
    flops: u64,
}

/// Operations a second of a chain that is as long as it takes.
fn peak(chain: impl Fn(u32) -> Result<Chained>) -> Result<f64> {
    let mut steps = 256;
    loop {
        let Chained { mut plan, flops } = chain(steps)?;
        let seconds = plan.measure()?.seconds.max(1e-9);
        if seconds >= LONG.as_secs_f64() || steps == MOST_STEPS {
            return Ok(flops as f64 / best(&mut plan)?);
        }
        let missing = (1.5 * LONG.as_secs_f64() / seconds).clamp(2.0, 16.0);
        steps = MOST_STEPS.min((f64::from(steps) * missing) as u32 / BODY * BODY);
    }
}

impl Chained {
    fn new(device: &Device, chain: impl Op, inputs: &[&HostTensor], tolerance: Tolerance) -> Result<Self> {
        let descs: Vec<_> = inputs.iter().map(|input| input.desc().clone()).collect();
        let (name, flops) = (chain.name(), chain.cost(&descs).flops);
        let expected = chain.reference(inputs, Rows::Every(1021)).remove(0);
        let names: Vec<_> = (0..inputs.len()).map(|at| format!("in{at}")).collect();
        let mut graph = Graph::new();
        let tensors: Result<Vec<_>> =
            names.iter().zip(&descs).map(|(name, desc)| graph.input(name, desc.clone())).collect();
        let output = graph.add(chain, &tensors?)?[0];
        graph.output("y", output)?;
        let mut plan = Plan::new(device, &graph)?;
        let named: Vec<_> = names.iter().map(String::as_str).zip(inputs.iter().copied()).collect();
        let got = plan.run(&named)?.remove("y").expect("the graph has this output");
        let comparison = compare(&got, &expected, tolerance, NanMeans::NotSampled);
        if !comparison.passed() {
            return Err(Error::Device(format!("{}: {name} is wrong: {comparison}", device.name())));
        }
        Ok(Self { plan, flops })
    }
}

/// Bytes of a buffer that no cache holds.
fn large(capabilities: &Capabilities) -> u64 {
    let bytes = if on_host(capabilities) { host_bytes() } else { DEVICE_BYTES };
    bytes.min(capabilities.binding_bytes)
}

/// Bytes a second, read and written, of a copy, by a kernel or by the device's own command, whichever is faster.
pub(super) fn copying(device: &Device) -> Result<f64> {
    let bytes = large(device.capabilities());
    let by_kernel = {
        let mut plan = copy(device, bytes)?;
        let seconds = best(&mut plan)?;
        check_copy(device, &plan.tensor("target")?)?;
        seconds
    };
    let by_command = match device.capabilities().backend {
        Backend::Gpu => copying_by_command(device, bytes)?.unwrap_or(f64::INFINITY),
        Backend::Cpu => f64::INFINITY,
    };
    Ok(2.0 * bytes as f64 / by_kernel.min(by_command))
}

/// Seconds of a copy by the device's own command, where it has one.
fn copying_by_command(device: &Device, bytes: u64) -> Result<Option<f64>> {
    let (from, to) = copied_tensors(device, bytes)?;
    let mut copies = 1;
    loop {
        let Some(seconds) = device.time_copies(&from, &to, copies)? else { return Ok(None) };
        if seconds >= LONG.as_secs_f64() || copies >= MOST_COPIES {
            break;
        }
        copies *= 2;
    }
    let start = Instant::now();
    let mut least = f64::INFINITY;
    for runs in 0.. {
        if runs >= 5 && start.elapsed() >= BUDGET {
            break;
        }
        least = device.time_copies(&from, &to, copies)?.map_or(least, |seconds| least.min(seconds));
    }
    check_copy(device, &to)?;
    Ok(Some(least / f64::from(copies)))
}

fn check_copy(device: &Device, target: &DeviceTensor) -> Result<()> {
    if copied(device, target)? {
        return Ok(());
    }
    Err(Error::Device(format!("{}: a copy of {} is wrong", device.name(), target.desc())))
}

/// Bytes a second of the means of rows.
pub(super) fn reading(device: &Device) -> Result<f64> {
    let capabilities = device.capabilities();
    // On a software device joining a workgroup's lanes takes longer than reading, so a lane has a row of 256 bytes to itself.
    let length: usize = if capabilities.software { 64 } else { 4096 };
    let rows = usize::try_from(large(capabilities)).unwrap_or(usize::MAX) / 4 / length;
    let row = |at: usize| (at % 16) as f32;
    let x = HostTensor::f32(&[rows, length], (0..rows * length).map(|at| row(at / length)).collect())?;
    let bytes = x.desc().bytes();
    let mut graph = Graph::new();
    let x = graph.weight("x", Arc::new(x))?;
    let means = Reduce { reduction: Reduction::Mean, axes: vec![1], reduced: ReducedAxes::Dropped };
    let means = graph.add(means, &[x])?[0];
    graph.output("means", means)?;
    let mut plan = Plan::new(device, &graph)?;
    let got = plan.run(&[])?.remove("means").expect("the graph has this output").to_f64();
    // Sums of whole numbers below 2^24 are exact, and a power of two divides them exactly.
    if got.iter().enumerate().any(|(at, &mean)| mean != f64::from(row(at))) {
        return Err(Error::Device(format!("{}: means of {bytes} bytes are wrong", device.name())));
    }
    Ok(bytes as f64 / best(&mut plan)?)
}

/// Seconds of the shortest run.
fn best(plan: &mut Plan) -> Result<f64> {
    let start = Instant::now();
    let mut least = plan.measure()?.seconds;
    let mut runs = 1;
    while runs < 5 || start.elapsed() < BUDGET {
        least = least.min(plan.measure()?.seconds);
        runs += 1;
    }
    Ok(least.max(1e-9))
}
