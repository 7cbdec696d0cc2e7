//! `gru`: the recurrence of a GRU layer over steps whose input has been projected.
//!
//! Techniques: `gru_workgroup` (one workgroup per sequence, all steps in one dispatch), `gru_native`.

use std::sync::Arc;

use crate::capabilities::{Backend, Capabilities};
use crate::case::Case;
use crate::cpu::kernels::args::{Elements, ElementsMut};
use crate::cpu::kernels::gru as kernel;
pub use crate::cpu::kernels::gru::Reset;
use crate::cpu::kernels::recurrence::{Direction, Gate, MaskedOutput};
use crate::error::{Error, Result};
use crate::graph::{Graph, Tensor};
use crate::op::{Cost, CpuKernel, Launch, Op, Rows, Technique, Update};
use crate::ops::recurrent::{Kernel, Places, Recurrent};
use crate::ops::{gru_cases, gru_reference};
use crate::shader::{Constant, Source, wgsl};
use crate::tensor::{Dtype, HostTensor, TensorDesc, View, ViewMut};

const WORKGROUP: Source = wgsl!("gru_workgroup");
const STATE_ZERO: Source = wgsl!("lib/gru_state_zero");
const STATE_DENSE: Source = wgsl!("lib/gru_state_dense");
const CANDIDATE_BIAS_NONE: Source = wgsl!("lib/candidate_bias_none");
const CANDIDATE_BIAS_DENSE: Source = wgsl!("lib/candidate_bias_dense");

/// Most units of a layer: two vectors of them fill the workgroup memory that every device has, 16 KiB.
const MAX_HIDDEN: usize = 2048;

/// A recurrence over `gates` `[batch, steps, 3 · hidden]`, which is `x · W + b`, with `recurrent` `[hidden, 3 ·
/// hidden]`; gates in the order update z, reset r, candidate n, and σ the gate's function:
///
/// ```text
/// z = σ(gates_z + h · R_z)      r = σ(gates_r + h · R_r)
/// n = tanh(gates_n + r · (h · R_n + b_n)), or tanh(gates_n + (r · h) · R_n)
/// h ← (1 − z) · n + z · h
/// ```
///
/// Into the sequence of every h `[batch, steps, hidden]` and the last h `[batch, hidden]`. Further inputs, as the flags
/// say and in their order: a mask (bool `[batch, steps]`, true where a step takes part) or lengths (u32 `[batch]`),
/// first h (`[batch, hidden]`), the candidate's recurrent bias b_n (`[hidden]`). A masked step keeps h. Steps past the
/// length do not take place, and their output is zero. Storage is f32 or f16, per tensor; the state is f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Gru {
    /// σ.
    pub gate: Gate,
    /// What r scales.
    pub reset: Reset,
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
    /// First h follows.
    pub has_state: bool,
    /// b_n follows. Only with [`Reset::AfterProduct`]; otherwise it belongs to the gates.
    pub has_candidate_bias: bool,
}

/// Options and tensors of [`Graph::gru_steps`] and of [`Graph::gru`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GruOptions {
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
    /// First h, `[batch, hidden]`; zeros by default.
    pub state: Option<Tensor>,
}

/// What a GRU gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GruOutputs {
    /// h after each step, `[batch, steps, hidden]`, row t belonging to step t in both directions.
    pub sequence: Tensor,
    /// h after the last step taken, `[batch, hidden]`.
    pub last_h: Tensor,
}

/// The tensors of [`Graph::gru_steps`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GruTensors {
    /// `x · W + b`, `[batch, steps, 3 · hidden]`.
    pub gates: Tensor,
    /// `[hidden, 3 · hidden]`.
    pub recurrent: Tensor,
    /// b_n, `[hidden]`.
    pub candidate_bias: Option<Tensor>,
    /// What r scales.
    pub reset: Reset,
    /// Dtype of the results; that of `gates` by default.
    pub output: Option<Dtype>,
}

