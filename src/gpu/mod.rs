//! Everything that names wgpu: adapters, devices, programs, profiling.

mod adapter;
mod copies;
mod embed;
mod features;
mod gpu_device;
mod pipelines;
mod program;
mod readback;
mod timer;
mod trial;
mod upload;

pub use adapter::{Adapter, Kind, adapters};
pub use gpu_device::{Gpu, GpuBuffer};
pub(crate) use program::GpuProgram;
pub(crate) use readback::Readback;
pub(crate) use trial::run_trial;
