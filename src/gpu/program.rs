//! A schedule with its buffers, pipelines and bind groups.
//!
//! All steps are one pass. Those that do not depend on each other have no barrier between them: before a dispatch wgpu-core 30
//! collects transitions of the buffers that it binds (`flush_bindings` in `command/compute.rs`), which are those whose use changes
//! and those that are written again (`skip_barrier` in `track/mod.rs`), and wgpu-hal records a barrier where there is any
//! (`transition_buffers` in `vulkan/command.rs`). Such a barrier holds back everything before it, so that it matters that steps
//! like the projections of q, k and v are neighbours, as the layers add them.

use std::sync::Arc;

use super::gpu_device::{Gpu, GpuBuffer, TENSOR_USAGE, padded};
use super::readback::{Readback, Staging};
use super::timer::Timer;
use super::upload::{Upload, aligned};
use crate::error::Result;
use crate::op::{Launch, Technique};
use crate::schedule::{Operand, Role, Schedule, Step};

/// Everything that one run needs; a run makes nothing new.
#[derive(Debug)]
pub(crate) struct GpuProgram {
    pub(super) gpu: Arc<Gpu>,
    buffers: Vec<GpuBuffer>,
    params: GpuBuffer,
    pub(super) steps: Vec<Dispatch>,
    upload: Upload,
    readback: Arc<Staging>,
    /// The slot of each output, and its place in the buffer that they come back in.
    outputs: Vec<(usize, std::ops::Range<u64>)>,
    pub(super) timer: Option<Timer>,
}

/// One dispatch with what it binds.
#[derive(Debug)]
pub(super) struct Dispatch {
    label: &'static str,
    pipeline: wgpu::ComputePipeline,
    bind_group: wgpu::BindGroup,
    workgroups: [u32; 3],
    params: std::ops::Range<u64>,
    operands: Vec<Binding>,
}

/// Binding number, slot and bytes.
#[derive(Debug, Clone, Copy)]
struct Binding {
    number: u32,
    slot: usize,
    bytes: u64,
}

impl GpuProgram {
    pub fn new(gpu: Arc<Gpu>, schedule: &Schedule) -> Result<Self> {
        let buffers = schedule.slots.iter().enumerate().map(|(index, slot)| {
            let make = |role: &str| gpu.create_buffer(&format!("regard {role} {index}"), slot.bytes, TENSOR_USAGE);
            match &slot.role {
                Role::Weight(value) => gpu.weights.get(value, |value| gpu.upload(value)),
                Role::Input => make("input"),
                Role::Output => make("output"),
                Role::Scratch => make("scratch"),
            }
        });
        let buffers = buffers.collect::<Result<Vec<_>>>()?;
        let launches: Vec<(&Step, &Launch)> = schedule.steps.iter().map(launch).collect();
        gpu.compile(launches.iter().map(|(_, launch)| &launch.shader))?;
        let (params, ranges) = params_buffer(&gpu, &launches)?;
        let steps = (launches.iter().zip(ranges))
            .map(|((step, launch), range)| Dispatch::new(&gpu, step, launch, &buffers, (&params, range)))
            .collect::<Result<Vec<_>>>()?;
        let upload = Upload::new(&gpu, schedule)?;
        let mut bytes = 0;
        let outputs = schedule.outputs.iter().map(|port| {
            let range = bytes..bytes + port.operand.desc.bytes();
            bytes += aligned(port.operand.desc.bytes());
            (port.operand.slot, range)
        });
        let outputs = outputs.collect();
        let readback = Staging::new(&gpu, "regard readback", bytes)?;
        Ok(Self { gpu, buffers, params, steps, upload, readback, outputs, timer: None })
    }

    pub fn buffer(&self, slot: usize) -> &GpuBuffer {
        &self.buffers[slot]
    }

    /// Uses another buffer for a slot; refused, nothing has changed.
    pub fn bind(&mut self, slot: usize, buffer: &GpuBuffer) -> Result<()> {
        self.gpu.check_owner(buffer)?;
        let before = std::mem::replace(&mut self.buffers[slot], buffer.clone());
        let affected = self.steps.iter().enumerate().filter(|(_, step)| step.binds(slot));
        let groups = affected.map(|(index, step)| Ok((index, step.group(&self.gpu, &self.buffers, &self.params)?)));
        match groups.collect::<Result<Vec<_>>>() {
            Ok(groups) => {
                groups.into_iter().for_each(|(index, group)| self.steps[index].bind_group = group);
                Ok(())
            }
            Err(error) => {
                self.buffers[slot] = before;
                Err(error)
            }
        }
    }

