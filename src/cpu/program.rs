//! A schedule with its memory, run step by step.
//!
//! An idea that lost: entering the thread pool once for all steps instead of once for each. The seed-2 layer took 8.2 and
//! 8.8 ms (medians) against 7.8 on two cores; it may win where steps are short and cores many.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::op::{CpuKernel, Technique, Trial};
use crate::schedule::{Operand, Role, Schedule, Step};
use crate::tensor::{View, ViewMut};
use crate::timing::{Clock, Sample};

/// Memory aligned to a cache line.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
pub(crate) struct Line([u8; 64]);

/// Bytes that several plans may share.
#[derive(Debug, Clone)]
pub struct CpuBuffer(Arc<RwLock<Vec<Line>>>);

impl CpuBuffer {
    /// Errs when the host has no such memory.
    pub(crate) fn zeroed(bytes: u64) -> Result<Self> {
        let lines = usize::try_from(bytes.div_ceil(64)).ok();
        let memory = lines.and_then(|lines| bytemuck::try_zeroed_vec(lines).ok());
        let memory = memory.ok_or_else(|| Error::Device(format!("the host has no {bytes} bytes for one buffer")))?;
        Ok(Self(Arc::new(RwLock::new(memory))))
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let buffer = Self::zeroed(bytes.len() as u64)?;
        buffer.write()[..bytes.len()].copy_from_slice(bytes);
        Ok(buffer)
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn address(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// The bytes, padded to whole lines.
    pub(crate) fn read(&self) -> Guard<RwLockReadGuard<'_, Vec<Line>>> {
        // A panic of another thread left bytes behind, not a broken invariant.
        Guard(self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn write(&self) -> Guard<RwLockWriteGuard<'_, Vec<Line>>> {
        Guard(self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A lock that reads as bytes.
pub(crate) struct Guard<L>(L);

impl<L: std::ops::Deref<Target = Vec<Line>>> std::ops::Deref for Guard<L> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl<L: std::ops::DerefMut<Target = Vec<Line>>> std::ops::DerefMut for Guard<L> {
    fn deref_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// One kernel on its own, its outputs full of known bytes before, which go on behind their ends: the bytes of each output
/// afterwards.
pub(crate) fn run_trial(kernel: &CpuKernel, trial: &Trial<'_>) -> Result<Vec<Vec<u8>>> {
    let Trial { inputs, outputs, updates } = trial;
    let uploaded = inputs.iter().map(|input| CpuBuffer::from_bytes(input.bytes())).collect::<Result<Vec<_>>>()?;
    let written = outputs.iter().map(|(_, before)| CpuBuffer::from_bytes(before)).collect::<Result<Vec<_>>>()?;
    let reads: Vec<_> = uploaded.iter().map(CpuBuffer::read).collect();
    let mut writes: Vec<_> = written.iter().map(CpuBuffer::write).collect();
    let views: Vec<_> = (reads.iter().zip(*inputs).enumerate())
        .map(|(index, (guard, input))| {
            let updated = updates.iter().any(|update| update.input == index);
            View { desc: input.desc(), bytes: if updated { &[] } else { &guard[..input.bytes().len()] } }
        })
        .collect();
    let mut targets: Vec<_> = (writes.iter_mut().zip(outputs))
        .map(|(bytes, (desc, _))| ViewMut { desc, bytes: &mut bytes[..desc.bytes() as usize] })
        .collect();
    (kernel.run)(&views, &mut targets);
    Ok(writes.iter().zip(outputs).map(|(bytes, (_, before))| bytes[..before.len()].to_vec()).collect())
}

/// A schedule's memory and native kernels.
#[derive(Debug)]
pub(crate) struct CpuProgram {
    buffers: Vec<CpuBuffer>,
    steps: Vec<(CpuKernel, Step)>,
}

impl CpuProgram {
    pub fn new(cpu: &Cpu, schedule: &Schedule) -> Result<Self> {
        let buffers = schedule.slots.iter().map(|slot| match &slot.role {
            Role::Weight(value) => cpu.weights.get(value, |value| cpu.upload(value.bytes())),
            Role::Input | Role::Output | Role::Scratch => cpu.create_buffer(slot.bytes),
        });
        let steps = schedule.steps.iter().map(|step| match &step.technique {
            Technique::Cpu(kernel) => (kernel.clone(), step.clone()),
            Technique::Gpu(_) => unreachable!("the CPU's capabilities offer native techniques only"),
        });
        Ok(Self { buffers: buffers.collect::<Result<_>>()?, steps: steps.collect() })
    }

    pub fn bind(&mut self, slot: usize, buffer: &CpuBuffer) {
        self.buffers[slot] = buffer.clone();
    }

    pub fn buffer(&self, slot: usize) -> &CpuBuffer {
        &self.buffers[slot]
    }

    pub fn write(&mut self, slot: usize, bytes: &[u8]) {
        self.buffers[slot].write()[..bytes.len()].copy_from_slice(bytes);
    }

    pub fn read(&self, operand: &Operand) -> Vec<u8> {
        self.buffers[operand.slot].read()[..operand.desc.bytes() as usize].to_vec()
    }

    pub fn submit(&mut self) -> Result<()> {
        self.steps.iter().for_each(|step| self.run_step(step));
        Ok(())
    }

    pub fn submit_step(&mut self, index: usize) {
        self.run_step(&self.steps[index]);
    }

    pub fn measure(&mut self) -> Result<Sample> {
        let start = Instant::now();
        self.submit()?;
        Ok(Sample { seconds: start.elapsed().as_secs_f64(), clock: Clock::Host })
    }

    pub fn profile(&mut self) -> Result<(Vec<f64>, Clock)> {
        let timed = self.steps.iter().map(|step| {
            let start = Instant::now();
            self.run_step(step);
            start.elapsed().as_secs_f64()
        });
        Ok((timed.collect(), Clock::Host))
    }

    fn run_step(&self, (kernel, step): &(CpuKernel, Step)) {
        let mut locks = self.lock(step);
        let bytes = |operand: &Operand| operand.desc.bytes() as usize;
        let place = |operand: &Operand, locks: &[Lock<'_>]| {
            let buffer = self.buffers[operand.slot].address();
            locks.iter().position(|lock| lock.address == buffer).expect("every tensor of the step is locked")
        };
        let read: Vec<_> = step.inputs.iter().map(|operand| place(operand, &locks)).collect();
        let written: Vec<_> = step.outputs.iter().map(|operand| place(operand, &locks)).collect();
        let (mut shared, mut exclusive) = (Vec::new(), Vec::new());
        for lock in &mut locks {
            // Memory that is written belongs to one output, and is nothing to the inputs: an update finds it there.
            let (read, write): (&[u8], &mut [u8]) = match &mut lock.guard {
                LockGuard::Read(guard) => (guard, &mut []),
                LockGuard::Write(guard) => (&[], guard),
            };
            shared.push(read);
            exclusive.push(write);
        }
        let inputs: Vec<_> = (step.inputs.iter().zip(&read))
            .map(|(operand, &at)| View { desc: &operand.desc, bytes: shared[at].get(..bytes(operand)).unwrap_or(&[]) })
            .collect();
        let outputs = step.outputs.iter().zip(&written);
        let mut outputs: Vec<_> = outputs
            .map(|(operand, &at)| {
                let memory = std::mem::take(&mut exclusive[at]);
                ViewMut { desc: &operand.desc, bytes: &mut memory[..bytes(operand)] }
            })
            .collect();
        (kernel.run)(&inputs, &mut outputs);
    }

    /// Locks every buffer of a step once. All plans take them in the order of their addresses, so that no two wait for each
    /// other.
    fn lock<'a>(&'a self, step: &Step) -> Vec<Lock<'a>> {
        let inputs = step.inputs.iter().map(|operand| (operand.slot, false));
        let outputs = step.outputs.iter().map(|operand| (operand.slot, true));
        let mut wanted: Vec<_> = inputs
            .chain(outputs)
            .map(|(slot, written)| (self.buffers[slot].address(), !written, &self.buffers[slot]))
            .collect();
        wanted.sort_by_key(|(address, only_read, _)| (*address, *only_read));
        wanted.dedup_by_key(|(address, ..)| *address);
        let lock = |(address, only_read, buffer): (usize, bool, &'a CpuBuffer)| Lock {
            address,
            guard: if only_read { LockGuard::Read(buffer.read()) } else { LockGuard::Write(buffer.write()) },
        };
        wanted.into_iter().map(lock).collect()
    }
}

/// A buffer that a step holds.
struct Lock<'a> {
    address: usize,
    guard: LockGuard<'a>,
}

enum LockGuard<'a> {
    Read(Guard<RwLockReadGuard<'a, Vec<Line>>>),
    Write(Guard<RwLockWriteGuard<'a, Vec<Line>>>),
}