impl Graph {
    /// Adds [`Gru`], whose input has been projected; [`Graph::gru`] does that too.
    ///
    /// # Errors
    /// Gates that are not three, more than 2048 units, tensors whose sizes differ from those of the gates, wrong
    /// dtypes, a mask beside lengths, b_n without [`Reset::AfterProduct`].
    pub fn gru_steps(&mut self, tensors: GruTensors, options: &GruOptions) -> Result<GruOutputs> {
        let op = Gru {
            gate: options.gate,
            reset: tensors.reset,
            direction: options.direction,
            masked: options.masked,
            output: tensors.output,
            has_mask: options.mask.is_some(),
            has_lengths: options.lengths.is_some(),
            has_state: options.state.is_some(),
            has_candidate_bias: tensors.candidate_bias.is_some(),
        };
        let optional = [options.mask, options.lengths, options.state, tensors.candidate_bias];
        let inputs = [tensors.gates, tensors.recurrent].into_iter().chain(optional.into_iter().flatten());
        let outputs = self.add(op, &inputs.collect::<Vec<_>>())?;
        Ok(GruOutputs { sequence: outputs[0], last_h: outputs[1] })
    }
}

impl Op for Gru {
    fn name(&self) -> &'static str {
        "gru"
    }

    fn outputs(&self, inputs: &[TensorDesc]) -> Result<Vec<TensorDesc>> {
        let [batch, steps, hidden] = self.sizes(inputs)?;
        let dtype = self.output.unwrap_or(inputs[0].dtype);
        Ok(vec![TensorDesc::new(dtype, [batch, steps, hidden]), TensorDesc::new(dtype, [batch, hidden])])
    }

    fn reference(&self, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
        gru_reference::reference(self, inputs, rows)
    }

    /// The recurrent products, and for each unit and step two gates, a tanh (one operation each) and eight additions
    /// and products; masked steps count as taken.
    fn cost(&self, inputs: &[TensorDesc]) -> Cost {
        let (Ok(outputs), Ok([batch, steps, hidden])) = (self.outputs(inputs), self.sizes(inputs)) else {
            return Cost::default();
        };
        Cost::once((batch * steps * hidden) as u64 * (6 * hidden as u64 + 11), inputs, &outputs)
    }

    fn updates(&self) -> &'static [Update] {
        &[]
    }

    fn check(&self, inputs: &[TensorDesc], data: &[Option<&HostTensor>]) -> Result<()> {
        self.recurrent().places.steps.check("gru", inputs[0].shape[1], data)
    }

    fn techniques(&self, inputs: &[TensorDesc], capabilities: &Capabilities) -> Vec<Technique> {
        let Ok(sizes) = self.sizes(inputs) else { return Vec::new() };
        match capabilities.backend {
            Backend::Cpu => vec![self.native(sizes)],
            Backend::Gpu => self.workgroup(sizes, inputs, capabilities).map(Technique::Gpu).into_iter().collect(),
        }
    }
}

impl Gru {
    fn recurrent(&self) -> Recurrent {
        Recurrent {
            name: "gru",
            gates: 3,
            max_hidden: MAX_HIDDEN,
            states: 1,
            own: ("the candidate's bias", 1),
            places: Places::new([self.has_mask, self.has_lengths, self.has_state, self.has_candidate_bias]),
            gate: self.gate,
            direction: self.direction,
            masked: self.masked,
            output: self.output,
        }
    }

    /// Batch, steps and units.
    fn sizes(&self, inputs: &[TensorDesc]) -> Result<[usize; 3]> {
        let recurrent = self.recurrent();
        recurrent.places.steps.exclusive("gru")?;
        if self.has_candidate_bias && self.reset == Reset::BeforeProduct {
            let message = "the candidate has no recurrent bias of its own where the reset gate scales the state";
            return Err(Error::option("gru", message));
        }
        recurrent.sizes(inputs)
    }

