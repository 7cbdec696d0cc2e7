//! A wgpu device that the test opened itself, as an embedding program does.

use libtest_mimic::Failed;
use regard::Device;

use crate::common::Subject;

/// What regard asks of an adapter that has it.
pub const ALL_FEATURES: wgpu::Features =
    wgpu::Features::SHADER_F16.union(wgpu::Features::SUBGROUP).union(wgpu::Features::TIMESTAMP_QUERY);

/// A second device on the subject's adapter, with these features where it has them, and regard's view of it.
pub fn wgpu_device(subject: &Subject, features: wgpu::Features) -> Result<(wgpu::Device, wgpu::Queue, Device), Failed> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = pollster::block_on(instance.enumerate_adapters(wgpu::Backends::PRIMARY));
    let name = subject.device.name();
    let adapter = adapters.into_iter().find(|adapter| {
        let info = adapter.get_info();
        name.contains(&info.name) && name.contains(&info.backend.to_string())
    });
    let adapter = adapter.ok_or_else(|| format!("the adapter of {name} is gone"))?;
    let descriptor = wgpu::DeviceDescriptor { required_features: adapter.features() & features, ..Default::default() };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
    let regard = Device::from_wgpu(&adapter, device.clone(), queue.clone());
    Ok((device, queue, regard))
}
