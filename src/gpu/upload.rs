//! Inputs on their way to the device.

use std::sync::{Arc, Mutex};

use super::gpu_device::{Gpu, GpuBuffer, lock, padded};
use crate::error::{Error, Result};
use crate::schedule::{Role, Schedule};

/// One buffer that stays mapped except while a copy out of it is under way. Inputs that a run
/// changes, such as caches, are large and seldom written: they take no part, and go through the queue.
#[derive(Debug)]
pub(super) struct Upload {
    buffer: GpuBuffer,
    /// Offset of each slot that takes part.
    offsets: Vec<Option<u64>>,
    /// Slots written since the last submission, with their padded bytes.
    pending: Vec<(usize, u64)>,
    mapping: Arc<Mutex<Mapping>>,
    /// The submission that mapping waits for.
    submission: Option<wgpu::SubmissionIndex>,
}

/// Whether the host can write into the upload buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mapping {
    Mapped,
    /// Asked for; the device's callback will say.
    Asked,
    Unmapped,
}

impl Upload {
    pub fn new(gpu: &Gpu, schedule: &Schedule) -> Result<Self> {
        let mut bytes = 0;
        let offsets = schedule.slots.iter().enumerate().map(|(index, slot)| {
            let offset = (matches!(slot.role, Role::Input) && !schedule.writes(index)).then_some(bytes);
            bytes += offset.map_or(0, |_| aligned(slot.bytes));
            offset
        });
        let offsets = offsets.collect();
        let usage = wgpu::BufferUsages::MAP_WRITE | wgpu::BufferUsages::COPY_SRC;
        let buffer = gpu.create_buffer("regard upload staging", bytes, usage)?;
        Ok(Self {
            buffer,
            offsets,
            pending: Vec::new(),
            mapping: Arc::new(Mutex::new(Mapping::Mapped)),
            submission: None,
        })
    }

    /// Whether a slot's values go this way.
    pub fn takes(&self, slot: usize) -> bool {
        self.offsets[slot].is_some()
    }

    /// Whether something was written since the last submission.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// A value for a slot that goes this way.
    pub fn write(&mut self, gpu: &Gpu, slot: usize, bytes: &[u8]) -> Result<()> {
        let offset = self.offsets[slot].expect("the slot goes this way");
        if *lock(&self.mapping) == Mapping::Asked {
            gpu.wait_until(self.submission.as_ref(), || *lock(&self.mapping) != Mapping::Asked)?;
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
    pub fn record(&mut self, encoder: &mut wgpu::CommandEncoder, buffers: &[GpuBuffer]) {
        if self.pending.is_empty() {
            return;
        }
        *lock(&self.mapping) = Mapping::Unmapped;
        self.buffer.0.unmap();
        for (slot, size) in self.pending.drain(..) {
            let offset = self.offsets[slot].expect("only slots that go this way are pending");
            encoder.copy_buffer_to_buffer(&self.buffer.0, offset, &buffers[slot].0, 0, size);
        }
    }

    /// Asks for the buffer to be mapped once the copies of this submission are done.
    pub fn map_after(&mut self, submission: &wgpu::SubmissionIndex) {
        {
            let mut mapping = lock(&self.mapping);
            if *mapping != Mapping::Unmapped {
                return;
            }
            *mapping = Mapping::Asked;
        }
        self.submission = Some(submission.clone());
        // The lock is free again: a mapping that fails may call back at once.
        let mapping = self.mapping.clone();
        self.buffer.0.map_async(wgpu::MapMode::Write, .., move |result| {
            *lock(&mapping) = if result.is_ok() { Mapping::Mapped } else { Mapping::Unmapped };
        });
    }
}

/// Mapped ranges start at multiples of 8.
pub(super) fn aligned(bytes: u64) -> u64 {
    padded(bytes).next_multiple_of(wgpu::MAP_ALIGNMENT)
}
