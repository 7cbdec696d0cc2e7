//! A schedule with its memory, run step by step.
//!
//! An idea that lost: entering the thread pool once for all steps instead of once for each. The seed-2 layer took 8.2 and
//! 8.8 ms (medians) against 7.8 on two cores; it may win where steps are short and cores many.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Instant;

use smallvec::SmallVec;

use crate::cpu::Cpu;
use crate::error::{Error, Result};
use crate::op::{CpuKernel, Technique, Trial};
use crate::schedule::{Operand, Role, Schedule, Step};
use crate::tensor::{View, ViewMut};
use crate::timing::{Clock, Sample};

/// Bytes of a cache line, on which every buffer starts.
const LINE: usize = 64;

/// Bytes from a cache line on. They are part of more memory of a smaller alignment: Rust asks the system for zeroed memory only
/// up to this one, and fills what is aligned further by hand, which would take most of the time of building a plan. In large pages
/// (`glibc.malloc.hugetlb=1`) attention was neither faster nor steadier than the spread of the machine it was tried on.
#[derive(Debug)]
pub(crate) struct Memory {
    words: Vec<u128>,
    start: usize,
    bytes: usize,
}

/// Bytes that several plans may share.
#[derive(Debug, Clone)]
pub struct CpuBuffer(Arc<RwLock<Memory>>);

impl CpuBuffer {
    /// Errs when the host has no such memory.
    pub(crate) fn zeroed(bytes: u64) -> Result<Self> {
        let missing = || Error::Device(format!("the host has no {bytes} bytes for one buffer"));
        let padded = usize::try_from(bytes).ok().and_then(|bytes| bytes.checked_next_multiple_of(LINE));
        let padded = padded.ok_or_else(missing)?;
        let words = padded.checked_add(LINE).ok_or_else(missing)? / size_of::<u128>();
        let words: Vec<u128> = bytemuck::try_zeroed_vec(words).map_err(|()| missing())?;
        let start = words.as_ptr().cast::<u8>().align_offset(LINE);
        Ok(Self(Arc::new(RwLock::new(Memory { words, start, bytes: padded }))))
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
    pub(crate) fn read(&self) -> Guard<RwLockReadGuard<'_, Memory>> {
        // A panic of another thread left bytes behind, not a broken invariant.
        Guard(self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn write(&self) -> Guard<RwLockWriteGuard<'_, Memory>> {
        Guard(self.0.write().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A lock that reads as bytes.
pub(crate) struct Guard<L>(L);

impl<L: std::ops::Deref<Target = Memory>> std::ops::Deref for Guard<L> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.0.words)[self.0.start..][..self.0.bytes]
    }
}

impl<L: std::ops::DerefMut<Target = Memory>> std::ops::DerefMut for Guard<L> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Memory { words, start, bytes } = &mut *self.0;
        &mut bytemuck::cast_slice_mut(words)[*start..][..*bytes]
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

/// A schedule's memory and native kernels. A run allocates nothing here.
#[derive(Debug)]
pub(crate) struct CpuProgram {
    buffers: Vec<CpuBuffer>,
    calls: Vec<Call>,
}

/// A kernel with its tensors.
#[derive(Debug)]
struct Call {
    kernel: CpuKernel,
    step: Step,
    /// Slots to lock, one for each buffer, and how. All plans take them in the order of their addresses, so that no two wait for
    /// each other.
    locks: Vec<(usize, Access)>,
    /// The lock of each input and of each output.
    inputs: Vec<usize>,
    outputs: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Access {
    Write,
    Read,
}

/// Most tensors of a step that need no memory from the heap.
const FEW: usize = 16;

impl CpuProgram {
    pub fn new(cpu: &Cpu, schedule: &Schedule) -> Result<Self> {
        let buffers = schedule.slots.iter().map(|slot| match &slot.role {
            Role::Weight(value) => cpu.weights.get(value, |value| cpu.upload(value.bytes())),
            Role::Input | Role::Output | Role::Scratch => cpu.create_buffer(slot.bytes),
        });
        let buffers = buffers.collect::<Result<Vec<_>>>()?;
        let calls = schedule.steps.iter().map(|step| match &step.technique {
            Technique::Cpu(kernel) => Call::new(kernel.clone(), step.clone(), &buffers),
            Technique::Gpu(_) => unreachable!("the CPU's capabilities offer native techniques only"),
        });
        let calls = calls.collect();
        Ok(Self { buffers, calls })
    }

    pub fn bind(&mut self, slot: usize, buffer: &CpuBuffer) {
        self.buffers[slot] = buffer.clone();
        for call in self.calls.iter_mut().filter(|call| call.uses(slot)) {
            *call = Call::new(call.kernel.clone(), call.step.clone(), &self.buffers);
        }
    }

