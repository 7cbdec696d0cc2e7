//! Attention inside a program that has a wgpu device of its own: its buffers are used without a copy, and the work is
//! recorded into its command encoder.
//!
//!     cargo run --release --example own_device

use std::error::Error;

use regard::{Attention, Causal, Device, DeviceTensor, Dtype, Graph, Plan, TensorDesc};
use wgpu::util::{BufferInitDescriptor, DeviceExt};

const SHAPE: [usize; 4] = [1, 8, 128, 64];

fn main() -> Result<(), Box<dyn Error>> {
    // What the program has already.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))?;
    // regard uses these where they are; it needs none of them.
    let wanted = wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP | wgpu::Features::TIMESTAMP_QUERY;
    let descriptor = wgpu::DeviceDescriptor {
        required_features: adapter.features() & wanted,
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let (wgpu_device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;
    let desc = TensorDesc::new(Dtype::F32, SHAPE);
    let [q, k, v] = ["q", "k", "v"].map(|name| input(&wgpu_device, name, &desc));

    // What regard adds: a graph, a plan on this device, the buffers bound to it.
    let device = Device::from_wgpu(&adapter, wgpu_device.clone(), queue.clone());
    let mut graph = Graph::new();
    let [q_in, k_in, v_in] = ["q", "k", "v"].map(|name| graph.input(name, desc.clone()));
    let causal = Attention { causal: Some(Causal::TopLeft), ..Attention::default() };
    let y = graph.attention(q_in?, k_in?, v_in?, &causal)?;
    graph.output("y", y)?;
    let mut plan = Plan::new(&device, &graph)?;
    for (name, buffer) in [("q", q), ("k", k), ("v", v)] {
        plan.bind(name, &DeviceTensor::from_wgpu(desc.clone(), buffer)?)?;
    }

    // A frame of the program: its own passes may come before and after.
    let mut encoder = wgpu_device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    plan.encode(&mut encoder)?;
    queue.submit([encoder.finish()]);

    let result = plan.tensor("y")?;
    println!("on {}", device.name());
    println!("the result stays in a buffer of {} bytes", result.as_wgpu().map_or(0, wgpu::Buffer::size));
    let values = device.download(&result)?.to_f64();
    println!("its first row begins with {:.4?}", &values[..4]);
    Ok(())
}

/// A buffer of the program's with numbers between −1 and 1.
fn input(device: &wgpu::Device, name: &str, desc: &TensorDesc) -> wgpu::Buffer {
    let numbers: Vec<f32> = (0..desc.len()).map(|at| ((at * 7919 + name.len()) % 2001) as f32 / 1000.0 - 1.0).collect();
    device.create_buffer_init(&BufferInitDescriptor {
        label: Some(name),
        contents: bytemuck::cast_slice(&numbers),
        usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
    })
}
