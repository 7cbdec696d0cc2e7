//! What a device can do at most, measured on it: operations and bytes a second.
//!
//! Arithmetic is that of [`FmaChain`] and, on cooperative matrices, of [`MatrixChain`], whose data are in registers. Bandwidth is
//! that of a copy, bytes read and written counted both, or of means of long rows, which only read: whichever is more, and both over
//! buffers larger than the caches. Each is the best of some runs, and each result is checked.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use directories::ProjectDirs;
use serde::{Deserialize, Serialize};

use super::cold::{DEVICE_BYTES, copied, copy, host_bytes};
use super::report::Bound;
use super::work::Work;
use crate::capabilities::{Backend, Capabilities};
use crate::case::CaseInput;
use crate::compare::{NanMeans, Tolerance, compare};
use crate::device::{Cache, Device};
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::op::{Op, Rows};
use crate::ops::{FmaChain, MatrixChain, Reduce, ReducedAxes, Reduction, matrix_chain_factor};
use crate::plan::Plan;
use crate::tensor::{Dtype, HostTensor};

/// Name and version of the keys.
const SCHEMA: &str = "regard.roofline/1";

/// A device's peaks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Roofline {
    /// Name and version of these keys.
    pub schema: String,
    /// The device with its driver, as it calls itself.
    pub device: String,
    /// Threads of the host that compute; 0 on a GPU.
    pub threads: usize,
    /// When it was measured, RFC 3339 in UTC.
    pub date: String,
    /// Operations a second in f32; a multiply-add is two.
    pub flops_f32: f64,
    /// The same in f16, where the device computes in it.
    pub flops_f16: Option<f64>,
    /// The same of cooperative matrices that multiply f16 and add up in f32, where the device has some.
    #[serde(default)]
    pub flops_matrices: Option<f64>,
    /// Bytes a second of a copy, those read and those written.
    pub bytes_copied: f64,
    /// Bytes a second that are read where hardly any are written.
    pub bytes_read: f64,
}

impl Roofline {
    /// The peaks that were measured before on this device and driver and are in `cache`, else measured and kept there. A file that
    /// is damaged, or is about something else, counts as none.
    ///
    /// # Errors
    /// As [`Roofline::measure`].
    pub fn cached(device: &Device, cache: &Cache) -> Result<Self> {
        let path = path(device, cache);
        let known = path.as_deref().and_then(|path| Self::read(path, device));
        known.map_or_else(|| Self::measure(device, cache), Ok)
    }

    /// The peaks, measured anew, which takes about two seconds, and kept in `cache`.
    ///
    /// # Errors
    /// A result that is wrong; a lost device, or one without memory for the copy.
    pub fn measure(device: &Device, cache: &Cache) -> Result<Self> {
        let capabilities = device.capabilities();
        let computes_f16 = capabilities.backend == Backend::Gpu && capabilities.f16;
        let found = Self {
            schema: SCHEMA.into(),
            device: device.name(),
            threads: threads(capabilities),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            flops_f32: arithmetic(device, Dtype::F32)?,
            flops_f16: if computes_f16 { Some(arithmetic(device, Dtype::F16)?) } else { None },
            flops_matrices: capabilities.matrix_edge().map(|edge| matrices(device, edge as usize)).transpose()?,
            bytes_copied: copying(device)?,
            bytes_read: reading(device)?,
        };
        if let (Some(path), Ok(text)) = (path(device, cache), serde_json::to_string(&found)) {
            // Without the file it is measured again, and nothing else changes.
            let _ = fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).and_then(|()| fs::write(&path, text));
        }
        Ok(found)
    }

    /// Which peak some work meets first, and how near it comes in so many seconds. Arithmetic is that of cooperative matrices where a
    /// kernel uses them, else f32, in which every other kernel adds up. `None` where a peak is not known, and for work that is nothing.
    pub fn bound(&self, work: &Work, seconds: f64) -> Option<Bound> {
        let on_matrices = work.features.iter().any(|feature| feature == "cooperative matrices");
        let flops = if on_matrices { self.flops_matrices? } else { self.flops_f32 };
        let bytes = self.bytes_copied.max(self.bytes_read);
        let (arithmetic, moving) = (work.flops_exact as f64 / flops, work.bytes as f64 / bytes);
        let least = arithmetic.max(moving);
        if seconds <= 0.0 || least <= 0.0 {
            return None;
        }
        let (bound, peak) = if arithmetic >= moving { ("arithmetic", flops) } else { ("bandwidth", bytes) };
        Some(Bound { bound: bound.into(), bound_share: least / seconds, bound_per_second: peak })
    }

    fn read(path: &Path, device: &Device) -> Option<Self> {
        let found: Self = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
        let optional = [found.flops_f16, found.flops_matrices].map(|peak| peak.unwrap_or(1.0));
        let whole =
            [found.flops_f32, found.bytes_copied, found.bytes_read].iter().chain(&optional).all(|peak| *peak > 0.0);
        let ours = (found.schema.as_str(), &found.device, found.threads)
            == (SCHEMA, &device.name(), threads(device.capabilities()));
        (whole && ours).then_some(found)
    }
}

/// Threads of the host that compute.
pub(super) fn threads(capabilities: &Capabilities) -> usize {
    match capabilities.backend {
        Backend::Cpu => rayon::current_num_threads(),
        Backend::Gpu if capabilities.software => capabilities.processors as usize,
        Backend::Gpu => 0,
    }
}

/// The file of a device, named after it.
fn path(device: &Device, cache: &Cache) -> Option<PathBuf> {
    let folder = match cache {
        Cache::None => return None,
        Cache::Folder(folder) => folder.clone(),
        Cache::User => ProjectDirs::from("", "", "regard")?.cache_dir().join("rooflines"),
    };
    let name = device.name().replace(|letter: char| !letter.is_ascii_alphanumeric(), "_");
    Some(folder.join(format!("{name}_{}.json", threads(device.capabilities()))))
}