    pub fn write(&mut self, slot: usize, bytes: &[u8]) -> Result<()> {
        match self.upload.takes(slot) {
            true => self.upload.write(&self.gpu, slot, bytes),
            false => self.write_through(slot, bytes),
        }
    }

    /// Before the next submission, by a copy that wgpu keeps.
    fn write_through(&self, slot: usize, bytes: &[u8]) -> Result<()> {
        self.gpu.check_alive()?;
        let buffer = &self.buffers[slot].0;
        let (words, rest) = bytes.split_at(bytes.len() / 4 * 4);
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        self.gpu.scoped(|| {
            self.gpu.queue.write_buffer(buffer, 0, words);
            if !rest.is_empty() {
                self.gpu.queue.write_buffer(buffer, words.len() as u64, &last);
            }
        })
    }

    pub fn submit(&mut self) -> Result<()> {
        self.submit_recorded(Self::record)
    }

    /// One step alone. Inputs that were written go ahead of it.
    pub fn submit_step(&mut self, index: usize) -> Result<()> {
        self.submit_recorded(|program, encoder| {
            let label = Some("regard checked");
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label, timestamp_writes: None });
            program.steps[index].record(&mut pass);
        })
    }

    /// The bytes of any tensor as the steps so far, and what was written, have left them.
    pub fn peek(&mut self, operand: &Operand) -> Result<Vec<u8>> {
        self.submit_recorded(|_, _| {})?;
        self.gpu.download(&self.buffers[operand.slot], operand.desc.bytes())
    }

    /// One submission that runs and copies every output to where the host can map them.
    pub fn submit_and_read(&mut self) -> Result<Readback> {
        let staging = self.readback.clone();
        self.submit_and_map(&staging, |program, encoder| {
            program.record(encoder);
            (0..program.outputs.len()).for_each(|output| program.record_copy(output, encoder));
        })
    }

    /// Waits for what was submitted and looks at one output.
    pub fn read<T>(&mut self, output: usize, look: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        let staging = self.readback.clone();
        let readback = self.submit_and_map(&staging, |program, encoder| program.record_copy(output, encoder))?;
        readback.wait()?;
        self.look(&readback, output, look)
    }

    /// Looks at an output that came back.
    pub fn look<T>(&self, from: &Readback, output: usize, look: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        from.look(&self.outputs[output].1, look)
    }

    /// Records the steps into somebody else's encoder. Inputs that were written go ahead in a submission of their own.
    pub fn encode(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        if self.upload.is_pending() {
            self.submit_recorded(|_, _| {})?;
        }
        self.record(encoder);
        Ok(())
    }

    /// Submits what was written and what is recorded.
    pub(super) fn submit_recorded(&mut self, record: impl FnOnce(&Self, &mut wgpu::CommandEncoder)) -> Result<()> {
        self.gpu.check_alive()?;
        let gpu = self.gpu.clone();
        let submission = gpu.scoped(|| self.submit_in_scope(record))?;
        gpu.check_taken(&submission)
    }

    /// As [`Self::submit_recorded`], and maps the buffer that the commands copy to.
    pub(super) fn submit_and_map(
        &mut self,
        staging: &Arc<Staging>,
        record: impl FnOnce(&Self, &mut wgpu::CommandEncoder),
    ) -> Result<Readback> {
        let gpu = self.gpu.clone();
        Readback::after(&gpu, staging, || self.submit_in_scope(record))
    }

    /// Copies what was written, records, submits, and asks for the upload buffer back. All of it under the caller's error
    /// scope: a scope takes a lock and three allocations of wgpu's.
    fn submit_in_scope(&mut self, record: impl FnOnce(&Self, &mut wgpu::CommandEncoder)) -> wgpu::SubmissionIndex {
        let mut encoder = self.encoder();
        self.upload.record(&mut encoder, &self.buffers);
        record(self, &mut encoder);
        let submission = self.gpu.submit(encoder.finish());
        self.upload.map_after(&submission);
        submission
    }

    fn record_copy(&self, output: usize, encoder: &mut wgpu::CommandEncoder) {
        let (slot, range) = &self.outputs[output];
        let bytes = padded(range.end - range.start);
        encoder.copy_buffer_to_buffer(&self.buffers[*slot].0, 0, &self.readback.buffer.0, range.start, bytes);
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("regard run") })
    }

    fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass =
            encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("regard"), timestamp_writes: None });
        self.steps.iter().for_each(|step| step.record(&mut pass));
    }
}

