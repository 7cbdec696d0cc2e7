//! The definition of `lstm`, in f64, one sequence, step and unit at a time.

use crate::op::Rows;
use crate::ops::lstm::{Direction, Gate, Lstm, MaskedOutput};
use crate::tensor::HostTensor;

/// One sequence, run to its end.
struct Run {
    /// A row for each step.
    sequence: Vec<Vec<f64>>,
    h: Vec<f64>,
    c: Vec<f64>,
}

/// What the sequences share.
struct Definition<'a> {
    op: &'a Lstm,
    gates: Vec<f64>,
    recurrent: Vec<f64>,
    peepholes: Option<Vec<f64>>,
    steps: usize,
    hidden: usize,
}

/// Every output of [`Lstm`].
pub(super) fn reference(op: &Lstm, inputs: &[&HostTensor], rows: Rows) -> Vec<HostTensor> {
    let &[batch, steps, width] = inputs[0].shape() else { unreachable!("the graph accepted rank 3") };
    let hidden = width / 4;
    // In the order in which the op names them.
    let mut optional = inputs[2..].iter().map(|input| input.to_f64());
    let mut next = |present: bool| if present { optional.next() } else { None };
    let (mask, lengths) = (next(op.has_mask), next(op.has_lengths));
    let first = next(op.has_state);
    let peepholes = next(op.has_peepholes);
    let (gates, recurrent) = (inputs[0].to_f64(), inputs[1].to_f64());
    let definition = Definition { op, gates, recurrent, peepholes, steps, hidden };
    let runs: Vec<Run> = (0..batch)
        .map(|b| {
            let mask = mask.as_ref().map(|mask| &mask[b * steps..][..steps]);
            let length = lengths.as_ref().map_or(steps, |lengths| (lengths[b] as usize).min(steps));
            let state = [0, batch].map(|before| match &first {
                Some(first) => first[(before + b) * hidden..][..hidden].to_vec(),
                None => vec![0.0; hidden],
            });
            definition.run(b, mask, length, state)
        })
        .collect();
    vec![
        rows.compute(&[batch, steps, hidden], |row, out| out.copy_from_slice(&runs[row / steps].sequence[row % steps])),
        rows.compute(&[batch, hidden], |row, out| out.copy_from_slice(&runs[row].h)),
        rows.compute(&[batch, hidden], |row, out| out.copy_from_slice(&runs[row].c)),
    ]
}

impl Definition<'_> {
    fn run(&self, batch: usize, mask: Option<&[f64]>, length: usize, [mut h, mut c]: [Vec<f64>; 2]) -> Run {
        let mut sequence = vec![vec![0.0; self.hidden]; self.steps];
        let mut last = vec![0.0; self.hidden];
        let mut order: Vec<usize> = (0..length).collect();
        if self.op.direction == Direction::Backward {
            order.reverse();
        }
        for step in order {
            if mask.is_none_or(|mask| mask[step] != 0.0) {
                (h, c) = self.step(batch * self.steps + step, &h, &c);
                last.clone_from(&h);
                sequence[step].clone_from(&h);
            } else if self.op.masked == MaskedOutput::Repeat {
                sequence[step].clone_from(&last);
            }
        }
        Run { sequence, h, c }
    }

    fn step(&self, row: usize, h: &[f64], c: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let n = self.hidden;
        let sum = |gate: usize, unit: usize| {
            let column = gate * n + unit;
            let carried: f64 = (0..n).map(|k| h[k] * self.recurrent[k * 4 * n + column]).sum();
            self.gates[row * 4 * n + column] + carried
        };
        let peephole = |gate: usize, unit: usize| self.peepholes.as_ref().map_or(0.0, |p| p[gate * n + unit]);
        let units = (0..n).map(|unit| {
            let input = self.bend(sum(0, unit) + peephole(0, unit) * c[unit]);
            let forget = self.bend(sum(1, unit) + peephole(1, unit) * c[unit]);
            let cell = forget * c[unit] + input * sum(2, unit).tanh();
            let output = self.bend(sum(3, unit) + peephole(2, unit) * cell);
            (output * cell.tanh(), cell)
        });
        units.unzip()
    }

    fn bend(&self, x: f64) -> f64 {
        match self.op.gate {
            Gate::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Gate::HardSigmoid => (0.2 * x + 0.5).clamp(0.0, 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
