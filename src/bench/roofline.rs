//! What a device can do at most, measured on it: operations and bytes a second.
//!
//! Arithmetic is that of [`FmaChain`], whose data are in registers. Bandwidth is that of a copy, bytes read and written counted
//! both, between buffers larger than the caches. Both are the best of some runs, and both results are checked.

use std::fs;
use std::path::{Path, PathBuf};
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
use crate::ops::FmaChain;
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
    /// Bytes read and written a second.
    pub bytes: f64,
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
            bytes: bandwidth(device)?,
        };
        if let (Some(path), Ok(text)) = (path(device, cache), serde_json::to_string(&found)) {
            // Without the file it is measured again, and nothing else changes.
            let _ = fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).and_then(|()| fs::write(&path, text));
        }
        Ok(found)
    }

    /// Which peak some work meets first, and how near it comes in so many seconds. `None` for cooperative matrices, whose peak is
    /// another, and for work that is nothing.
    pub fn bound(&self, work: &Work, seconds: f64) -> Option<Bound> {
        let matrices = work.features.iter().any(|feature| feature == "cooperative matrices");
        let (arithmetic, moving) = (work.flops_exact as f64 / self.flops_f32, work.bytes as f64 / self.bytes);
        let least = arithmetic.max(moving);
        if seconds <= 0.0 || least <= 0.0 || matrices {
            return None;
        }
        let (bound, peak) =
            if arithmetic >= moving { ("arithmetic", self.flops_f32) } else { ("bandwidth", self.bytes) };
        Some(Bound { bound: bound.into(), bound_share: least / seconds, bound_per_second: peak })
    }

    fn read(path: &Path, device: &Device) -> Option<Self> {
        let found: Self = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
        let whole = [found.flops_f32, found.bytes, found.flops_f16.unwrap_or(1.0)].iter().all(|peak| *peak > 0.0);
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

/// Multiply-adds a second, times two.
fn arithmetic(device: &Device, dtype: Dtype) -> Result<f64> {
    // Half a million lanes of a GPU, or 512 KiB for the host's cores.
    let rows = if on_host(device.capabilities()) { 1 << 11 } else { 1 << 16 };
    let x = CaseInput::normal(dtype, &[rows, 64], 0.25).draw(1);
    let mut steps = 256;
    loop {
        let chain = FmaChain { steps, factor: 0.75, addend: 0.25 };
        let mut plan = chain_plan(device, &x, chain)?;
        plan.measure()?;
        let seconds = plan.measure()?.seconds.max(1e-9);
        if seconds >= LONG.as_secs_f64() || steps == MOST_STEPS {
            return Ok(chain.cost(&[x.desc().clone()]).flops as f64 / best(&mut plan)?);
        }
        let missing = (1.5 * LONG.as_secs_f64() / seconds).clamp(2.0, 16.0);
        steps = MOST_STEPS.min((f64::from(steps) * missing) as u32 / 8 * 8);
    }
}

/// A plan of one chain, which has run once and was right.
fn chain_plan(device: &Device, x: &HostTensor, chain: FmaChain) -> Result<Plan> {
    let mut graph = Graph::new();
    let input = graph.input("x", x.desc().clone())?;
    let output = graph.fma_chain(input, chain)?;
    graph.output("y", output)?;
    let mut plan = Plan::new(device, &graph)?;
    let got = plan.run(&[("x", x)])?.remove("y").expect("the graph has this output");
    let expected = chain.reference(&[x], Rows::Every(1021)).remove(0);
    let tolerance = Tolerance::of_scale(if x.desc().dtype == Dtype::F16 { 4e-3 } else { 5e-7 });
    let comparison = compare(&got, &expected, tolerance, NanMeans::NotSampled);
    if !comparison.passed() {
        return Err(Error::Device(format!("{}: a chain of multiply-adds is wrong: {comparison}", device.name())));
    }
    Ok(plan)
}

/// Bytes read and written a second.
fn bandwidth(device: &Device) -> Result<f64> {
    let capabilities = device.capabilities();
    let bytes = if on_host(capabilities) { host_bytes() } else { DEVICE_BYTES };
    let bytes = bytes.min(capabilities.binding_bytes);
    let mut plan = copy(device, bytes)?;
    let seconds = best(&mut plan)?;
    if !copied(device, &plan)? {
        return Err(Error::Device(format!("{}: a copy of {bytes} bytes is wrong", device.name())));
    }
    Ok(2.0 * bytes as f64 / seconds)
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
            bytes: 10e9,
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
            Roofline { bytes: 0.0, ..good.clone() },
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
        assert!(measured.flops_f32 > 1e8 && measured.bytes > 1e8, "{measured:?}");
        assert_eq!(Roofline::cached(&device, &cache).unwrap(), measured);
        fs::remove_dir_all(&folder).unwrap();
    }
}
