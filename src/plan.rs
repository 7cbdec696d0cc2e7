//! A graph made ready for one device. A plan that exists can run.

use std::collections::BTreeMap;

use crate::cpu::CpuProgram;
use crate::device::{Device, DeviceTensor, Inner, Storage};
use crate::error::{Error, Result};
use crate::gpu::{GpuProgram, Readback};
use crate::graph::Graph;
pub use crate::schedule::{PlanDescription, PlanOptions, Rewrites, StepDescription};
use crate::schedule::{Port, Schedule};
use crate::tensor::{Dtype, HostTensor};
pub use crate::timing::{Clock, Profile, Sample};

/// How one run goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunOptions {
    /// Look at lengths, positions and pages on the device before each step that is told them, and refuse those that are outside
    /// of what the step's other tensors have. The steps then run one by one, and those before a refused one have run.
    /// Without it nobody looks, and whatever they hold, a run stays inside its buffers.
    pub check: bool,
}

/// Output tensors by name.
pub type Outputs = BTreeMap<String, HostTensor>;

/// A graph's steps with their memory on one device. `Send` and `Sync`; runs of one plan follow each other.
#[derive(Debug)]
pub struct Plan {
    device: Device,
    schedule: Schedule,
    pub(crate) engine: Engine,
    /// Which inputs have been written or bound.
    given: Vec<bool>,
}

#[derive(Debug)]
pub(crate) enum Engine {
    Gpu(Box<GpuProgram>),
    Cpu(CpuProgram),
}

impl Plan {
    /// A plan with the default choices.
    ///
    /// # Errors
    /// As [`Plan::with_options`].
    pub fn new(device: &Device, graph: &Graph) -> Result<Self> {
        Self::with_options(device, graph, &PlanOptions::default())
    }

    /// Chooses techniques, compiles what is not compiled yet, and allocates.
    ///
    /// # Errors
    /// A graph without outputs, a technique that the device lacks, a tensor over its binding limit, a lost device.
    pub fn with_options(device: &Device, graph: &Graph, options: &PlanOptions) -> Result<Self> {
        let schedule = Schedule::tuned(graph, device.capabilities(), options, &device.tuned.table())?;
        schedule.check_limits(device.capabilities())?;
        let engine = match &device.inner {
            Inner::Gpu(gpu) => Engine::Gpu(Box::new(GpuProgram::new(gpu.clone(), &schedule)?)),
            Inner::Cpu(cpu) => Engine::Cpu(CpuProgram::new(cpu, &schedule)?),
        };
        let given = vec![false; schedule.inputs.len()];
        Ok(Self { device: device.clone(), schedule, engine, given })
    }

    /// What a plan would do and need, without compiling or allocating; also for graphs that are too large to run.
    ///
    /// # Errors
    /// A graph without outputs, or a technique that the device lacks.
    pub fn preview(device: &Device, graph: &Graph, options: &PlanOptions) -> Result<PlanDescription> {
        let schedule = Schedule::tuned(graph, device.capabilities(), options, &device.tuned.table())?;
        Ok(schedule.describe(device.name(), device.capabilities()))
    }

    /// Steps, shapes, work and memory.
    pub fn describe(&self) -> PlanDescription {
        self.schedule.describe(self.device.name(), self.device.capabilities())
    }

    /// Uses a resident tensor as the input or output of this name, without a copy, until another is bound. An input that the
    /// graph changes in place, such as a cache, keeps what a run made of it for the next.
    ///
    /// # Errors
    /// An unknown name, another shape or dtype, a tensor of another device, or one that is both read and written.
    pub fn bind(&mut self, name: &str, tensor: &DeviceTensor) -> Result<()> {
        let (port, _) = self.port(name)?;
        let operand = port.operand.clone();
        check_desc(name, &operand.desc, tensor.desc())?;
        if let Some(other) = self.aliased(operand.slot, tensor) {
            return Err(Error::Plan(format!(
                "`{name}` and `{other}` are one tensor, and a run would write it while it reads it"
            )));
        }
        match (&mut self.engine, &tensor.storage) {
            (Engine::Gpu(program), Storage::Gpu(buffer)) => program.bind(operand.slot, buffer)?,
            (Engine::Cpu(program), Storage::Cpu(buffer)) => program.bind(operand.slot, buffer),
            _ => return Err(Error::Plan(format!("the tensor for `{name}` lives on another kind of device"))),
        }
        // An output that is an input changed in place is that input as well.
        for (given, input) in self.given.iter_mut().zip(&self.schedule.inputs) {
            *given |= input.operand.slot == operand.slot;
        }
        Ok(())
    }

