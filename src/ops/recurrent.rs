//! What `lstm` and `gru` share: which tensors they take and where, their sizes, and the launch of their kernels.

use crate::capabilities::Capabilities;
use crate::cpu::kernels::recurrence::{Direction, Gate, MaskedOutput, Steps};
use crate::error::{Error, Result};
use crate::op::{Bindings, Launch, fold, index};
use crate::ops::EXCLUDED;
use crate::ops::steps::{STEPS_BINDING, StepPlaces};
use crate::shader::{Constant, Shader, Source, params, wgsl};
use crate::tensor::{Dtype, TensorDesc, View};

const RECURRENCE: Source = wgsl!("lib/recurrence");

/// Where the libraries bind the first state, and the op's own tensor.
const STATE_BINDING: u32 = 11;
const OWN_BINDING: u32 = 12;

/// Where each input is among the inputs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub steps: StepPlaces,
    pub state: Option<usize>,
    /// Of the tensor that only this op has.
    pub own: Option<usize>,
    count: usize,
}

impl Places {
    /// Of a mask, lengths, a first state and the op's own tensor, those that there are.
    pub fn new(present: [bool; 4]) -> Self {
        let mut count = 2;
        let [mask, lengths, state, own] = present.map(|present| {
            let at = present.then_some(count);
            count += usize::from(present);
            at
        });
        Self { steps: StepPlaces { mask, lengths }, state, own, count }
    }
}

/// An op as far as it does not matter which one it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recurrent {
    pub name: &'static str,
    /// Gates of a unit.
    pub gates: usize,
    pub max_hidden: usize,
    /// Vectors of `hidden` numbers that a sequence carries from step to step. More than one are the first axis of their tensor.
    pub states: usize,
    /// Name of the op's own tensor, and how many numbers it has for a unit.
    pub own: (&'static str, usize),
    pub places: Places,
    pub gate: Gate,
    pub direction: Direction,
    pub masked: MaskedOutput,
    pub output: Option<Dtype>,
}

/// A kernel of such an op, whose workgroups own a sequence each.
pub(super) struct Kernel {
    pub main: Source,
    /// Library files for the first state and for the op's own tensor.
    pub libraries: [Source; 2],
    /// Name of the own tensor's element in the shader.
    pub own_element: &'static str,
    /// Constants of its own.
    pub constants: Vec<(&'static str, Constant)>,
    /// Rounds of the loops in which a unit multiplies the state, for a step.
    pub rounds: usize,
}

params! {
    struct RecurrentParams { batch: u32, steps: u32, backwards: u32, repeat_masked: u32 }
}

impl Recurrent {
    /// Batch, steps and units.
    pub fn sizes(&self, inputs: &[TensorDesc]) -> Result<[usize; 3]> {
        let Self { name: op, gates, max_hidden, places, .. } = *self;
        let wrong = |message: String| Error::shape(op, message);
        places.steps.exclusive(op)?;
        if inputs.len() != places.count {
            return Err(wrong(format!("takes {} tensors with these options, got {}", places.count, inputs.len())));
        }
        let (batch, steps, hidden) = match inputs[0].shape[..] {
            [batch, steps, width] if width % gates == 0 => (batch, steps, width / gates),
            _ => return Err(wrong(format!("gates are [batch, steps, {gates} · hidden], got {}", inputs[0]))),
        };
        if hidden > max_hidden {
            return Err(wrong(format!("gates are of {hidden} units, at most {max_hidden} are supported")));
        }
        let float = |at: usize, name: &str, shape: &[usize]| match &inputs[at] {
            desc if desc.shape == shape && desc.dtype.is_device_float() => Ok(()),
            desc => Err(wrong(format!("{name} is {desc}, it must be f32 or f16 {shape:?}"))),
        };
        float(0, "gates", &[batch, steps, gates * hidden])?;
        float(1, "the recurrent weight", &[hidden, gates * hidden])?;
        places.steps.fit(op, inputs, [batch, steps])?;
        let state = &[self.states, batch, hidden][usize::from(self.states == 1)..];
        places.state.map_or(Ok(()), |at| float(at, "the first state", state))?;
        let (own, numbers) = self.own;
        places.own.map_or(Ok(()), |at| float(at, own, &[numbers * hidden]))?;
        match self.output {
            Some(dtype) if !dtype.is_device_float() => Err(wrong(format!("results are f32 or f16, not {dtype}"))),
            _ => Ok([batch, steps, hidden]),
        }
    }

    /// The walk of the native kernels.
    pub fn steps<'a>(&self, count: usize, inputs: &[View<'a>]) -> Steps<'a> {
        let StepPlaces { mask, lengths } = self.places.steps;
        Steps {
            count,
            direction: self.direction,
            masked: self.masked,
            mask: mask.map(|at| inputs[at].bytes),
            lengths: lengths.map(|at| bytemuck::cast_slice(inputs[at].bytes)),
        }
    }

    /// Lanes of the workgroup that owns a sequence.
    pub fn lanes(hidden: usize) -> usize {
        hidden.next_power_of_two().clamp(32, 256)
    }

    /// `None` when the device lacks f16 and a tensor has it, or does not end such loops.
    pub fn launch(
        &self,
        kernel: Kernel,
        [batch, steps, hidden]: [usize; 3],
        inputs: &[TensorDesc],
        capabilities: &Capabilities,
    ) -> Option<Launch> {
        let Places { steps: step_places, state, own, .. } = self.places;
        let mut constants = kernel.constants;
        constants.extend([
            ("HIDDEN", Constant::U32(index(hidden.max(1)))),
            ("LANES", Constant::U32(index(Self::lanes(hidden)))),
            ("HARD_SIGMOID", Constant::Bool(self.gate == Gate::HardSigmoid)),
            ("ElemX", Constant::Scalar(inputs[0].dtype)),
            ("ElemR", Constant::Scalar(inputs[1].dtype)),
            ("Elem", Constant::Scalar(self.output.unwrap_or(inputs[0].dtype))),
        ]);
        let libraries = [EXCLUDED, RECURRENCE, step_places.library()].into_iter().chain(kernel.libraries).collect();
        // The sequence, and each state after it.
        let mut bindings = Bindings { inputs: vec![1, 2], outputs: (3..=3 + index(self.states)).collect() };
        for (at, binding, scalar) in [
            (step_places.mask.or(step_places.lengths), STEPS_BINDING, None),
            (state, STATE_BINDING, Some("ElemS")),
            (own, OWN_BINDING, Some(kernel.own_element)),
        ] {
            bindings.inputs.extend(at.map(|_| binding));
            constants.extend(at.zip(scalar).map(|(at, name)| (name, Constant::Scalar(inputs[at].dtype))));
        }
        let shader = Shader { main: kernel.main, libraries, constants };
        let rounds = steps * (hidden.div_ceil(Self::lanes(hidden)) * kernel.rounds + 3);
        if (shader.needs_f16() && !capabilities.f16) || !capabilities.completes(rounds) {
            return None;
        }
        let params = RecurrentParams {
            batch: index(batch),
            steps: index(steps),
            backwards: u32::from(self.direction == Direction::Backward),
            repeat_masked: u32::from(self.masked == MaskedOutput::Repeat),
        };
        let workgroups = if hidden == 0 { [0; 3] } else { fold(batch, capabilities) };
        Some(Launch { shader, params: params.into(), workgroups, bindings })
    }
}
