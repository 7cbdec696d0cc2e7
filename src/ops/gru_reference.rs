//! The definition of `gru`, in f64, one sequence, step and unit at a time.

use crate::op::Rows;
use crate::ops::gru::{Gru, Reset};
use crate::ops::recurrent_reference::{Sequences, State, bend};
use crate::tensor::HostTensor;

/// What the steps share.
struct Definition<'a> {
    op: &'a Gru,
    gates: Vec<f64>,
    recurrent: Vec<f64>,
    bias: Option<Vec<f64>>,
    hidden: usize,
}

/// Every output of [`Gru`].
pub(super) fn reference(op: &Gru, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
    let &[_, _, width] = inputs[0].shape() else { unreachable!("the graph accepted rank 3") };
    let hidden = width / 3;
    // In the order in which the op names them.
    let mut optional = inputs[2..].iter().map(|input| input.to_f64());
    let mut next = |present: bool| if present { optional.next() } else { None };
    let (mask, lengths, first) = (next(op.has_mask), next(op.has_lengths), next(op.has_state));
    let bias = next(op.has_candidate_bias);
    let definition = Definition { op, gates: inputs[0].to_f64(), recurrent: inputs[1].to_f64(), bias, hidden };
    let (direction, masked) = (op.direction, op.masked);
    let sequences = Sequences { gates: inputs[0], hidden, direction, masked, mask, lengths };
    let first = |b: usize| [first.as_ref().map_or(vec![0.0; hidden], |first| first[b * hidden..][..hidden].to_vec())];
    sequences.outputs(first, |row, state| definition.step(row, state), rows)
}

impl Definition<'_> {
    fn step(&self, row: usize, [h]: &State<1>) -> State<1> {
        let n = self.hidden;
        let projected = |gate: usize, unit: usize| self.gates[(row * 3 + gate) * n + unit];
        let product = |state: &[f64], gate: usize, unit: usize| -> f64 {
            (0..n).map(|k| state[k] * self.recurrent[(k * 3 + gate) * n + unit]).sum()
        };
        let gate = |gate: usize, unit: usize| bend(self.op.gate, projected(gate, unit) + product(h, gate, unit));
        let reset: Vec<f64> = (0..n).map(|unit| gate(1, unit)).collect();
        let scaled: Vec<f64> = reset.iter().zip(h).map(|(r, h)| r * h).collect();
        let units = (0..n).map(|unit| {
            let bias = self.bias.as_ref().map_or(0.0, |bias| bias[unit]);
            let carried = match self.op.reset {
                Reset::AfterProduct => reset[unit] * (product(h, 2, unit) + bias),
                Reset::BeforeProduct => product(&scaled, 2, unit),
            };
            let candidate = (projected(2, unit) + carried).tanh();
            let update = gate(0, unit);
            (1.0 - update) * candidate + update * h[unit]
        });
        [units.collect()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::kernels::recurrence::{Direction, Gate, MaskedOutput};
    use crate::op::Op;

    fn tensor(shape: &[usize], data: &[f32]) -> HostTensor {
        HostTensor::f32(shape, data.to_vec()).unwrap()
    }

    fn close(got: &HostTensor, want: &[f64]) {
        let got = got.as_f64().unwrap();
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-7, "{got} is not {want}");
        }
    }

    /// Gates of hard sigmoid are exact: 1/2 where the sum is zero.
    fn hard() -> Gru {
        Gru { gate: Gate::HardSigmoid, has_state: true, ..Gru::default() }
    }

    #[test]
    fn both_resets_by_hand() {
        // Two units; update and reset are 1/2 everywhere; the candidate of unit 0 reads h of both, that of unit 1
        // nothing.
        let gates = tensor(&[1, 1, 6], &[0.0, 0.0, 0.0, 0.0, 0.25, 1.0]);
        let recurrent = tensor(&[2, 6], &[0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0]);
        let state = tensor(&[1, 2], &[0.5, -1.0]);
        let mix = |carried: f64| [(0.25 + carried).tanh() / 2.0 + 0.25, 1.0_f64.tanh() / 2.0 - 0.5];
        let out = hard().reference(&[&gates, &recurrent, &state], Rows::All);
        close(&out[0], &mix(0.5 * (0.5 - 2.0)));
        close(&out[1], &mix(0.5 * (0.5 - 2.0)));
        let before = Gru { reset: Reset::BeforeProduct, ..hard() };
        close(&before.reference(&[&gates, &recurrent, &state], Rows::All)[0], &mix(0.25 - 1.0));
        let biased = Gru { has_candidate_bias: true, ..hard() };
        let bias = tensor(&[2], &[3.0, 0.0]);
        close(&biased.reference(&[&gates, &recurrent, &state, &bias], Rows::All)[0], &mix(0.5 * (0.5 - 2.0 + 3.0)));
    }

    #[test]
    fn reset_and_update_by_hand() {
        // The update gate is closed, so that h is the candidate; the reset gate is closed at the first step.
        let gates = tensor(&[1, 2, 3], &[-3.0, -3.0, 0.5, -3.0, 3.0, 0.0]);
        let recurrent = tensor(&[1, 3], &[0.0, 0.0, 2.0]);
        let state = tensor(&[1, 1], &[1.0]);
        let first = 0.5_f64.tanh();
        close(&hard().reference(&[&gates, &recurrent, &state], Rows::All)[0], &[first, (2.0 * first).tanh()]);
        let backward = Gru { direction: Direction::Backward, ..hard() };
        close(&backward.reference(&[&gates, &recurrent, &state], Rows::All)[0], &[first, 2.0_f64.tanh()]);
        let mask = HostTensor::bool(&[1, 2], vec![true, false]).unwrap();
        let repeat = Gru { has_mask: true, masked: MaskedOutput::Repeat, ..hard() };
        let out = repeat.reference(&[&gates, &recurrent, &mask, &state], Rows::All);
        close(&out[0], &[first, first]);
        close(&out[1], &[first]);
    }
}