    /// The resident tensor that holds an input or output of this plan; the next run overwrites an output.
    ///
    /// # Errors
    /// An unknown name.
    pub fn tensor(&self, name: &str) -> Result<DeviceTensor> {
        let (port, _) = self.port(name)?;
        let storage = match &self.engine {
            Engine::Gpu(program) => Storage::Gpu(program.buffer(port.operand.slot).clone()),
            Engine::Cpu(program) => Storage::Cpu(program.buffer(port.operand.slot).clone()),
        };
        Ok(DeviceTensor { desc: port.operand.desc.clone(), storage })
    }

    /// Gives an input its value for the next and all later submissions. An input that the graph changes in place keeps what a
    /// run makes of it until it is written again.
    ///
    /// # Errors
    /// An unknown name, another shape or dtype, or a lost device.
    pub fn write(&mut self, name: &str, value: &HostTensor) -> Result<()> {
        let (port, input) = self.port(name)?;
        let Some(input) = input else {
            return Err(Error::Plan(format!("`{name}` is an output, it cannot be written")));
        };
        check_desc(name, &port.operand.desc, value.desc())?;
        let slot = port.operand.slot;
        match &mut self.engine {
            Engine::Gpu(program) => program.write(slot, value.bytes())?,
            Engine::Cpu(program) => program.write(slot, value.bytes()),
        }
        self.given[input] = true;
        Ok(())
    }

    /// Starts one run. On the CPU backend it has ended when this returns.
    ///
    /// # Errors
    /// An input that was never given, or a lost device.
    pub fn submit(&mut self) -> Result<()> {
        self.check_given()?;
        match &mut self.engine {
            Engine::Gpu(program) => program.submit(),
            Engine::Cpu(program) => program.submit(),
        }
    }

    /// As [`Plan::submit`], with options.
    ///
    /// # Errors
    /// As [`Plan::submit`], and what the options have checked.
    pub fn submit_with(&mut self, options: &RunOptions) -> Result<()> {
        if !options.check {
            return self.submit();
        }
        self.check_given()?;
        for index in 0..self.schedule.steps.len() {
            self.check_step(index)?;
            match &mut self.engine {
                Engine::Gpu(program) => program.submit_step(index)?,
                Engine::Cpu(program) => program.submit_step(index),
            }
        }
        Ok(())
    }

    /// Waits for the last submission and copies one output to the host.
    ///
    /// # Errors
    /// An unknown name, or a lost device.
    pub fn read(&mut self, name: &str) -> Result<HostTensor> {
        let output = self.output(name)?;
        let desc = self.schedule.outputs[output].operand.desc.clone();
        self.read_with(output, |bytes| HostTensor::from_bytes(desc, bytes))
    }

    /// As [`Plan::read`], into a tensor of the caller's: nothing is allocated.
    ///
    /// # Errors
    /// As [`Plan::read`], and a tensor of another shape or dtype.
    pub fn read_into(&mut self, name: &str, value: &mut HostTensor) -> Result<()> {
        let output = self.output(name)?;
        check_desc(name, &self.schedule.outputs[output].operand.desc, value.desc())?;
        self.read_with(output, |bytes| value.copy_from_bytes(bytes))
    }