    pub fn buffer(&self, slot: usize) -> &CpuBuffer {
        &self.buffers[slot]
    }

    pub fn write(&mut self, slot: usize, bytes: &[u8]) {
        self.buffers[slot].write()[..bytes.len()].copy_from_slice(bytes);
    }

    /// Looks at a tensor's bytes.
    pub fn look<T>(&self, operand: &Operand, look: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        look(&self.buffers[operand.slot].read()[..operand.desc.bytes() as usize])
    }

    pub fn submit(&mut self) -> Result<()> {
        self.calls.iter().for_each(|call| call.run(&self.buffers));
        Ok(())
    }

    pub fn submit_step(&mut self, index: usize) {
        self.calls[index].run(&self.buffers);
    }

    pub fn measure(&mut self) -> Result<Sample> {
        let start = Instant::now();
        self.submit()?;
        Ok(Sample { seconds: start.elapsed().as_secs_f64(), clock: Clock::Host })
    }

    pub fn profile(&mut self) -> Result<(Vec<f64>, Clock)> {
        let timed = self.calls.iter().map(|call| {
            let start = Instant::now();
            call.run(&self.buffers);
            start.elapsed().as_secs_f64()
        });
        Ok((timed.collect(), Clock::Host))
    }
}

impl Call {
    fn new(kernel: CpuKernel, step: Step, buffers: &[CpuBuffer]) -> Self {
        let read = step.inputs.iter().map(|operand| (operand.slot, Access::Read));
        let written = step.outputs.iter().map(|operand| (operand.slot, Access::Write));
        let mut locks: Vec<_> = read.chain(written).collect();
        let address = |slot: usize| buffers[slot].address();
        // Of several tensors in one buffer, the one that writes decides.
        locks.sort_by_key(|&(slot, access)| (address(slot), access));
        locks.dedup_by_key(|(slot, _)| address(*slot));
        let place = |operand: &Operand| {
            let found = locks.iter().position(|&(slot, _)| address(slot) == address(operand.slot));
            found.expect("every tensor of the step is locked")
        };
        let (inputs, outputs) = (step.inputs.iter().map(place).collect(), step.outputs.iter().map(place).collect());
        Self { kernel, step, locks, inputs, outputs }
    }

    fn uses(&self, slot: usize) -> bool {
        self.step.inputs.iter().chain(&self.step.outputs).any(|operand| operand.slot == slot)
    }

    fn run(&self, buffers: &[CpuBuffer]) {
        let lock = |&(slot, access): &(usize, Access)| match access {
            Access::Read => Lock::Read(buffers[slot].read()),
            Access::Write => Lock::Write(buffers[slot].write()),
        };
        let mut locks: SmallVec<[Lock<'_>; FEW]> = self.locks.iter().map(lock).collect();
        let (mut shared, mut exclusive) = (SmallVec::<[&[u8]; FEW]>::new(), SmallVec::<[&mut [u8]; FEW]>::new());
        for lock in &mut locks {
            // Memory that is written belongs to one output, and is nothing to the inputs: an update finds it there.
            let (read, write): (&[u8], &mut [u8]) = match lock {
                Lock::Read(guard) => (guard, &mut []),
                Lock::Write(guard) => (&[], guard),
            };
            shared.push(read);
            exclusive.push(write);
        }
        let bytes = |operand: &Operand| operand.desc.bytes() as usize;
        let inputs = self.step.inputs.iter().zip(&self.inputs);
        let inputs: SmallVec<[View<'_>; FEW]> = inputs
            .map(|(operand, &at)| View { desc: &operand.desc, bytes: shared[at].get(..bytes(operand)).unwrap_or(&[]) })
            .collect();
        let outputs = self.step.outputs.iter().zip(&self.outputs);
        let mut outputs: SmallVec<[ViewMut<'_>; FEW]> = outputs
            .map(|(operand, &at)| {
                let memory = std::mem::take(&mut exclusive[at]);
                ViewMut { desc: &operand.desc, bytes: &mut memory[..bytes(operand)] }
            })
            .collect();
        (self.kernel.run)(&inputs, &mut outputs);
    }
}

/// A buffer that a step holds.
enum Lock<'a> {
    Read(Guard<RwLockReadGuard<'a, Memory>>),
    Write(Guard<RwLockWriteGuard<'a, Memory>>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_on_a_line_and_are_zero() {
        for bytes in [0, 1, 63, 64, 65, 4096, 1 << 20] {
            let buffer = CpuBuffer::zeroed(bytes).unwrap();
            let guard = buffer.read();
            assert_eq!((guard.as_ptr().addr() % LINE, guard.len()), (0, bytes.next_multiple_of(64) as usize));
            assert!(guard.iter().all(|&byte| byte == 0));
        }
        assert!(CpuBuffer::zeroed(u64::MAX).is_err());
    }
}
