//! Devices: a GPU through wgpu, or the native CPU backend, behind one face.

use std::fmt;
use std::sync::Arc;

pub use crate::cache::Cache;
use crate::capabilities::Capabilities;
use crate::cpu::{Cpu, CpuBuffer};
use crate::error::{Error, Result};
use crate::gpu::{Gpu, GpuBuffer};
use crate::tensor::{HostTensor, TensorDesc};
use crate::tuned::Tuned;

/// Which device to take.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Select {
    /// A discrete, integrated or virtual GPU, in this order, else the CPU backend. Never a software Vulkan device.
    #[default]
    Best,
    /// As [`Select::Best`], but an error instead of the CPU backend.
    Gpu,
    /// The native CPU backend.
    Cpu,
    /// An adapter whose name or driver contains this, whatever the case; `software` is any software Vulkan device.
    Named(String),
}

impl std::str::FromStr for Select {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match text {
            "auto" | "best" => Self::Best,
            "gpu" => Self::Gpu,
            "cpu" => Self::Cpu,
            name => Self::Named(name.to_owned()),
        })
    }
}

/// Whether shaders are compiled with bounds checks and loop counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Checks {
    /// No: the kernels stay inside their buffers, which the tests show with guard bytes.
    #[default]
    Unchecked,
    /// Yes, as for shaders that nobody has tested. Slower.
    Checked,
}

/// How to open a device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceOptions {
    /// Which one.
    pub select: Select,
    /// Run-time checks in shaders.
    pub checks: Checks,
    /// Where compiled pipelines and the results of tuning stay.
    pub cache: Cache,
}

/// Something that runs plans. Cheap to clone; clones are the same device.
#[derive(Debug, Clone)]
pub struct Device {
    pub(crate) inner: Inner,
    pub(crate) tuned: Arc<Tuned>,
    reason: Arc<str>,
}

#[derive(Debug, Clone)]
pub(crate) enum Inner {
    Gpu(Arc<Gpu>),
    Cpu(Arc<Cpu>),
}

impl Device {
    /// The device that the options select.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] when nothing fits, [`Error::Device`] when the adapter refuses to open.
    pub fn new(options: &DeviceOptions) -> Result<Self> {
        if options.select == Select::Cpu {
            return Ok(Self::native("the CPU backend was asked for", &options.cache));
        }
        match Gpu::open(options) {
            Ok((gpu, reason)) => Ok(Self::from_gpu(gpu, &reason, &options.cache)),
            Err(Error::NoAdapter(why)) if options.select == Select::Best => {
                Ok(Self::native(&format!("{why}, so the CPU backend"), &options.cache))
            }
            Err(error) => Err(error),
        }
    }

    /// The best real GPU.
    ///
    /// # Errors
    /// As [`Device::new`].
    pub fn gpu() -> Result<Self> {
        Self::new(&DeviceOptions { select: Select::Gpu, ..DeviceOptions::default() })
    }

    /// The native CPU backend. It uses the calling thread's `rayon` pool.
    pub fn cpu() -> Self {
        Self::native("the CPU backend was asked for", &Cache::default())
    }

    fn native(reason: &str, cache: &Cache) -> Self {
        let cpu = Arc::<Cpu>::default();
        let tuned = Arc::new(Tuned::new(cpu.name().to_owned(), cache));
        Self { inner: Inner::Cpu(cpu), tuned, reason: reason.into() }
    }

    pub(crate) fn from_gpu(gpu: Gpu, reason: &str, cache: &Cache) -> Self {
        let tuned = Arc::new(Tuned::new(gpu.name().to_owned(), cache));
        Self { inner: Inner::Gpu(Arc::new(gpu)), tuned, reason: reason.into() }
    }

    /// Features and limits.
    pub fn capabilities(&self) -> &Capabilities {
        match &self.inner {
            Inner::Gpu(gpu) => gpu.capabilities(),
            Inner::Cpu(cpu) => cpu.capabilities(),
        }
    }

