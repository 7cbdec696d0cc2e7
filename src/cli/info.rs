//! `regard info`.

use std::io::{self, Write};

use regard::bench::Roofline;
use regard::capabilities::{Backend, Capabilities, CooperativeMatrix};
use regard::gpu::{Kind, adapters};
use regard::op::Technique;
use regard::ops::REGISTRY;
use regard::tensor::Dtype;
use regard::{Cache, Device, DeviceOptions, Select};
use serde::Serialize;

use super::bench_table::peaks;
use super::text::{bytes, wrap};
use super::{Ending, Result, parse_select};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Measures what a device can do at most, and keeps it for `regard bench` where it is better than what is known; takes a few seconds
    #[arg(long)]
    roofline: bool,
    /// The device to measure: auto, gpu, cpu, or part of an adapter's name
    #[arg(long, default_value = "auto", value_parser = parse_select, requires = "roofline")]
    device: Select,
}

#[derive(Debug, Serialize)]
struct Info {
    schema: &'static str,
    version: &'static str,
    devices: Vec<DeviceInfo>,
    auto: Auto,
}

/// What `--device auto` takes.
#[derive(Debug, Serialize)]
struct Auto {
    device: Option<String>,
    reason: String,
}

#[derive(Debug, Serialize)]
struct DeviceInfo {
    name: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    driver: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<String>,
    f16: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<GpuInfo>,
    techniques: Vec<Choice>,
}

#[derive(Debug, Serialize)]
struct GpuInfo {
    subgroup_sizes: Option<(u32, u32)>,
    timestamps: bool,
    workgroup_memory_bytes: u32,
    invocations_per_workgroup: u32,
    workgroups_per_dimension: u32,
    binding_bytes: u64,
    cooperative_matrices: Vec<String>,
}

/// What an op runs: the techniques that come first for some of its cases.
#[derive(Debug, Serialize)]
struct Choice {
    op: &'static str,
    f32: Vec<&'static str>,
    f16: Vec<&'static str>,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> Result {
    if args.roofline {
        return roofline(args, out);
    }
    let info = gather();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&info).map_err(io::Error::from)?)?;
    } else {
        print(out, &info)?;
    }
    Ok(Ending::Good)
}

fn roofline(args: &Args, out: &mut impl Write) -> Result {
    let device = Device::new(&DeviceOptions { select: args.device.clone(), ..DeviceOptions::default() })?;
    let roofline = Roofline::measure(&device, &Cache::User)?;
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&roofline).map_err(io::Error::from)?)?;
    } else {
        writeln!(out, "{}", roofline.device)?;
        writeln!(out, "{}", wrap(&peaks(&roofline), 2))?;
    }
    Ok(Ending::Good)
}

fn gather() -> Info {
    let cpu = Device::cpu();
    let mut devices: Vec<DeviceInfo> = adapters()
        .into_iter()
        .map(|adapter| DeviceInfo {
            kind: kind(adapter.kind),
            driver: Some(adapter.driver),
            interface: Some(adapter.interface),
            ..DeviceInfo::new(adapter.name, &adapter.capabilities)
        })
        .collect();
    devices.push(DeviceInfo::new(cpu.name(), cpu.capabilities()));
    let auto = match Device::new(&DeviceOptions::default()) {
        Ok(device) => Auto { device: Some(device.name()), reason: device.reason().to_owned() },
        Err(error) => Auto { device: None, reason: error.to_string() },
    };
    Info { schema: "regard.info/1", version: env!("CARGO_PKG_VERSION"), devices, auto }
}

impl DeviceInfo {
    fn new(name: String, capabilities: &Capabilities) -> Self {
        let gpu = (capabilities.backend == Backend::Gpu).then(|| GpuInfo {
            subgroup_sizes: capabilities.subgroups,
            timestamps: capabilities.timestamps,
            workgroup_memory_bytes: capabilities.workgroup_memory,
            invocations_per_workgroup: capabilities.invocations,
            workgroups_per_dimension: capabilities.workgroups,
            binding_bytes: capabilities.binding_bytes,
            cooperative_matrices: capabilities.cooperative.iter().map(matrix).collect(),
        });
        let f16 = capabilities.f16;
        Self { name, kind: "native", driver: None, interface: None, f16, gpu, techniques: techniques(capabilities) }
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Discrete => "discrete GPU",
        Kind::Integrated => "integrated GPU",
        Kind::Virtual => "virtual GPU",
        Kind::Other => "other",
        Kind::Software => "software",
    }
}

