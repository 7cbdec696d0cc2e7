//! `lstm`: the recurrence of an LSTM layer over steps whose input has been projected.
//!
//! Techniques: `lstm_workgroup` (one workgroup per sequence, all steps in one dispatch), `lstm_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::Case;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::lstm as kernel;
pub use crate::cpu::kernels::recurrence::{Direction, Gate, MaskedOutput};
use crate::error::Result;
use crate::graph::{Graph, Tensor};
use crate::op::{Cost, CpuKernel, Launch, Op, Rows, Technique, Update};
use crate::ops::recurrent::{Kernel, Places, Recurrent};
use crate::ops::{lstm_cases, lstm_reference};
use crate::shader::{Source, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const WORKGROUP: Source = wgsl!("lstm_workgroup");
const STATE_ZERO: Source = wgsl!("lib/lstm_state_zero");
const STATE_DENSE: Source = wgsl!("lib/lstm_state_dense");
const PEEPHOLES_NONE: Source = wgsl!("lib/peepholes_none");
const PEEPHOLES_DENSE: Source = wgsl!("lib/peepholes_dense");

/// Most units of a layer: their state fills the workgroup memory that every device has, 16 KiB.
const MAX_HIDDEN: usize = 4096;

/// A recurrence over `gates` `[batch, steps, 4 · hidden]`, which is `x · W + b`, with `recurrent` `[hidden, 4 ·
/// hidden]`; gates in the order input i, forget f, candidate g, output o, and σ the gate's function:
///
/// ```text
/// i = σ(gates_i + h · R_i + p_i · c)      f = σ(gates_f + h · R_f + p_f · c)      g = tanh(gates_g + h · R_g)
/// c ← f · c + i · g                       o = σ(gates_o + h · R_o + p_o · c)      h ← o · tanh(c)
/// ```
///
/// Into the sequence of every h `[batch, steps, hidden]`, and the last h and c, `[batch, hidden]` each. Further inputs,
/// as the flags say and in their order: a mask (bool `[batch, steps]`, true where a step takes part) or lengths (u32
/// `[batch]`), first h and c (`[2, batch, hidden]`), peepholes (`[3 · hidden]`: i, f, o). A masked step keeps h and c.
/// Steps past the length do not take place, and their output is zero. Storage is f32 or f16, per tensor; the state is
/// f32.
///
/// A mask excludes lengths, and the first state is one tensor, because WebGPU guarantees no more than eight buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lstm {
    /// σ.
    pub gate: Gate,
    /// Which step comes first.
    pub direction: Direction,
    /// What a masked step puts out.
    pub masked: MaskedOutput,
    /// Dtype of the results; that of `gates` by default.
    pub output: Option<Dtype>,
    /// A mask follows.
    pub has_mask: bool,
    /// Lengths follow. Not together with a mask, which can say the same.
    pub has_lengths: bool,
    /// First h and c follow.
    pub has_state: bool,
    /// Peepholes follow.
    pub has_peepholes: bool,
}

/// Options and tensors of [`Graph::lstm_steps`] and of [`Graph::lstm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LstmOptions {
    /// What bends the gates.
    pub gate: Gate,
    /// Which step comes first.
    pub direction: Direction,
    /// What a masked step puts out.
    pub masked: MaskedOutput,
    /// bool `[batch, steps]`: false for steps that keep the state.
    pub mask: Option<Tensor>,
    /// u32 `[batch]`: steps that take place. Not together with a mask, which can say the same.
    pub lengths: Option<Tensor>,
    /// First h and c, `[batch, hidden]` each; zeros by default.
    pub state: Option<[Tensor; 2]>,
}

/// What an LSTM gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LstmOutputs {
    /// h after each step, `[batch, steps, hidden]`, row t belonging to step t in both directions.
    pub sequence: Tensor,
    /// h after the last step taken, `[batch, hidden]`.
    pub last_h: Tensor,
    /// c after the last step taken, `[batch, hidden]`.
    pub last_c: Tensor,
}

