//! What a device can do at most, measured on it: operations and bytes a second.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use directories::ProjectDirs;
use serde::{Deserialize, Serialize};

use super::peaks;
use super::report::{Bound, Peaks};
use super::work::{Arithmetic, Work};
use crate::capabilities::{Backend, Capabilities};
use crate::device::{Cache, Device};
use crate::error::Result;
use crate::tensor::Dtype;

/// Name and version of the keys, and of the kernels that measured what they say.
const SCHEMA: &str = "regard.roofline/2";

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
    /// Bytes a second of a copy by a kernel or by the device's own command, those read and those written.
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

    /// The peaks, measured anew, which takes about two seconds, and kept in `cache`. Other work on the machine makes a peak lower, never
    /// higher, so that each is the better of what was in `cache` and what is measured.
    ///
    /// # Errors
    /// A result that is wrong; a lost device, or one without memory for the copy.
    pub fn measure(device: &Device, cache: &Cache) -> Result<Self> {
        let capabilities = device.capabilities();
        let computes_f16 = capabilities.backend == Backend::Gpu && capabilities.f16;
        let path = path(device, cache);
        let measured = Self {
            schema: SCHEMA.into(),
            device: device.name(),
            threads: threads(capabilities),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            flops_f32: peaks::arithmetic(device, Dtype::F32)?,
            flops_f16: if computes_f16 { Some(peaks::arithmetic(device, Dtype::F16)?) } else { None },
            flops_matrices: capabilities
                .matrix_edge()
                .map(|edge| peaks::matrices(device, edge as usize))
                .transpose()?,
            bytes_copied: peaks::copying(device)?,
            bytes_read: peaks::reading(device)?,
        };
        let known = path.as_deref().and_then(|path| Self::read(path, device));
        let found = known.map_or(measured.clone(), |known| measured.or_better(&known));
        if let (Some(path), Ok(text)) = (path, serde_json::to_string(&found)) {
            // Without the file it is measured again, and nothing else changes.
            let _ = fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).and_then(|()| fs::write(&path, text));
        }
        Ok(found)
    }

    /// Each peak, or what was known before where that is higher.
    fn or_better(self, known: &Self) -> Self {
        let best = |now: Option<f64>, before: Option<f64>| now.into_iter().chain(before).reduce(f64::max);
        Self {
            flops_f32: self.flops_f32.max(known.flops_f32),
            flops_f16: best(self.flops_f16, known.flops_f16),
            flops_matrices: best(self.flops_matrices, known.flops_matrices),
            bytes_copied: self.bytes_copied.max(known.bytes_copied),
            bytes_read: self.bytes_read.max(known.bytes_read),
            ..self
        }
    }

    /// Which peak some work meets first, and how near it comes in so many seconds. Each operation counts at the peak of the units that
    /// do it, one kind after the other. `None` where a peak is not known, and for work that is nothing.
    pub fn bound(&self, work: &Work, seconds: f64) -> Option<Bound> {
        let kinds = work.arithmetic();
        let times = kinds.iter().map(|(kind, flops)| Some(*flops as f64 / self.peak(*kind)?));
        let arithmetic: f64 = times.sum::<Option<f64>>()?;
        let bytes = self.bytes();
        let moving = work.bytes as f64 / bytes;
        let least = arithmetic.max(moving);
        if seconds <= 0.0 || least <= 0.0 {
            return None;
        }
        let bound_share = least / seconds;
        if arithmetic < moving {
            return Some(Bound {
                bound: "bandwidth".into(),
                bound_arithmetic: None,
                bound_share,
                bound_per_second: bytes,
            });
        }
        let names: Vec<_> = kinds.iter().map(|(kind, _)| kind.name()).collect();
        let bound_per_second = match kinds[..] {
            [(kind, _)] => self.peak(kind)?,
            _ => work.flops_exact as f64 / arithmetic,
        };
        Some(Bound {
            bound: "arithmetic".into(),
            bound_arithmetic: Some(names.join(" + ")),
            bound_share,
            bound_per_second,
        })
    }

    /// As lines have them.
    pub fn peaks(&self) -> Peaks {
        Peaks {
            peak_f32: self.flops_f32,
            peak_f16: self.flops_f16,
            peak_matrices: self.flops_matrices,
            peak_bandwidth: self.bytes(),
        }
    }

    fn peak(&self, kind: Arithmetic) -> Option<f64> {
        match kind {
            Arithmetic::F32 => Some(self.flops_f32),
            Arithmetic::F16 => self.flops_f16,
            Arithmetic::Matrices => self.flops_matrices,
        }
    }

    fn bytes(&self) -> f64 {
        self.bytes_copied.max(self.bytes_read)
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
        let f32 = Bound {
            bound: "arithmetic".into(),
            bound_arithmetic: Some("f32".into()),
            bound_share: 0.5,
            bound_per_second: 100e9,
        };
        assert_eq!(bound, f32);
        let bound = roofline.bound(&work(1_000, 5_000_000_000), 2.0).unwrap();
        let bandwidth =
            Bound { bound: "bandwidth".into(), bound_arithmetic: None, bound_share: 0.25, bound_per_second: 10e9 };
        assert_eq!(bound, bandwidth);
        assert_eq!(roofline.bound(&work(0, 0), 1.0), None);
        assert_eq!(roofline.peaks().peak_bandwidth, 10e9);
    }

    #[test]
    fn each_kind_of_arithmetic_has_its_own_peak() {
        let matrices = Work { flops_exact: 400, flops_matrices: 400, ..Work::default() };
        let roofline = known(&Device::cpu());
        assert_eq!(roofline.bound(&matrices, 1.0), None, "a peak that is not known");
        let roofline = Roofline { flops_f32: 100.0, flops_f16: Some(50.0), flops_matrices: Some(800.0), ..roofline };
        let told = |work: &Work| {
            let bound = roofline.bound(work, 2.0).unwrap();
            (bound.bound_arithmetic.unwrap(), bound.bound_share, bound.bound_per_second)
        };
        assert_eq!(told(&matrices), ("matrices".into(), 0.25, 800.0));
        let f16 = Work { flops_exact: 25, flops_f16: 25, ..Work::default() };
        assert_eq!(told(&f16), ("f16".into(), 0.25, 50.0));
        // Half a second on matrices, then one in f32: 500 operations in a second and a half.
        let both = Work { flops_exact: 500, ..matrices };
        let (name, share, rate) = told(&both);
        assert_eq!((name.as_str(), share), ("f32 + matrices", 0.75));
        assert!((rate - 500.0 / 1.5).abs() < 1e-9, "{rate}");
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
        // A busy machine leaves a peak too low; what is better stays, either way.
        let path = path(&device, &cache).unwrap();
        let before = Roofline { flops_f32: 1e30, bytes_copied: 1.0, flops_f16: Some(3.0), ..measured };
        fs::write(&path, serde_json::to_string(&before).unwrap()).unwrap();
        let kept = Roofline::measure(&device, &cache).unwrap();
        assert_eq!((kept.flops_f32, kept.flops_f16), (1e30, Some(3.0)));
        assert!(kept.bytes_copied > 1e8 && kept.bytes_read >= before.bytes_read);
        fs::remove_dir_all(&folder).unwrap();
    }
}