impl Dispatch {
    fn new(
        gpu: &Gpu,
        step: &Step,
        launch: &Launch,
        buffers: &[GpuBuffer],
        (params_buffer, params): (&GpuBuffer, std::ops::Range<u64>),
    ) -> Result<Self> {
        let inputs = step.inputs.iter().zip(&launch.bindings.inputs).enumerate();
        let inputs = inputs.filter(|(input, _)| !launch.bindings.is_updated(*input)).map(|(_, bound)| bound);
        let operands = inputs.chain(step.outputs.iter().zip(&launch.bindings.outputs));
        let operands =
            operands.map(|(operand, &number)| Binding { number, slot: operand.slot, bytes: operand.desc.bytes() });
        let operands: Vec<_> = operands.collect();
        let pipeline = gpu.pipeline(&launch.shader)?;
        let bound = operands.iter().map(|binding| (binding.number, &buffers[binding.slot], binding.bytes));
        let label = launch.shader.main.name;
        let bind_group = bind_group(gpu, label, &pipeline, (params_buffer, params.clone()), bound)?;
        Ok(Self { label, pipeline, bind_group, workgroups: launch.workgroups, params, operands })
    }

    fn binds(&self, slot: usize) -> bool {
        self.operands.iter().any(|binding| binding.slot == slot)
    }

    fn group(&self, gpu: &Gpu, buffers: &[GpuBuffer], params: &GpuBuffer) -> Result<wgpu::BindGroup> {
        let bound = self.operands.iter().map(|binding| (binding.number, &buffers[binding.slot], binding.bytes));
        bind_group(gpu, self.label, &self.pipeline, (params, self.params.clone()), bound)
    }

    pub(super) fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        let [x, y, z] = self.workgroups;
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Params at 0, and each tensor's bytes, rounded up to whole words, at its number.
pub(super) fn bind_group<'a>(
    gpu: &Gpu,
    label: &str,
    pipeline: &wgpu::ComputePipeline,
    (params, range): (&'a GpuBuffer, std::ops::Range<u64>),
    tensors: impl Iterator<Item = (u32, &'a GpuBuffer, u64)>,
) -> Result<wgpu::BindGroup> {
    let entry = |binding, buffer: &'a GpuBuffer, range: std::ops::Range<u64>| wgpu::BindGroupEntry {
        binding,
        resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &buffer.0,
            offset: range.start,
            size: std::num::NonZero::new(range.end - range.start),
        }),
    };
    let mut entries = vec![entry(0, params, range)];
    entries.extend(tensors.map(|(number, buffer, bytes)| entry(number, buffer, 0..padded(bytes))));
    gpu.scoped(|| {
        let layout = pipeline.get_bind_group_layout(0);
        gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some(label),
            layout: &layout,
            entries: &entries,
        })
    })
}

fn launch(step: &Step) -> (&Step, &Launch) {
    match &step.technique {
        Technique::Gpu(launch) => (step, launch),
        Technique::Cpu(_) => unreachable!("a GPU's capabilities offer GPU techniques only"),
    }
}

/// The steps' params in one uniform buffer, and the range of each.
fn params_buffer(gpu: &Gpu, launches: &[(&Step, &Launch)]) -> Result<(GpuBuffer, Vec<std::ops::Range<u64>>)> {
    let alignment = usize::try_from(gpu.device.limits().min_uniform_buffer_offset_alignment).expect("32 bits fit");
    let mut bytes = Vec::new();
    let ranges = launches.iter().map(|(_, launch)| {
        let start = bytes.len();
        bytes.extend_from_slice(&launch.params.bytes);
        let range = start as u64..bytes.len() as u64;
        bytes.resize(bytes.len().next_multiple_of(alignment), 0);
        range
    });
    let ranges = ranges.collect();
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let buffer = gpu.create_buffer("regard params", bytes.len() as u64, usage)?;
    if !bytes.is_empty() {
        gpu.scoped(|| gpu.queue.write_buffer(&buffer.0, 0, &bytes))?;
    }
    Ok((buffer, ranges))
}