    /// Writes the inputs, runs, and reads every output. Inputs that are not named keep what they were given before.
    ///
    /// # Errors
    /// An input that is unknown, named twice, never given or of another shape; a lost device.
    pub fn run(&mut self, inputs: &[(&str, &HostTensor)]) -> Result<Outputs> {
        self.write_all(inputs)?;
        if let Engine::Gpu(program) = &mut self.engine {
            let readback = program.submit_and_read()?;
            readback.wait()?;
            return collect(&self.schedule, program, &readback);
        }
        self.submit()?;
        self.read_all()
    }

    /// As [`Plan::run`], with the outputs that are named into tensors of the caller's: in steady state the library allocates
    /// nothing, on the host or on the device, and submits once.
    ///
    /// # Errors
    /// As [`Plan::run`], and an output that is unknown or of another shape or dtype; then nothing has run.
    pub fn run_into(&mut self, inputs: &[(&str, &HostTensor)], outputs: &mut [(&str, &mut HostTensor)]) -> Result<()> {
        for (name, value) in outputs.iter() {
            check_desc(name, &self.schedule.outputs[self.output(name)?].operand.desc, value.desc())?;
        }
        self.write_all(inputs)?;
        let Engine::Gpu(program) = &mut self.engine else {
            self.submit()?;
            return outputs.iter_mut().try_for_each(|(name, value)| self.read_into(name, value));
        };
        let readback = program.submit_and_read()?;
        readback.wait()?;
        outputs.iter_mut().try_for_each(|(name, value)| {
            let output = output(&self.schedule, name)?;
            program.look(&readback, output, |bytes| value.copy_from_bytes(bytes))
        })
    }

    /// As [`Plan::run`], with options.
    ///
    /// # Errors
    /// As [`Plan::run`], and what the options have checked.
    pub fn run_with(&mut self, inputs: &[(&str, &HostTensor)], options: &RunOptions) -> Result<Outputs> {
        if !options.check {
            return self.run(inputs);
        }
        self.write_all(inputs)?;
        self.submit_with(options)?;
        self.read_all()
    }