fn matrix(CooperativeMatrix { m, n, k, factors, accumulator }: &CooperativeMatrix) -> String {
    format!("{m}×{n}×{k} {factors} into {accumulator}")
}

fn techniques(capabilities: &Capabilities) -> Vec<Choice> {
    let choice = |entry: &regard::ops::Entry| {
        let cases = (entry.cases)();
        let first = |dtype: Dtype| {
            let mut names: Vec<&'static str> = Vec::new();
            for case in cases.iter().filter(|case| case.inputs[0].desc.dtype == dtype) {
                let offered = case.op.techniques(&case.descs(), capabilities);
                let name = offered.first().map(Technique::name);
                names.extend(name.filter(|name| !names.contains(name)));
            }
            names
        };
        Choice { op: entry.name, f32: first(Dtype::F32), f16: first(Dtype::F16) }
    };
    REGISTRY.iter().map(choice).collect()
}

fn print(out: &mut impl Write, info: &Info) -> io::Result<()> {
    for device in &info.devices {
        print_device(out, device)?;
    }
    let taken = info.auto.device.as_deref().unwrap_or("nothing");
    writeln!(out, "{}", wrap(&format!("auto takes {taken}, because {}", info.auto.reason), 0))
}

fn print_device(out: &mut impl Write, device: &DeviceInfo) -> io::Result<()> {
    writeln!(out, "{}", device.name)?;
    let mut fact = |name: &str, value: &str| writeln!(out, "  {name:<22}{}", wrap(value, 24).trim_start());
    let by_name = if device.kind == kind(Kind::Software) { ", taken only by name" } else { "" };
    fact("kind", &format!("{}{by_name}", device.kind))?;
    for (name, value) in [("driver", &device.driver), ("interface", &device.interface)] {
        if let Some(value) = value {
            fact(name, value)?;
        }
    }
    fact("f16", yes(device.f16))?;
    if let Some(gpu) = &device.gpu {
        let sizes = |(least, most)| if least == most { format!("{least}") } else { format!("{least} to {most}") };
        fact("subgroup size", &gpu.subgroup_sizes.map_or_else(|| "no subgroup operations".into(), sizes))?;
        fact("timestamps", yes(gpu.timestamps))?;
        fact(
            "workgroup",
            &format!(
                "{} of memory, {} invocations",
                bytes(gpu.workgroup_memory_bytes.into()),
                gpu.invocations_per_workgroup
            ),
        )?;
        fact("grid", &format!("{} workgroups in each dimension", gpu.workgroups_per_dimension))?;
        fact("largest tensor", &bytes(gpu.binding_bytes))?;
        let matrices = gpu.cooperative_matrices.join(", ");
        fact("cooperative matrices", if matrices.is_empty() { "none" } else { &matrices })?;
    }
    for Choice { op, f32, f16 } in &device.techniques {
        fact(op, &choices(f32, f16))?;
    }
    writeln!(out)
}

fn choices(f32: &[&str], f16: &[&str]) -> String {
    let names = |names: &[&str]| if names.is_empty() { "nothing".into() } else { names.join(" or ") };
    if f32 == f16 { names(f32) } else { format!("{} (f32), {} (f16)", names(f32), names(f16)) }
}

fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_without_f16_offers_nothing_there() {
        let techniques = techniques(&Capabilities::baseline());
        assert_eq!(techniques.len(), REGISTRY.len());
        // Ops that move words have no need to know what is in them, and those of integers have neither.
        let moves = ["gather_pages", "assign", "dequantize"];
        let floats = techniques.iter().filter(|choice| !moves.contains(&choice.op));
        assert!(floats.clone().all(|choice| choice.f16.is_empty()));
        assert!(floats.filter(|choice| choice.f32.is_empty()).map(|choice| choice.op).eq(["matrix_chain"]));
        assert_eq!(choices(&["a", "b"], &[]), "a or b (f32), nothing (f16)");
    }
}
