//! Devices of the benches.

use std::time::Duration;

use criterion::Criterion;
use regard::gpu::adapters;
use regard::{Device, DeviceOptions, Select};

/// The CPU backend and every adapter, each introduced on stderr with its clock.
pub fn devices() -> Vec<Device> {
    let gpus = adapters().into_iter().map(|adapter| {
        let select = Select::Named(adapter.describe());
        Device::new(&DeviceOptions { select, ..DeviceOptions::default() }).expect("a listed adapter opens")
    });
    let devices: Vec<_> = [Device::cpu()].into_iter().chain(gpus).collect();
    for device in &devices {
        let clock = if device.capabilities().timestamps { "GPU timestamps" } else { "host clock" };
        eprintln!("{}: {}, {clock}", short(device), device.name());
    }
    devices
}

/// `cpu`, or the first word of the adapter's name.
pub fn short(device: &Device) -> String {
    let name = device.name();
    name.split_whitespace().next().unwrap_or("device").to_lowercase()
}

/// Few samples of short runs: there are many techniques, and a software device takes seconds for a large problem.
pub fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
}
