//! A wgpu device with its pipelines, its weights and its way of reporting errors.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::adapter::{Adapter, capabilities, select};
use super::features::features;
use super::pipelines::Pipelines;
use super::readback::{Readback, Staging};
use crate::capabilities::Capabilities;
use crate::device::{Cache, Checks, DeviceOptions};
use crate::error::{Error, Result};
use crate::tensor::HostTensor;
use crate::weight_cache::WeightCache;

/// A device that runs WGSL.
#[derive(Debug)]
pub struct Gpu {
    id: u64,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    capabilities: Capabilities,
    name: String,
    checks: Checks,
    pub(super) pipelines: Pipelines,
    pub(super) weights: WeightCache<GpuBuffer>,
    buffers_created: AtomicU64,
    submissions: AtomicU64,
    lost: Arc<Mutex<Option<String>>>,
    /// Whether `lost` will be set: not for a caller's device, whose callback is the caller's.
    tells_loss: bool,
}

/// A buffer on a GPU, and the device that made it; `None` for a caller's. Clones are the same buffer.
#[derive(Debug, Clone)]
pub struct GpuBuffer(pub(super) wgpu::Buffer, pub(super) Option<u64>);

impl PartialEq for GpuBuffer {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

/// Bytes of a binding for a tensor of `bytes`: whole words, and never none.
pub(super) fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(4).max(4)
}

/// How long after the work a callback may still be on its way on another thread.
const CALLBACK_PATIENCE: Duration = Duration::from_secs(10);

/// What every tensor's buffer can be used for.
pub(super) const TENSOR_USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