    fn native(&self, [batch, count, hidden]: [usize; 3]) -> Technique {
        let (recurrent, reset) = (self.recurrent(), self.reset);
        let run = move |inputs: &[View<'_>], outputs: &mut [ViewMut<'_>]| {
            let Places { state, own, .. } = recurrent.places;
            let args = kernel::GruArgs {
                sizes: [batch, hidden],
                steps: recurrent.steps(count, inputs),
                gate: recurrent.gate,
                reset,
                gates: Elements::of(&inputs[0]),
                recurrent: Elements::of(&inputs[1]),
                state: state.map(|at| Elements::of(&inputs[at])),
                candidate_bias: own.map(|at| Elements::of(&inputs[at])),
            };
            let [sequence, last_h] = outputs else { unreachable!("the shape rule names two outputs") };
            kernel::gru(&args, ElementsMut::of(sequence), ElementsMut::of(last_h));
        };
        Technique::Cpu(CpuKernel { name: "gru_native", run: Arc::new(run) })
    }

    fn workgroup(&self, sizes: [usize; 3], inputs: &[TensorDesc], capabilities: &Capabilities) -> Option<Launch> {
        let kernel = Kernel {
            main: WORKGROUP,
            libraries: [
                if self.has_state { STATE_DENSE } else { STATE_ZERO },
                if self.has_candidate_bias { CANDIDATE_BIAS_DENSE } else { CANDIDATE_BIAS_NONE },
            ],
            own_element: "ElemB",
            constants: vec![("RESET_AFTER", Constant::Bool(self.reset == Reset::AfterProduct))],
            // Each unit multiplies the whole state once, or twice.
            rounds: 2 * sizes[2] + 4,
        };
        self.recurrent().launch(kernel, sizes, inputs, capabilities)
    }
}

/// Cases of [`gru_cases`].
pub(super) fn cases() -> Vec<Case> {
    gru_cases::cases()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_does_not_fit() {
        let refused = |inputs: &[(Dtype, &[usize])], op: Gru, message: &str| {
            let inputs: Vec<_> = inputs.iter().map(|(dtype, shape)| TensorDesc::new(*dtype, *shape)).collect();
            assert_eq!(op.outputs(&inputs).unwrap_err().to_string(), format!("gru: {message}"));
        };
        let plain = Gru::default();
        let gates: (Dtype, &[usize]) = (Dtype::F32, &[2, 5, 9]);
        let recurrent: (Dtype, &[usize]) = (Dtype::F32, &[3, 9]);
        refused(&[gates], plain, "takes 2 tensors with these options, got 1");
        refused(
            &[(Dtype::F32, &[2, 5, 8]), recurrent],
            plain,
            "gates are [batch, steps, 3 · hidden], got f32 [2, 5, 8]",
        );
        refused(
            &[gates, (Dtype::F32, &[9, 3])],
            plain,
            "the recurrent weight is f32 [9, 3], it must be f32 or f16 [3, 9]",
        );
        refused(
            &[(Dtype::F32, &[1, 1, 6147]), recurrent],
            plain,
            "gates are of 2049 units, at most 2048 are supported",
        );
        let masked = Gru { has_mask: true, ..plain };
        refused(&[gates, recurrent, (Dtype::F32, &[2, 5])], masked, "mask is f32 [2, 5], it must be bool [2, 5]");
        let both = Gru { has_lengths: true, ..masked };
        refused(&[gates, recurrent], both, "a mask and lengths exclude each other; a mask can say both");
        let state = Gru { has_state: true, ..plain };
        refused(&[gates, recurrent, recurrent], state, "the first state is f32 [3, 9], it must be f32 or f16 [2, 3]");
        let bias = Gru { has_candidate_bias: true, ..plain };
        refused(&[gates, recurrent, recurrent], bias, "the candidate's bias is f32 [3, 9], it must be f32 or f16 [3]");
        let before = Gru { reset: Reset::BeforeProduct, ..bias };
        let message = "the candidate has no recurrent bias of its own where the reset gate scales the state";
        refused(&[gates, recurrent, recurrent], before, message);
    }
}
