//! The native backend: runs a plan on the host's cores, with no GPU and no driver.

mod program;

pub use program::CpuBuffer;
pub(crate) use program::{CpuProgram, run_trial};

use crate::capabilities::Capabilities;
use crate::weights::WeightCache;

/// The host's cores.
#[derive(Debug)]
pub struct Cpu {
    capabilities: Capabilities,
    name: String,
    pub(crate) weights: WeightCache<CpuBuffer>,
}

impl Default for Cpu {
    fn default() -> Self {
        let threads = rayon::current_num_threads();
        let simd = pulp::Arch::new();
        let name = format!("CPU backend ({threads} threads, {simd:?})");
        Self { capabilities: Capabilities::cpu(), name, weights: WeightCache::default() }
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
}
