//! Which adapters there are and what they can do.

use super::features::features;
use crate::capabilities::{Backend, Capabilities, CooperativeMatrix, PROCESSORS, host_threads};
use crate::device::Select;
use crate::error::{Error, Result};

/// What kind of thing an adapter is, in order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A graphics card.
    Discrete,
    /// A GPU that shares the host's memory.
    Integrated,
    /// A GPU behind a hypervisor.
    Virtual,
    /// Something that the driver does not name.
    Other,
    /// A driver that runs shaders on the CPU: for checking kernels, ten times slower than the CPU backend.
    Software,
}

/// An adapter that wgpu lists.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// Name of the hardware.
    pub name: String,
    /// Name and version of the driver.
    pub driver: String,
    /// Graphics interface, such as `Vulkan`.
    pub interface: String,
    /// What kind of thing it is.
    pub kind: Kind,
    /// What it can do.
    pub capabilities: Capabilities,
    pub(super) adapter: wgpu::Adapter,
}

/// Every adapter, best first. Empty when no driver is installed.
pub fn adapters() -> Vec<Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    // GL adapters are listed beside their Vulkan twins and lack most features.
    descriptor.backends = wgpu::Backends::PRIMARY;
    let instance = wgpu::Instance::new(descriptor);
    let found = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let mut adapters: Vec<_> = found.into_iter().map(Adapter::new).collect();
    adapters.sort_by_key(|adapter| adapter.kind);
    adapters
}

/// The adapter that is selected, and why.
pub(super) fn select(select: &Select) -> Result<(Adapter, String)> {
    let adapters = adapters();
    let names = adapters.iter().map(|adapter| adapter.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Select::Named(name) = select {
        let chosen = adapters.iter().find(|adapter| adapter.is_called(name)).cloned();
        let missing = || Error::NoAdapter(format!("no adapter is called `{name}`; there are: {}", or_none(&names)));
        return Ok((chosen.ok_or_else(missing)?, format!("it was asked for as `{name}`")));
    }
    match adapters.iter().find(|adapter| adapter.kind != Kind::Software).cloned() {
        Some(adapter) => {
            let reason = format!("the best of: {names}");
            Ok((adapter, reason))
        }
        None if adapters.is_empty() => Err(Error::NoAdapter("there is no GPU adapter".into())),
        None => Err(Error::NoAdapter(format!("there is no GPU, only software devices, taken by name ({names})"))),
    }
}

fn or_none(names: &str) -> &str {
    if names.is_empty() { "none" } else { names }
}

impl Adapter {
    pub(super) fn new(adapter: wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        Self {
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            interface: info.backend.to_string(),
            kind: match info.device_type {
                wgpu::DeviceType::DiscreteGpu => Kind::Discrete,
                wgpu::DeviceType::IntegratedGpu => Kind::Integrated,
                wgpu::DeviceType::VirtualGpu => Kind::Virtual,
                wgpu::DeviceType::Cpu => Kind::Software,
                wgpu::DeviceType::Other => Kind::Other,
            },
            capabilities: capabilities(&adapter, features(&adapter), &adapter.limits()),
            name: info.name,
            adapter,
        }
    }

    /// Name, driver and interface in one line.
    pub fn describe(&self) -> String {
        format!("{} ({}, {})", self.name, self.driver, self.interface)
    }

    fn is_called(&self, name: &str) -> bool {
        let name = name.to_lowercase();
        let software = self.kind == Kind::Software && ["software", "lavapipe"].contains(&name.as_str());
        software || self.describe().to_lowercase().contains(&name)
    }
}

/// What a device with these features and limits can do.
pub(super) fn capabilities(adapter: &wgpu::Adapter, features: wgpu::Features, limits: &wgpu::Limits) -> Capabilities {
    let info = adapter.get_info();
    let subgroups = features.contains(wgpu::Features::SUBGROUP);
    let matrices = match features.contains(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX) {
        true => adapter.cooperative_matrix_properties(),
        false => Vec::new(),
    };
    let cooperative = matrices.into_iter().map(|matrix| CooperativeMatrix {
        m: matrix.m_size,
        n: matrix.n_size,
        k: matrix.k_size,
        factors: format!("{:?}", matrix.ab_type).to_lowercase(),
        accumulator: format!("{:?}", matrix.cr_type).to_lowercase(),
    });
    let software = info.device_type == wgpu::DeviceType::Cpu;
    Capabilities {
        backend: Backend::Gpu,
        software,
        f16: features.contains(wgpu::Features::SHADER_F16),
        subgroups: subgroups.then_some((info.subgroup_min_size, info.subgroup_max_size)),
        timestamps: features.contains(wgpu::Features::TIMESTAMP_QUERY),
        cooperative: cooperative.collect(),
        workgroup_memory: limits.max_compute_workgroup_storage_size,
        invocations: limits.max_compute_invocations_per_workgroup,
        binding_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
        workgroups: limits.max_compute_workgroups_per_dimension,
        storage_buffers: limits.max_storage_buffers_per_shader_stage,
        processors: if software { host_threads() } else { PROCESSORS },
        loop_rounds: if software { loop_rounds(&info.driver_info) } else { None },
    }
}

/// First version of Mesa whose software device goes through loops to their end: 25.0 and 26.1 do, 22.3 does not. Of those between,
/// reports say that some do not.
const MESA_WITHOUT_LIMIT: u32 = 25;

/// Of the 65,535 rounds that gallivm, which compiles their shaders, allows the loops of an invocation together, those that
/// techniques may count on: short loops, which they do not count, take the others where they are not unrolled.
const MESA_ROUNDS: usize = 48_000;

/// The limit of a software device, by what its driver says of itself, as "Mesa 22.3.6 (LLVM 15.0.6)".
fn loop_rounds(driver_info: &str) -> Option<usize> {
    let (_, version) = driver_info.split_once("Mesa ")?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    match version[..digits].parse::<u32>() {
        Ok(major) if major >= MESA_WITHOUT_LIMIT => None,
        // A version that is none counts as an old one: the limit costs speed, its lack results.
        _ => Some(MESA_ROUNDS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_mesas_end_loops() {
        let limits = ["Mesa 22.3.6 (LLVM 15.0.6)", "Mesa 24.2.8-1ubuntu1~24.04.1 (LLVM 19.1.1)", "Mesa devel"];
        assert_eq!(limits.map(loop_rounds), [Some(MESA_ROUNDS); 3]);
        let none = ["Mesa 25.0.7-2~bpo12+1 (LLVM 15.0.6)", "Mesa 26.1.6-1~bpo13+1 (LLVM 19.1.7)", "SwiftShader", ""];
        assert_eq!(none.map(loop_rounds), [None; 4]);
    }
}
