//! One launch on its own, its outputs full of NaN before and followed by guard bytes.

use std::sync::Arc;

use super::gpu_device::{Gpu, TENSOR_USAGE, padded};
use super::program::bind_group;
use crate::error::Result;
use crate::op::Launch;
use crate::tensor::{HostTensor, TensorDesc};

/// The bytes of each output with `guard` bytes after them. All start as 0xff, which is NaN in every float.
pub(crate) fn run_trial(
    gpu: &Arc<Gpu>,
    launch: &Launch,
    inputs: &[HostTensor],
    outputs: &[TensorDesc],
    guard: u64,
) -> Result<Vec<Vec<u8>>> {
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let params = gpu.create_buffer("trial params", launch.params.bytes.len() as u64, usage)?;
    gpu.queue.write_buffer(&params.0, 0, &launch.params.bytes);
    let uploaded = inputs.iter().map(|input| gpu.upload(input)).collect::<Result<Vec<_>>>()?;
    let mut written = Vec::with_capacity(outputs.len());
    for output in outputs {
        let bytes = padded(output.bytes() + guard);
        let buffer = gpu.create_buffer("trial output", bytes, TENSOR_USAGE)?;
        gpu.queue.write_buffer(&buffer.0, 0, &vec![0xff; bytes as usize]);
        written.push(buffer);
    }
    if !launch.workgroups.contains(&0) {
        // The guard is inside the binding: drivers discard writes past a binding's end, so that no guard would see them.
        let sizes = (inputs.iter().map(|input| input.desc().bytes())).chain(outputs.iter().map(|o| o.bytes() + guard));
        let numbers = launch.bindings.inputs.iter().chain(&launch.bindings.outputs);
        let tensors = numbers.zip(uploaded.iter().chain(&written)).zip(sizes);
        let tensors = tensors.map(|((&number, buffer), bytes)| (number, buffer, bytes));
        let pipeline = gpu.pipeline(&launch.shader)?;
        let range = 0..launch.params.bytes.len() as u64;
        let group = bind_group(gpu, launch.shader.main.name, &pipeline, (&params, range), tensors)?;
        gpu.scoped(|| {
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&Default::default());
            pass.set_pipeline(&pipeline);
            pass.set_bind_group(0, &group, &[]);
            let [x, y, z] = launch.workgroups;
            pass.dispatch_workgroups(x, y, z);
            drop(pass);
            gpu.queue.submit([encoder.finish()]);
        })?;
    }
    let bytes = |output: &TensorDesc| output.bytes() + guard;
    written.iter().zip(outputs).map(|(buffer, output)| gpu.download(buffer, bytes(output))).collect()
}
