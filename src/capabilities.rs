//! What a device can do, as plain data. Techniques are chosen from this and from shapes alone.

use crate::tensor::{Dtype, TensorDesc};

/// Where kernels run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Backend {
    /// WGSL through wgpu.
    Gpu,
    /// Native code on the host's cores.
    Cpu,
}

/// A cooperative matrix product `m × k` by `k × n` that the device offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CooperativeMatrix {
    /// Rows of the left factor.
    pub m: u32,
    /// Columns of the right factor.
    pub n: u32,
    /// The dimension summed over.
    pub k: u32,
    /// Element type of both factors, in the driver's words.
    pub factors: String,
    /// Element type of the accumulator, in the driver's words.
    pub accumulator: String,
}

/// Features and limits that decide which techniques an op offers.
#[derive(Debug, Clone, PartialEq)]
pub struct Capabilities {
    /// Where kernels run.
    pub backend: Backend,
    /// The adapter is a driver that runs shaders on the host's cores.
    pub software: bool,
    /// WGSL kernels may use f16.
    pub f16: bool,
    /// Least and greatest subgroup size, when subgroup operations work.
    pub subgroups: Option<(u32, u32)>,
    /// GPU timestamps inside an encoder.
    pub timestamps: bool,
    /// Cooperative matrix products.
    pub cooperative: Vec<CooperativeMatrix>,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Invocations of one workgroup.
    pub invocations: u32,
    /// Bytes of one storage binding.
    pub binding_bytes: u64,
    /// Workgroups along one dimension of a dispatch.
    pub workgroups: u32,
    /// Storage buffers that one shader may bind.
    pub storage_buffers: u32,
    /// Processors, each of which runs several workgroups at once. wgpu does not tell how many a GPU has, so that one counts
    /// as large as [`PROCESSORS`]; software devices and the native backend have the host's threads.
    pub processors: u32,
    /// Rounds, of all loops that an invocation goes through together, that the driver is sure not to end without an error; `None`
    /// where it ends none. Techniques whose loops may take more are not offered.
    pub loop_rounds: Option<usize>,
}

/// Processors that a GPU is taken to have: an H200 has 132.
pub const PROCESSORS: u32 = 128;

/// Threads that the host runs at once.
pub(crate) fn host_threads() -> u32 {
    std::thread::available_parallelism().map_or(1, |threads| u32::try_from(threads.get()).unwrap_or(u32::MAX))
}

impl Capabilities {
    /// Whether kernels may use the dtypes of all these tensors.
    pub(crate) fn has_types(&self, descs: &[TensorDesc]) -> bool {
        self.f16 || descs.iter().all(|desc| desc.dtype != Dtype::F16)
    }

    /// The least that WebGPU guarantees.
    pub fn baseline() -> Self {
        Self {
            backend: Backend::Gpu,
            software: false,
            f16: false,
            subgroups: None,
            timestamps: false,
            cooperative: Vec::new(),
            workgroup_memory: 16 << 10,
            invocations: 256,
            binding_bytes: 128 << 20,
            workgroups: 65_535,
            storage_buffers: 8,
            processors: PROCESSORS,
            loop_rounds: None,
        }
    }

    /// Whether loops of so many rounds come to their end.
    pub(crate) fn completes(&self, rounds: usize) -> bool {
        self.loop_rounds.is_none_or(|most| rounds <= most)
    }

    /// Edge of the largest square cooperative matrices that multiply f16 and accumulate f32 and that WGSL has, 16 or 8.
    /// They belong to a subgroup, so there is none without subgroups.
    pub fn matrix_edge(&self) -> Option<u32> {
        let fits = |edge: u32| {
            move |matrix: &&CooperativeMatrix| {
                [matrix.m, matrix.n, matrix.k] == [edge; 3] && matrix.factors == "f16" && matrix.accumulator == "f32"
            }
        };
        let usable = self.f16 && self.subgroups.is_some();
        [16, 8].into_iter().find(|&edge| usable && self.cooperative.iter().any(|matrix| fits(edge)(&matrix)))
    }

    /// Software devices that load once what is the same for all lanes: Mesa's from 26 on, which are those with cooperative matrices.
    pub(crate) fn loads_once(&self) -> bool {
        self.software && self.matrix_edge().is_some()
    }

    /// The baseline with f16, the most that any kernel so far asks for.
    pub fn baseline_f16() -> Self {
        Self { f16: true, ..Self::baseline() }
    }

    /// The native backend: no limit but memory.
    pub fn cpu() -> Self {
        Self {
            backend: Backend::Cpu,
            f16: true,
            binding_bytes: u64::MAX,
            storage_buffers: u32::MAX,
            processors: host_threads(),
            ..Self::baseline()
        }
    }
}
