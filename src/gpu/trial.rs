//! One launch on its own, its outputs full of known bytes before, which go on behind their ends.

use std::sync::Arc;

use super::gpu_device::{Gpu, TENSOR_USAGE, padded};
use super::program::bind_group;
use crate::error::Result;
use crate::op::{Launch, Trial};

/// The bytes of each output afterwards, with those behind its end.
pub(crate) fn run_trial(gpu: &Arc<Gpu>, launch: &Launch, trial: &Trial<'_>) -> Result<Vec<Vec<u8>>> {
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let params = gpu.create_buffer("trial params", launch.params.bytes.len() as u64, usage)?;
    gpu.queue.write_buffer(&params.0, 0, &launch.params.bytes);
    let Trial { inputs, outputs, .. } = trial;
    let uploaded = inputs.iter().map(|input| gpu.upload(input)).collect::<Result<Vec<_>>>()?;
    let mut written = Vec::with_capacity(outputs.len());
    for (_, before) in outputs {
        let mut before = before.clone();
        before.resize(padded(before.len() as u64) as usize, 0xff);
        let buffer = gpu.create_buffer("trial output", before.len() as u64, TENSOR_USAGE)?;
        gpu.queue.write_buffer(&buffer.0, 0, &before);
        written.push(buffer);
    }
    if !launch.workgroups.contains(&0) {
        // The guard is inside the binding: drivers discard writes past a binding's end, so that no guard would see them.
        let own = (0..inputs.len()).filter(|&input| !launch.bindings.is_updated(input));
        let read = own.map(|i| (launch.bindings.inputs[i], &uploaded[i], inputs[i].desc().bytes()));
        let numbers = launch.bindings.outputs.iter().zip(&written).zip(outputs);
        let tensors = read.chain(numbers.map(|((&number, buffer), (_, bytes))| (number, buffer, bytes.len() as u64)));
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
            gpu.submit(encoder.finish());
        })?;
    }
    written.iter().zip(outputs).map(|(buffer, (_, bytes))| gpu.download(buffer, bytes.len() as u64)).collect()
}