/// The tensors of [`Graph::lstm_steps`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LstmTensors {
    /// `x · W + b`, `[batch, steps, 4 · hidden]`.
    pub gates: Tensor,
    /// `[hidden, 4 · hidden]`.
    pub recurrent: Tensor,
    /// `[3 · hidden]`.
    pub peepholes: Option<Tensor>,
    /// Dtype of the results; that of `gates` by default.
    pub output: Option<Dtype>,
}

impl Graph {
    /// Adds [`Lstm`], whose input has been projected; [`Graph::lstm`] does that too.
    ///
    /// # Errors
    /// Gates that are not four, more than 4096 units, tensors whose sizes differ from those of the gates, wrong dtypes,
    /// a mask beside lengths.
    pub fn lstm_steps(&mut self, tensors: LstmTensors, options: &LstmOptions) -> Result<LstmOutputs> {
        let op = Lstm {
            gate: options.gate,
            direction: options.direction,
            masked: options.masked,
            output: tensors.output,
            has_mask: options.mask.is_some(),
            has_lengths: options.lengths.is_some(),
            has_state: options.state.is_some(),
            has_peepholes: tensors.peepholes.is_some(),
        };
        let state = options.state.map(|state| self.lstm_state(state)).transpose()?;
        let optional = options.mask.into_iter().chain(options.lengths).chain(state).chain(tensors.peepholes);
        let inputs: Vec<Tensor> = [tensors.gates, tensors.recurrent].into_iter().chain(optional).collect();
        let outputs = self.add(op, &inputs)?;
        Ok(LstmOutputs { sequence: outputs[0], last_h: outputs[1], last_c: outputs[2] })
    }

    /// h and c as one tensor.
    fn lstm_state(&mut self, state: [Tensor; 2]) -> Result<Tensor> {
        let mut stacked = state;
        for tensor in &mut stacked {
            let shape = [&[1], &self.desc(*tensor)?.shape[..]].concat();
            *tensor = self.reshape(*tensor, &shape)?;
        }
        self.concat(stacked[0], stacked[1], 0)
    }
}

