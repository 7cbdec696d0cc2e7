//! The native backend: runs a plan on the host's cores, with no GPU and no driver.

pub(crate) mod kernels;
mod program;

pub use program::CpuBuffer;
pub(crate) use program::{CpuProgram, run_trial};

use std::sync::atomic::{AtomicU64, Ordering};

use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::weight_cache::WeightCache;

/// The host's cores.
#[derive(Debug)]
pub struct Cpu {
    capabilities: Capabilities,
    name: String,
    pub(crate) weights: WeightCache<CpuBuffer>,
    created: AtomicU64,
}

impl Default for Cpu {
    fn default() -> Self {
        let threads = rayon::current_num_threads();
        // `V4(V4 { sse: Sse, … })`: the level without its list of features.
        let simd = format!("{:?}", pulp::Arch::new());
        let simd = simd.split('(').next().unwrap_or("scalar");
        let name = format!("CPU backend ({threads} threads, pulp {simd})");
        Self { capabilities: Capabilities::cpu(), name, weights: WeightCache::default(), created: AtomicU64::new(0) }
    }
}

impl Cpu {
    /// Features and limits.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Threads and instruction set.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Buffers made since the device was opened.
    pub fn buffers_created(&self) -> u64 {
        self.created.load(Ordering::Relaxed)
    }

    pub(crate) fn create_buffer(&self, bytes: u64) -> Result<CpuBuffer> {
        self.created.fetch_add(1, Ordering::Relaxed);
        CpuBuffer::zeroed(bytes)
    }

    pub(crate) fn upload(&self, bytes: &[u8]) -> Result<CpuBuffer> {
        self.created.fetch_add(1, Ordering::Relaxed);
        CpuBuffer::from_bytes(bytes)
    }
}
