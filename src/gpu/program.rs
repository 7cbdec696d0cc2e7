//! A schedule with its buffers, pipelines and bind groups.

use std::sync::{Arc, Mutex};

use super::gpu_device::{Gpu, GpuBuffer, TENSOR_USAGE, lock, padded};
use super::readback::Readback;
use super::timer::Timer;
use crate::error::{Error, Result};
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
    readback: GpuBuffer,
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

/// The inputs' way to the device: one buffer that stays mapped except while a copy out of it is under way. Inputs that a run
/// changes, such as caches, are large and seldom written: they take no part, and go through the queue.
#[derive(Debug)]
struct Upload {
    buffer: GpuBuffer,
    /// Offset of each slot that takes part.
    offsets: Vec<Option<u64>>,
    /// Slots written since the last submission, with their padded bytes.
    pending: Vec<(usize, u64)>,
    mapping: Arc<Mutex<Mapping>>,
}

/// Whether the host can write into the upload buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapping {
    Mapped,
    /// Asked for; the device's callback will say.
    Asked,
    Unmapped,
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
        let outputs: u64 = schedule.outputs.iter().map(|port| aligned(port.operand.desc.bytes())).sum();
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let readback = gpu.create_buffer("regard readback", outputs, usage)?;
        Ok(Self { gpu, buffers, params, steps, upload, readback, timer: None })
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
        match self.upload.offsets[slot] {
            Some(offset) => self.upload.write(&self.gpu, slot, offset, bytes),
            None => self.write_through(slot, bytes),
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
        let mut encoder = self.encoder_with_uploads()?;
        self.record(&mut encoder);
        self.finish(encoder)
    }

    /// One step alone. Inputs that were written go ahead of it.
    pub fn submit_step(&mut self, index: usize) -> Result<()> {
        let mut encoder = self.encoder_with_uploads()?;
        let mut pass = encoder
            .begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("regard checked"), timestamp_writes: None });
        self.steps[index].record(&mut pass);
        drop(pass);
        self.finish(encoder)
    }

    /// The bytes of any tensor as the steps so far, and what was written, have left them.
    pub fn peek(&mut self, operand: &Operand) -> Result<Vec<u8>> {
        let encoder = self.encoder_with_uploads()?;
        self.finish(encoder)?;
        self.gpu.download(&self.buffers[operand.slot], operand.desc.bytes())
    }

    /// One submission that runs and copies these outputs to where the host can map them.
    pub fn submit_and_read(&mut self, outputs: &[&Operand]) -> Result<Readback> {
        let mut encoder = self.encoder_with_uploads()?;
        self.record(&mut encoder);
        self.read_into(encoder, outputs)
    }

    /// Waits for what was submitted and reads one output.
    pub fn read(&mut self, output: &Operand) -> Result<Vec<u8>> {
        let encoder = self.encoder();
        Ok(self.read_into(encoder, &[output])?.wait()?.remove(0))
    }

    /// Records the steps into somebody else's encoder. Inputs that were written go ahead in a submission of their own.
    pub fn encode(&mut self, encoder: &mut wgpu::CommandEncoder) -> Result<()> {
        if !self.upload.pending.is_empty() {
            let mut copies = self.encoder();
            self.upload.record(&self.gpu, &mut copies, &self.buffers)?;
            self.finish(copies)?;
        }
        self.record(encoder);
        Ok(())
    }

    /// An encoder that starts with the copies of what was written.
    pub(super) fn encoder_with_uploads(&mut self) -> Result<wgpu::CommandEncoder> {
        let mut encoder = self.encoder();
        self.upload.record(&self.gpu, &mut encoder, &self.buffers)?;
        Ok(encoder)
    }

    /// Submits and makes the upload buffer writable again.
    pub(super) fn finish(&mut self, encoder: wgpu::CommandEncoder) -> Result<()> {
        self.gpu.check_alive()?;
        self.gpu.scoped(|| self.gpu.queue.submit([encoder.finish()]))?;
        self.upload.map(&self.gpu)
    }

    fn encoder(&self) -> wgpu::CommandEncoder {
        self.gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("regard run") })
    }

    fn record(&self, encoder: &mut wgpu::CommandEncoder) {
        let mut pass =
            encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some("regard"), timestamp_writes: None });
        self.steps.iter().for_each(|step| step.record(&mut pass));
    }

    fn read_into(&mut self, mut encoder: wgpu::CommandEncoder, outputs: &[&Operand]) -> Result<Readback> {
        let mut ranges = Vec::with_capacity(outputs.len());
        let mut offset = 0;
        for output in outputs {
            let bytes = output.desc.bytes();
            encoder.copy_buffer_to_buffer(&self.buffers[output.slot].0, 0, &self.readback.0, offset, padded(bytes));
            ranges.push(offset..offset + bytes);
            offset += aligned(bytes);
        }
        self.finish(encoder)?;
        Readback::start(self.gpu.clone(), self.readback.clone(), ranges)
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

impl Upload {
    fn new(gpu: &Gpu, schedule: &Schedule) -> Result<Self> {
        let mut bytes = 0;
        let offsets = schedule.slots.iter().enumerate().map(|(index, slot)| {
            let offset = (matches!(slot.role, Role::Input) && !schedule.writes(index)).then_some(bytes);
            bytes += offset.map_or(0, |_| aligned(slot.bytes));
            offset
        });
        let offsets = offsets.collect();
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let buffer = gpu.create_buffer("regard upload staging", bytes, usage)?;
        Ok(Self { buffer, offsets, pending: Vec::new(), mapping: Arc::new(Mutex::new(Mapping::Mapped)) })
    }

    fn write(&mut self, gpu: &Gpu, slot: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        if *lock(&self.mapping) == Mapping::Asked {
            gpu.wait_until(|| *lock(&self.mapping) != Mapping::Asked)?;
        }
        if *lock(&self.mapping) == Mapping::Unmapped {
            gpu.check_alive()?;
            return Err(Error::DeviceLost("the upload buffer could not be mapped".into()));
        }
        let size = padded(bytes.len() as u64);
        let range = offset..offset + size;
        let mut view = self.buffer.0.get_mapped_range_mut(range).map_err(|error| gpu.complaint(&error))?;
        view.slice(..bytes.len()).copy_from_slice(bytes);
        self.pending.retain(|(other, _)| *other != slot);
        self.pending.push((slot, size));
        Ok(())
    }

    /// Copies what was written since the last submission to where it belongs.
    fn record(&mut self, gpu: &Gpu, encoder: &mut wgpu::CommandEncoder, buffers: &[GpuBuffer]) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        *lock(&self.mapping) = Mapping::Unmapped;
        gpu.scoped(|| self.buffer.0.unmap())?;
        for (slot, size) in self.pending.drain(..) {
            let offset = self.offsets[slot].expect("only slots with an offset are pending");
            encoder.copy_buffer_to_buffer(&self.buffer.0, offset, &buffers[slot].0, 0, size);
        }
        Ok(())
    }

    /// Asks for the buffer to be mapped once the copies are done.
    fn map(&self, gpu: &Gpu) -> Result<()> {
        {
            let mut mapping = lock(&self.mapping);
            if *mapping != Mapping::Unmapped {
                return Ok(());
            }
            *mapping = Mapping::Asked;
        }
        // The lock is free again: a mapping that fails may call back at once.
        let mapping = self.mapping.clone();
        gpu.scoped(|| {
            self.buffer.0.map_async(wgpu::MapMode::Write, .., move |result| {
                *lock(&mapping) = if result.is_ok() { Mapping::Mapped } else { Mapping::Unmapped };
            });
        })
    }
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

/// Mapped ranges start at multiples of 8.
fn aligned(bytes: u64) -> u64 {
    padded(bytes).next_multiple_of(wgpu::MAP_ALIGNMENT)
}