impl Op for Lstm {
    fn name(&self) -> &'static str {
        "lstm"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [batch, steps, hidden] = self.recurrent().sizes(inputs)?;
        let dtype = self.output.unwrap_or(inputs[0].dtype);
        let last = TensorDesc::new(dtype, [batch, hidden]);
        Ok(vec![TensorDesc::new(dtype, [batch, steps, hidden]), last.clone(), last])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        lstm_reference::reference(self, inputs, rows)
    }

    /// The recurrent product, and for each unit and step four gates, two tanh (one operation each) and eight additions
    /// and products; masked steps count as taken.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let (Ok(outputs), Ok([batch, steps, hidden])) = (self.outputs(inputs), self.recurrent().sizes(inputs)) else {
            return Cost::default();
        };
        let each = 8 * hidden as u64 + 14 + if self.has_peepholes { 6 } else { 0 };
        Cost::once((batch * steps * hidden) as u64 * each, inputs, &outputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        self.recurrent().places.steps.check("lstm", inputs[0].shape[1], data)
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let Ok(sizes) = self.recurrent().sizes(inputs) else { return Vec::new() };
        match capabilities.backend {
            Backend::Cpu => vec![self.native(sizes)],
            Backend::Gpu => self.workgroup(sizes, inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl Lstm {
    fn recurrent(&self) -> Recurrent {
        Recurrent {
            name: "lstm",
            gates: 4,
            max_hidden: MAX_HIDDEN,
            states: 2,
            own: ("peepholes", 3),
            places: Places::new([self.has_mask, self.has_lengths, self.has_state, self.has_peepholes]),
            gate: self.gate,
            direction: self.direction,
            masked: self.masked,
            output: self.output,
        }
    }

    fn native(&self, [batch, count, hidden]: [usize; 3]) -> Technique {
        let recurrent = self.recurrent();
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let Places { state, own, .. } = recurrent.places;
            let args = kernel::LstmArgs {
                sizes: [batch, hidden],
                steps: recurrent.steps(count, inputs),
                gate: recurrent.gate,
                gates: Elements::of(&inputs[0]),
                recurrent: Elements::of(&inputs[1]),
                state: state.map(|at| Elements::of(&inputs[at])),
                peepholes: own.map(|at| Elements::of(&inputs[at])),
            };
            let [sequence, last_h, last_c] = outputs else { unreachable!("the shape rule names three outputs") };
            kernel::lstm(&args, [sequence, last_h, last_c].map(ElementsMut::of));
        };
        Technique::Cpu(CpuKernel { name: "lstm_native", run: Arc::new(run) })
    }

    fn workgroup(&self, sizes: [usize; 3], inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let kernel = Kernel {
            main: WORKGROUP,
            libraries: [
                if self.has_state { STATE_DENSE } else { STATE_ZERO },
                if self.has_peepholes { PEEPHOLES_DENSE } else { PEEPHOLES_NONE },
            ],
            own_element: "ElemP",
            constants: Vec::new(),
            // Each unit multiplies the whole state once.
            rounds: sizes[2] + 3,
        };
        self.recurrent().launch(kernel, sizes, inputs, capabilities)
    }
}

/// Cases of [`lstm_cases`].
pub(super) fn cases() -> Vec<Case> {
    lstm_cases::cases()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_does_not_fit() {
        let refused = |inputs: &[(Dtype, &[usize])], op: Lstm, message: &str| {
            let inputs: Vec<_> = inputs.iter().map(|(dtype, shape)| TensorDesc::new(*dtype, *shape)).collect();
            assert_eq!(op.outputs(&inputs).unwrap_err().to_string(), format!("lstm: {message}"));
        };
        let plain = Lstm::default();
        let gates: (Dtype, &[usize]) = (Dtype::F32, &[2, 5, 12]);
        let recurrent: (Dtype, &[usize]) = (Dtype::F32, &[3, 12]);
        refused(&[gates], plain, "takes 2 tensors with these options, got 1");
        refused(&[(Dtype::F32, &[5, 12]), recurrent], plain, "gates are [batch, steps, 4 · hidden], got f32 [5, 12]");
        refused(
            &[(Dtype::F32, &[2, 5, 13]), recurrent],
            plain,
            "gates are [batch, steps, 4 · hidden], got f32 [2, 5, 13]",
        );
        refused(
            &[gates, (Dtype::F32, &[12, 3])],
            plain,
            "the recurrent weight is f32 [12, 3], it must be f32 or f16 [3, 12]",
        );
        let masked = Lstm { has_mask: true, ..plain };
        refused(&[gates, recurrent, (Dtype::U32, &[2, 5])], masked, "mask is u32 [2, 5], it must be bool [2, 5]");
        let lengths = Lstm { has_lengths: true, ..plain };
        refused(&[gates, recurrent, (Dtype::U32, &[5])], lengths, "lengths is u32 [5], it must be u32 [2]");
        let both = Lstm { has_lengths: true, ..masked };
        refused(&[gates, recurrent], both, "a mask and lengths exclude each other; a mask can say both");
        let state: (Dtype, &[usize]) = (Dtype::F32, &[2, 3]);
        let first = Lstm { has_state: true, ..plain };
        refused(&[gates, recurrent, state], first, "the first state is f32 [2, 3], it must be f32 or f16 [2, 2, 3]");
        let peepholes = Lstm { has_peepholes: true, ..plain };
        refused(&[gates, recurrent, state], peepholes, "peepholes is f32 [2, 3], it must be f32 or f16 [9]");
        refused(
            &[(Dtype::F32, &[1, 1, 16388]), recurrent],
            plain,
            "gates are of 4097 units, at most 4096 are supported",
        );
        refused(&[gates, recurrent], Lstm { output: Some(Dtype::U32), ..plain }, "results are f32 or f16, not u32");
    }

    #[test]
    fn lengths_past_the_last_step_are_refused() {
        let op = Lstm { has_lengths: true, ..Lstm::default() };
        let descs = [TensorDesc::new(Dtype::F32, [2, 5, 4]), TensorDesc::new(Dtype::F32, [1, 4])];
        let check = |lengths: [u32; 2]| {
            let lengths = HostTensor::u32(&[2], lengths.to_vec()).unwrap();
            op.check(&descs, &[None, None, Some(&lengths)])
        };
        assert!(check([5, 0]).is_ok());
        let message = check([5, 6]).unwrap_err().to_string();
        assert_eq!(message, "lstm: sequence 1 has length 6, there are 5 steps");
    }
}