    /// As [`Plan::run`], giving up the thread while the GPU works. Needs no particular executor.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub async fn run_async(&mut self, inputs: &[(&str, &HostTensor)]) -> Result<Outputs> {
        self.write_all(inputs)?;
        let Engine::Gpu(program) = &mut self.engine else { return self.run(&[]) };
        let mut readback = program.submit_and_read()?;
        (&mut readback).await?;
        collect(&self.schedule, program, &readback)
    }

    /// Runs once and says how long the steps took together. Inputs must have been given.
    ///
    /// # Errors
    /// As [`Plan::submit`].
    pub fn measure(&mut self) -> Result<Sample> {
        self.check_given()?;
        match &mut self.engine {
            Engine::Gpu(program) => program.measure(),
            Engine::Cpu(program) => program.measure(),
        }
    }

    /// Runs once and says how long each step took. Inputs must have been given.
    ///
    /// # Errors
    /// As [`Plan::submit`].
    pub fn profile(&mut self) -> Result<Profile> {
        self.check_given()?;
        let (seconds, clock) = match &mut self.engine {
            Engine::Gpu(program) => program.profile()?,
            Engine::Cpu(program) => program.profile()?,
        };
        let steps = self.schedule.steps.iter().map(|step| step.technique.name()).zip(seconds).collect();
        Ok(Profile { steps, clock })
    }

    pub(crate) fn check_given(&self) -> Result<()> {
        match self.given.iter().position(|given| !given) {
            Some(input) => Err(Error::Plan(format!("input `{}` was not given", self.schedule.inputs[input].name))),
            None => Ok(()),
        }
    }

    fn write_all(&mut self, inputs: &[(&str, &HostTensor)]) -> Result<()> {
        for (index, (name, value)) in inputs.iter().enumerate() {
            if inputs[..index].iter().any(|(earlier, _)| earlier == name) {
                return Err(Error::Plan(format!("input `{name}` was given twice")));
            }
            self.write(name, value)?;
        }
        self.check_given()
    }

    fn read_all(&mut self) -> Result<Outputs> {
        let names: Vec<String> = self.schedule.outputs.iter().map(|port| port.name.clone()).collect();
        names.into_iter().map(|name| Ok((name.clone(), self.read(&name)?))).collect()
    }

    /// Lets a step's op look at its lengths, positions and pages as they are on the device.
    fn check_step(&mut self, index: usize) -> Result<()> {
        let step = &self.schedule.steps[index];
        let mut data = Vec::with_capacity(step.inputs.len());
        for operand in &step.inputs {
            if operand.desc.dtype != Dtype::U32 {
                data.push(None);
                continue;
            }
            let bytes = match &mut self.engine {
                Engine::Gpu(program) => program.peek(operand)?,
                Engine::Cpu(program) => program.look(operand, |bytes| Ok(bytes.to_vec()))?,
            };
            data.push(Some(HostTensor::from_bytes(operand.desc.clone(), &bytes)?));
        }
        let descs: Vec<_> = step.inputs.iter().map(|operand| operand.desc.clone()).collect();
        step.op.check(&descs, &data.iter().map(Option::as_ref).collect::<Vec<_>>())
    }

    fn read_with<T>(&mut self, output: usize, look: impl FnOnce(&[u8]) -> Result<T>) -> Result<T> {
        match &mut self.engine {
            Engine::Gpu(program) => program.read(output, look),
            Engine::Cpu(program) => program.look(&self.schedule.outputs[output].operand, look),
        }
    }

    fn output(&self, name: &str) -> Result<usize> {
        output(&self.schedule, name)
    }

    /// The port of this name, and its number if it is an input.
    fn port(&self, name: &str) -> Result<(&Port, Option<usize>)> {
        if let Some(input) = self.schedule.inputs.iter().position(|port| port.name == name) {
            return Ok((&self.schedule.inputs[input], Some(input)));
        }
        match self.schedule.outputs.iter().find(|port| port.name == name) {
            Some(port) => Ok((port, None)),
            None => {
                let names = self.schedule.inputs.iter().chain(&self.schedule.outputs).map(|port| port.name.as_str());
                let names: Vec<_> = names.collect();
                Err(Error::Plan(format!("there is no input or output `{name}`; there are {}", names.join(", "))))
            }
        }
    }

    /// Another input or output that uses the same memory, where one of the two would be written.
    fn aliased(&self, slot: usize, tensor: &DeviceTensor) -> Option<&str> {
        let is_output = |slot: usize| self.schedule.outputs.iter().any(|port| port.operand.slot == slot);
        let written = |slot: usize| is_output(slot) || self.schedule.writes(slot);
        let inputs = self.schedule.inputs.iter().filter(|port| written(slot) || written(port.operand.slot));
        let ports = inputs.chain(&self.schedule.outputs).filter(|port| port.operand.slot != slot);
        ports
            .into_iter()
            .find(|port| self.tensor(&port.name).is_ok_and(|other| other.shares_memory(tensor)))
            .map(|port| port.name.as_str())
    }
}

/// Number of the output of this name.
fn output(schedule: &Schedule, name: &str) -> Result<usize> {
    let found = schedule.outputs.iter().position(|port| port.name == name);
    found.ok_or_else(|| Error::Plan(format!("there is no output `{name}`")))
}

/// Every output that came back.
fn collect(schedule: &Schedule, program: &GpuProgram, from: &Readback) -> Result<Outputs> {
    let outputs = schedule.outputs.iter().enumerate().map(|(index, port)| {
        let desc = port.operand.desc.clone();
        let value = program.look(from, index, |bytes| HostTensor::from_bytes(desc, bytes))?;
        Ok((port.name.clone(), value))
    });
    outputs.collect()
}

fn check_desc(name: &str, wanted: &crate::tensor::TensorDesc, got: &crate::tensor::TensorDesc) -> Result<()> {
    if wanted == got {
        return Ok(());
    }
    Err(Error::Plan(format!("`{name}` is {wanted}, got {got}")))
}