/// Whether the host's cores do the work.
fn on_host(capabilities: &Capabilities) -> bool {
    capabilities.backend == Backend::Cpu || capabilities.software
}

/// A run of the chain lasts as long at least, so that starting it does not count.
const LONG: Duration = Duration::from_millis(20);
/// Time for runs of which the best counts.
const BUDGET: Duration = Duration::from_millis(400);
/// Most steps of a chain.
const MOST_STEPS: u32 = 1 << 15;

/// Operations a second of multiply-adds in registers.
fn arithmetic(device: &Device, dtype: Dtype) -> Result<f64> {
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
fn matrices(device: &Device, edge: usize) -> Result<f64> {
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
        steps = MOST_STEPS.min((f64::from(steps) * missing) as u32 / 8 * 8);
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

/// Bytes a second, read and written, of a copy.
fn copying(device: &Device) -> Result<f64> {
    let bytes = large(device.capabilities());
    let mut plan = copy(device, bytes)?;
    let seconds = best(&mut plan)?;
    if !copied(device, &plan)? {
        return Err(Error::Device(format!("{}: a copy of {bytes} bytes is wrong", device.name())));
    }
    Ok(2.0 * bytes as f64 / seconds)
}

/// Bytes a second of the means of long rows.
fn reading(device: &Device) -> Result<f64> {
    const ROW: usize = 4096;
    let rows = usize::try_from(large(device.capabilities())).unwrap_or(usize::MAX) / 4 / ROW;
    let row = |at: usize| (at % 61) as f32;
    let x = HostTensor::f32(&[rows, ROW], (0..rows * ROW).map(|at| row(at / ROW)).collect())?;
    let bytes = x.desc().bytes();
    let mut graph = Graph::new();
    let x = graph.weight("x", Arc::new(x))?;
    let means = Reduce { reduction: Reduction::Mean, axes: vec![1], reduced: ReducedAxes::Dropped };
    let means = graph.add(means, &[x])?[0];
    graph.output("means", means)?;
    let mut plan = Plan::new(device, &graph)?;
    let got = plan.run(&[])?.remove("means").expect("the graph has this output").to_f64();
    // Sums of whole numbers below 2^24 are exact, and 4,096 divides them exactly.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn known(device: &Device) -> Roofline {
        Roofline {
            schema: SCHEMA.into(),
            device: device.name(),
            threads: threads(device.capabilities()),
            date: String::new(),
            flops_f32: 100e9,
            flops_f16: None,
            flops_matrices: None,
            bytes_copied: 8e9,
            bytes_read: 10e9,
        }
    }

    #[test]
    fn bounds_by_hand() {
        let roofline = known(&Device::cpu());
        let work = |flops_exact, bytes| Work { flops_exact, bytes, ..Work::default() };
        // 50 GFLOP take half a second at least, 1 GB a tenth.
        let bound = roofline.bound(&work(50_000_000_000, 1_000_000_000), 1.0).unwrap();
        assert_eq!(bound, Bound { bound: "arithmetic".into(), bound_share: 0.5, bound_per_second: 100e9 });
        let bound = roofline.bound(&work(1_000, 5_000_000_000), 2.0).unwrap();
        assert_eq!(bound, Bound { bound: "bandwidth".into(), bound_share: 0.25, bound_per_second: 10e9 });
        assert_eq!(roofline.bound(&work(0, 0), 1.0), None);
        let matrices = Work { features: vec!["cooperative matrices".into()], ..work(1, 1) };
        assert_eq!(roofline.bound(&matrices, 1.0), None);
        let roofline = Roofline { flops_matrices: Some(2.0), ..roofline };
        assert_eq!(roofline.bound(&matrices, 1.0).unwrap().bound_share, 0.5);
    }

    #[test]
    fn files_that_are_damaged_or_foreign_are_ignored() {
        let device = Device::cpu();
        let folder = std::env::temp_dir().join(format!("regard-roofline-{}", std::process::id()));
        let path = path(&device, &Cache::Folder(folder.clone())).unwrap();
        fs::create_dir_all(&folder).unwrap();
        let good = known(&device);
        let text = |roofline: &Roofline| serde_json::to_string(roofline).unwrap();
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            Roofline::read(&path, &device)
        };
        assert_eq!(read(&text(&good)), Some(good.clone()));
        for bad in [
            Roofline { device: "another".into(), ..good.clone() },
            Roofline { schema: "regard.roofline/0".into(), ..good.clone() },
            Roofline { threads: 1000, ..good.clone() },
            Roofline { bytes_read: 0.0, ..good.clone() },
        ] {
            assert_eq!(read(&text(&bad)), None, "{bad:?}");
        }
        let whole = text(&good);
        assert!((0..whole.len()).all(|end| read(&whole[..end]).is_none()));
        // What is there is taken as it is, and the rest measured.
        fs::write(&path, &whole).unwrap();
        assert_eq!(Roofline::cached(&device, &Cache::Folder(folder.clone())).unwrap(), good);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn peaks_are_measured_and_kept() {
        let (device, folder) =
            (Device::cpu(), std::env::temp_dir().join(format!("regard-peaks-{}", std::process::id())));
        let cache = Cache::Folder(folder.clone());
        let measured = Roofline::measure(&device, &cache).unwrap();
        assert!(measured.flops_f32 > 1e8 && measured.bytes_copied.min(measured.bytes_read) > 1e8, "{measured:?}");
        assert_eq!(Roofline::cached(&device, &cache).unwrap(), measured);
        fs::remove_dir_all(&folder).unwrap();
    }
}