impl Gpu {
    /// Opens the selected adapter with all of its limits; says why it was that one.
    pub(crate) fn open(options: &DeviceOptions) -> Result<(Self, String)> {
        let (adapter, reason) = select(&options.select)?;
        let wanted = wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP
            | wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::PIPELINE_CACHE
            | wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("regard"),
            required_features: features(&adapter.adapter) & wanted,
            required_limits: adapter.adapter.limits(),
            experimental_features: experimental(),
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.adapter.request_device(&descriptor))
            .map_err(|error| Error::Device(format!("{}: {error}", adapter.describe())))?;
        let mut gpu = Self::assemble(&adapter.adapter, device, queue, options.checks, &options.cache);
        gpu.tells_loss = true;
        let lost = gpu.lost.clone();
        gpu.device.set_device_lost_callback(move |reason, message| {
            *lock(&lost) = Some(format!("{message} ({reason:?})"));
        });
        Ok((gpu, reason))
    }

    /// A device that somebody else opened. Its callbacks are left alone.
    pub(super) fn assemble(
        adapter: &wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
        checks: Checks,
        cache: &Cache,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            capabilities: capabilities(adapter, device.features(), &device.limits()),
            name: Adapter::new(adapter.clone()).describe(),
            pipelines: Pipelines::new(adapter, &device, cache),
            device,
            queue,
            checks,
            weights: WeightCache::default(),
            buffers_created: AtomicU64::new(0),
            submissions: AtomicU64::new(0),
            lost: Arc::default(),
            tells_loss: false,
        }
    }

    /// Features and limits.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Adapter, driver and interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Buffers made since the device was opened.
    pub fn buffers_created(&self) -> u64 {
        self.buffers_created.load(Ordering::Relaxed)
    }

    /// Submissions made since the device was opened.
    pub fn submissions(&self) -> u64 {
        self.submissions.load(Ordering::Relaxed)
    }

    pub(super) fn submit(&self, commands: wgpu::CommandBuffer) -> wgpu::SubmissionIndex {
        self.submissions.fetch_add(1, Ordering::Relaxed);
        self.queue.submit([commands])
    }

    #[expect(unsafe_code, reason = "run-time checks cost up to a factor of 100 in loops")]
    pub(super) fn module(&self, label: &str, text: &str) -> wgpu::ShaderModule {
        let descriptor =
            wgpu::ShaderModuleDescriptor { label: Some(label), source: wgpu::ShaderSource::Wgsl(text.into()) };
        match self.checks {
            Checks::Checked => self.device.create_shader_module(descriptor),
            // SAFETY: the text is one of the crate's own shaders; each keeps inside its bindings for every shape that its
            // op accepts and ends its loops, which the tests show with guard bytes, checked and unchecked.
            Checks::Unchecked => unsafe {
                self.device.create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
            },
        }
    }

    /// A buffer; mapped at first when the host writes it.
    pub(super) fn create_buffer(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<GpuBuffer> {
        self.check_alive()?;
        self.buffers_created.fetch_add(1, Ordering::Relaxed);
        let mapped_at_creation = usage.contains(wgpu::BufferUsages::MAP_WRITE);
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size: padded(bytes), usage, mapped_at_creation };
        self.scoped(|| self.device.create_buffer(&descriptor)).map(|buffer| GpuBuffer(buffer, Some(self.id)))
    }

    pub(crate) fn upload(&self, tensor: &HostTensor) -> Result<GpuBuffer> {
        let bytes = tensor.bytes();
        let allowed = self.capabilities.binding_bytes;
        if bytes.len() as u64 > allowed {
            let hint =
                format!("split it into parts of at most {} elements", allowed / tensor.desc().dtype.size() as u64);
            let (tensor, needed) = (tensor.desc().to_string(), bytes.len() as u64);
            return Err(Error::TooLarge { tensor, needed, allowed, hint });
        }
        let buffer = self.create_buffer("regard upload", bytes.len() as u64, TENSOR_USAGE)?;
        self.scoped(|| {
            let whole = bytes.len() / 4 * 4;
            self.queue.write_buffer(&buffer.0, 0, &bytes[..whole]);
            let mut last = [0; 4];
            last[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
            if whole < bytes.len() {
                self.queue.write_buffer(&buffer.0, whole as u64, &last);
            }
        })?;
        Ok(buffer)
    }

    pub(crate) fn download(self: &Arc<Self>, buffer: &GpuBuffer, bytes: u64) -> Result<Vec<u8>> {
        self.check_owner(buffer)?;
        let target = Staging::new(self, "regard download", bytes)?;
        let readback = Readback::after(self, &target, || {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            encoder.copy_buffer_to_buffer(&buffer.0, 0, &target.buffer.0, 0, padded(bytes));
            self.submit(encoder.finish())
        })?;
        readback.wait()?;
        readback.look(&(0..bytes), |bytes| Ok(bytes.to_vec()))
    }

    /// Refuses a buffer of another device, which wgpu would meet with a panic.
    pub(super) fn check_owner(&self, buffer: &GpuBuffer) -> Result<()> {
        match buffer.1 {
            Some(owner) if owner != self.id => Err(Error::Device("the tensor lives on another device".into())),
            _ => Ok(()),
        }
    }

    /// Runs all submitted work to its end and calls what waits for it.
    pub(super) fn wait(&self) -> Result<()> {
        self.wait_for(None)
    }

    /// Runs this submission and those before it to their end, or all of them, and calls what waits for it. Threads that wait
    /// hold no lock that others need to submit or to wait (wgpu-core 30, `Device::maintain`).
    pub(super) fn wait_for(&self, submission: Option<&wgpu::SubmissionIndex>) -> Result<()> {
        let until = wgpu::PollType::Wait { submission_index: submission.cloned(), timeout: None };
        // A lost device returns numbers of submissions that it did not take.
        self.device.poll(until).map_err(|error| self.complaint(&error))?;
        self.check_alive()
    }

    /// Errs where the queue did not take a submission: a caller's device that is lost says so neither then nor to us.
    pub(super) fn check_taken(&self, submission: &wgpu::SubmissionIndex) -> Result<()> {
        if self.tells_loss {
            return self.check_alive();
        }
        let timeout = Some(Duration::ZERO);
        match self.device.poll(wgpu::PollType::Wait { submission_index: Some(submission.clone()), timeout }) {
            Ok(_) | Err(wgpu::PollError::Timeout) => Ok(()),
            Err(error) => Err(self.complaint(&error)),
        }
    }

    /// Waits for what a callback does after a submission. One wait is not enough: a poll on another thread may hold the
    /// callback and not have called it yet.
    pub(super) fn wait_until(&self, submission: Option<&wgpu::SubmissionIndex>, done: impl Fn() -> bool) -> Result<()> {
        let mut idle_since = None;
        loop {
            self.wait_for(submission)?;
            if done() {
                return Ok(());
            }
            // The first wait took as long as the work did, which says nothing about the callback.
            if idle_since.get_or_insert_with(Instant::now).elapsed() > CALLBACK_PATIENCE {
                return Err(Error::DeviceLost("the device stopped before a buffer was mapped".into()));
            }
            std::thread::yield_now();
        }
    }

    pub(super) fn check_alive(&self) -> Result<()> {
        match &*lock(&self.lost) {
            Some(why) => Err(Error::DeviceLost(why.clone())),
            None => Ok(()),
        }
    }

    /// Runs `work` and returns the device's first complaint, which would otherwise end the process.
    pub(super) fn scoped<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let filters = [wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal];
        let scopes = filters.map(|filter| self.device.push_error_scope(filter));
        let result = work();
        let mut complaint = None;
        for scope in scopes.into_iter().rev() {
            complaint = pollster::block_on(scope.pop()).or(complaint);
        }
        match complaint {
            Some(error) => Err(self.complaint(&error)),
            None => Ok(result),
        }
    }

    /// What an error of wgpu's means: that the device is gone, or that it refuses.
    pub(super) fn complaint(&self, error: &dyn std::error::Error) -> Error {
        match self.check_alive() {
            Err(lost) => lost,
            Ok(()) if self.responds() => Error::Device(error.to_string()),
            Ok(()) => Error::DeviceLost(error.to_string()),
        }
    }

    /// Whether the device still makes buffers: a caller's device does not tell us that it is lost.
    fn responds(&self) -> bool {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let usage = wgpu::BufferUsages::MAP_WRITE;
        let descriptor =
            wgpu::BufferDescriptor { label: Some("regard probe"), size: 4, usage, mapped_at_creation: true };
        // A lost device hands out an invalid buffer without a word, and complains when it is used.
        self.device.create_buffer(&descriptor).unmap();
        pollster::block_on(scope.pop()).is_none()
    }
}

/// Leave to ask for cooperative matrices.
#[expect(unsafe_code, reason = "wgpu has cooperative matrices on these terms only")]
fn experimental() -> wgpu::ExperimentalFeatures {
    // SAFETY: wgpu asks for acknowledgement that its side may have errors. Kernels with cooperative matrices are checked like
    // all others, and load and store inside their own workgroup's memory only.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// A panic of another thread leaves these maps whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
