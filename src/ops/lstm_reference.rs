//! The definition of `lstm`, in f64, one sequence, step and unit at a time.

use crate::op::Rows;
use crate::ops::lstm::Lstm;
use crate::ops::recurrent_reference::{Sequences, State, bend};
use crate::tensor::HostTensor;

/// What the steps share.
struct Definition<'a> {
    op: &'a Lstm,
    gates: Vec<f64>,
    recurrent: Vec<f64>,
    peepholes: Option<Vec<f64>>,
    hidden: usize,
}

/// Every output of [`Lstm`].
pub(super) fn reference(op: &Lstm, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
    let &[batch, _, width] = inputs[0].shape() else { unreachable!("the graph accepted rank 3") };
    let hidden = width / 4;
    // In the order in which the op names them.
    let mut optional = inputs[2..].iter().map(|input| input.to_f64());
    let mut next = |present: bool| if present { optional.next() } else { None };
    let (mask, lengths) = (next(op.has_mask), next(op.has_lengths));
    let first = next(op.has_state);
    let peepholes = next(op.has_peepholes);
    let definition = Definition { op, gates: inputs[0].to_f64(), recurrent: inputs[1].to_f64(), peepholes, hidden };
    let (direction, masked) = (op.direction, op.masked);
    let sequences = Sequences { gates: inputs[0], hidden, direction, masked, mask, lengths };
    let first = |b: usize| {
        [0, batch].map(|before| match &first {
            Some(first) => first[(before + b) * hidden..][..hidden].to_vec(),
            None => vec![0.0; hidden],
        })
    };
    sequences.outputs(first, |row, state| definition.step(row, state), rows)
}

impl Definition<'_> {
    fn step(&self, row: usize, [h, c]: &State<2>) -> State<2> {
        let n = self.hidden;
        let sum = |gate: usize, unit: usize| {
            let column = gate * n + unit;
            let carried: f64 = (0..n).map(|k| h[k] * self.recurrent[k * 4 * n + column]).sum();
            self.gates[row * 4 * n + column] + carried
        };
        let peephole = |gate: usize, unit: usize| self.peepholes.as_ref().map_or(0.0, |p| p[gate * n + unit]);
        let bend = |x: f64| bend(self.op.gate, x);
        let units = (0..n).map(|unit| {
            let input = bend(sum(0, unit) + peephole(0, unit) * c[unit]);
            let forget = bend(sum(1, unit) + peephole(1, unit) * c[unit]);
            let cell = forget * c[unit] + input * sum(2, unit).tanh();
            let output = bend(sum(3, unit) + peephole(2, unit) * cell);
            (output * cell.tanh(), cell)
        });
        units.unzip::<_, _, Vec<_>, Vec<_>>().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Op;
    use crate::ops::lstm::{Direction, Gate, MaskedOutput};

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

    /// Gates of hard sigmoid are exact: i = f = o = 1/2 where the sum is zero, 1 from 2.5 on, 0 below −2.5.
    fn hard() -> Lstm {
        Lstm { gate: Gate::HardSigmoid, ..Lstm::default() }
    }

    #[test]
    fn steps_by_hand() {
        // Two steps of one unit: the first writes tanh(1), the second, whose recurrent weight closes the input gate,
        // halves it.
        let gates = tensor(&[1, 2, 4], &[3.0, 0.0, 1.0, 3.0, 0.0, 0.0, 1.0, 0.0]);
        let recurrent = tensor(&[1, 4], &[-10.0, 0.0, 0.0, 0.0]);
        let out = hard().reference(&[&gates, &recurrent], Rows::All);
        let first = 1.0_f64.tanh();
        let second = first / 2.0;
        close(&out[0], &[first.tanh(), second.tanh() / 2.0]);
        close(&out[1], &[second.tanh() / 2.0]);
        close(&out[2], &[second]);
        let backward = Lstm { direction: Direction::Backward, ..hard() };
        let out = backward.reference(&[&gates, &recurrent], Rows::All);
        let late = first / 2.0;
        let h = late.tanh() / 2.0;
        let early = late / 2.0 + (0.2 * (3.0 - 10.0 * h) + 0.5).clamp(0.0, 1.0) * first;
        close(&out[0], &[early.tanh(), h]);
        close(&out[2], &[early]);
    }

    #[test]
    fn peepholes_and_first_state_by_hand() {
        let gates = tensor(&[1, 1, 4], &[0.0, 0.0, 0.0, 0.0]);
        let recurrent = tensor(&[1, 4], &[0.0, 0.0, 1.0, 0.0]);
        let state = tensor(&[2, 1, 1], &[0.5, 2.0]);
        let peepholes = tensor(&[3], &[1.0, -1.0, 0.5]);
        let op = Lstm { has_state: true, has_peepholes: true, ..hard() };
        let out = op.reference(&[&gates, &recurrent, &state, &peepholes], Rows::All);
        let cell = 0.1 * 2.0 + 0.9 * 0.5_f64.tanh();
        close(&out[2], &[cell]);
        close(&out[0], &[(0.2 * 0.5 * cell + 0.5) * cell.tanh()]);
    }

    #[test]
    fn masks_and_lengths_by_hand() {
        // Every step writes tanh(1) to c, whatever c was.
        let gates = tensor(&[1, 4, 4], &[3.0, -3.0, 1.0, 3.0].repeat(4));
        let recurrent = tensor(&[1, 4], &[0.0; 4]);
        let mask = HostTensor::bool(&[1, 4], vec![false, true, false, true]).unwrap();
        let h = 1.0_f64.tanh().tanh();
        let masked = Lstm { has_mask: true, ..hard() };
        close(&masked.reference(&[&gates, &recurrent, &mask], Rows::All)[0], &[0.0, h, 0.0, h]);
        let repeat = Lstm { masked: MaskedOutput::Repeat, ..masked };
        close(&repeat.reference(&[&gates, &recurrent, &mask], Rows::All)[0], &[0.0, h, h, h]);
        let backward = Lstm { direction: Direction::Backward, ..repeat };
        close(&backward.reference(&[&gates, &recurrent, &mask], Rows::All)[0], &[h; 4]);
        let lengths = HostTensor::u32(&[1], vec![2]).unwrap();
        let short = Lstm { has_lengths: true, direction: Direction::Backward, ..hard() };
        close(&short.reference(&[&gates, &recurrent, &lengths], Rows::All)[0], &[h, h, 0.0, 0.0]);
    }
}