    /// Name of the adapter and its driver, or of the CPU.
    pub fn name(&self) -> String {
        match &self.inner {
            Inner::Gpu(gpu) => gpu.name().to_owned(),
            Inner::Cpu(cpu) => cpu.name().to_owned(),
        }
    }

    /// Why this device was taken, in words.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Copies a tensor to the device, where it stays.
    ///
    /// # Errors
    /// A tensor that is larger than the device can bind, or a device that is lost.
    pub fn upload(&self, tensor: &HostTensor) -> Result<DeviceTensor> {
        let storage = match &self.inner {
            Inner::Gpu(gpu) => Storage::Gpu(gpu.upload(tensor)?),
            Inner::Cpu(cpu) => Storage::Cpu(cpu.upload(tensor.bytes())?),
        };
        Ok(DeviceTensor { desc: tensor.desc().clone(), storage })
    }

    /// Copies a tensor from the device.
    ///
    /// # Errors
    /// A tensor of another kind of device, or a device that is lost.
    pub fn download(&self, tensor: &DeviceTensor) -> Result<HostTensor> {
        let bytes = match (&self.inner, &tensor.storage) {
            (Inner::Gpu(gpu), Storage::Gpu(buffer)) => gpu.download(buffer, tensor.desc.bytes())?,
            (Inner::Cpu(_), Storage::Cpu(buffer)) => buffer.read()[..tensor.desc.bytes() as usize].to_vec(),
            _ => return Err(Error::Device("the tensor lives on another kind of device".into())),
        };
        HostTensor::from_bytes(tensor.desc.clone(), &bytes)
    }

    /// Buffers that this device has made since it was opened. A run in steady state makes none.
    pub fn buffers_created(&self) -> u64 {
        match &self.inner {
            Inner::Gpu(gpu) => gpu.buffers_created(),
            Inner::Cpu(cpu) => cpu.buffers_created(),
        }
    }

    /// Submissions to the GPU's queue since the device was opened; none on the CPU backend. A run makes one.
    pub fn submissions(&self) -> u64 {
        match &self.inner {
            Inner::Gpu(gpu) => gpu.submissions(),
            Inner::Cpu(_) => 0,
        }
    }

    /// Seconds until the GPU has copied one tensor onto another of the same size so many times by its own command; `None` on the CPU
    /// backend, whose copies are the plan's.
    pub(crate) fn time_copies(&self, from: &DeviceTensor, to: &DeviceTensor, copies: u32) -> Result<Option<f64>> {
        match (&self.inner, &from.storage, &to.storage) {
            (Inner::Gpu(gpu), Storage::Gpu(from), Storage::Gpu(to)) => gpu.time_copies(from, to, copies).map(Some),
            _ => Ok(None),
        }
    }

    /// Drops the compiled pipelines, but for those that plans hold, and with them what drivers keep for each: megabytes on software
    /// devices. Later plans compile theirs anew, or find them in the cache on disk.
    pub fn forget_pipelines(&self) {
        if let Inner::Gpu(gpu) = &self.inner {
            gpu.forget_pipelines();
        }
    }
}

/// A tensor that lives on a device. Cheap to clone; clones share the memory.
#[derive(Debug, Clone)]
pub struct DeviceTensor {
    pub(crate) desc: TensorDesc,
    pub(crate) storage: Storage,
}

#[derive(Debug, Clone)]
pub(crate) enum Storage {
    Gpu(GpuBuffer),
    Cpu(CpuBuffer),
}

impl DeviceTensor {
    /// Dtype and shape.
    pub fn desc(&self) -> &TensorDesc {
        &self.desc
    }

    pub(crate) fn shares_memory(&self, other: &Self) -> bool {
        match (&self.storage, &other.storage) {
            (Storage::Gpu(a), Storage::Gpu(b)) => a == b,
            (Storage::Cpu(a), Storage::Cpu(b)) => a.same(b),
            _ => false,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.reason)
    }
}
