//! For programs that have a wgpu device of their own: share it, bind its buffers, record into its encoders.

use super::gpu_device::{Gpu, GpuBuffer, TENSOR_USAGE, padded};
use crate::device::{Cache, Checks, Device, DeviceTensor, Storage};
use crate::error::{Error, Result};
use crate::plan::{Engine, Plan};
use crate::tensor::TensorDesc;

impl Device {
    /// A device that the caller opened. Techniques follow the features that it was opened with
    /// (`SHADER_F16`, `SUBGROUP`, `TIMESTAMP_QUERY`, `EXPERIMENTAL_COOPERATIVE_MATRIX`; with `PIPELINE_CACHE` pipelines are kept as
    /// [`Cache::User`] says); its error and loss callbacks are left alone.
    pub fn from_wgpu(adapter: &wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let cache = Cache::default();
        let gpu = Gpu::assemble(adapter, device, queue, Checks::default(), &cache);
        Self::from_gpu(gpu, "the caller's wgpu device", &cache)
    }
}

impl DeviceTensor {
    /// A tensor in a buffer of the caller's, dense and row-major from its first byte. The buffer must be of the wgpu device
    /// that the tensor is used on: wgpu gives no way to check, and panics on a buffer of another instance.
    ///
    /// # Errors
    /// A buffer that is too small, or that lacks the usages `STORAGE`, `COPY_SRC` or `COPY_DST`.
    pub fn from_wgpu(desc: TensorDesc, buffer: wgpu::Buffer) -> Result<Self> {
        let needed = padded(desc.bytes());
        if buffer.size() < needed {
            return Err(Error::shape(
                "tensor",
                format!("{desc} needs {needed} bytes, the buffer has {}", buffer.size()),
            ));
        }
        if !buffer.usage().contains(TENSOR_USAGE) {
            let message = format!("the buffer has usages {:?}, it needs {TENSOR_USAGE:?}", buffer.usage());
            return Err(Error::shape("tensor", message));
        }
        Ok(Self { desc, storage: Storage::Gpu(GpuBuffer(buffer, None)) })
    }

    /// The buffer that holds the tensor from its first byte on; `None` on the CPU backend.
    pub fn as_wgpu(&self) -> Option<&wgpu::Buffer> {
        match &self.storage {
            Storage::Gpu(buffer) => Some(&buffer.0),
            Storage::Cpu(_) => None,
        }
    }
}

impl Plan {
    /// Records one run into the caller's encoder; it happens when the caller submits.
    /// Inputs that were written since the last run are uploaded at once, in a submission that comes before.
    ///
    /// # Errors
    /// An input that was never given, a plan of the CPU backend, a lost device.
    pub fn encode(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        self.check_given()?;
        match &mut self.engine {
            Engine::Gpu(program) => program.encode(encoder),
            Engine::Cpu(_) => Err(Error::Plan("a plan of the CPU backend has no commands to encode".into())),
        }
    }
}
