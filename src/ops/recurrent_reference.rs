//! What the definitions of `lstm` and `gru` share, in f64: the walk over the steps, and the gates' function.

use crate::cpu::kernels::recurrence::{Direction, Gate, MaskedOutput};
use crate::op::Rows;
use crate::tensor::HostTensor;

/// What the sequences share.
pub(super) struct Sequences<'a> {
    /// `x · W + b`, `[batch, steps, gates · hidden]`.
    pub gates: &'a HostTensor,
    pub hidden: usize,
    pub direction: Direction,
    pub masked: MaskedOutput,
    /// `[batch, steps]`, zero for steps that keep the state.
    pub mask: Option<Vec<f64>>,
    /// `[batch]`; more than all steps counts as all.
    pub lengths: Option<Vec<f64>>,
}

/// What a sequence carries from step to step, vectors of `hidden` numbers; the first is h.
pub(super) type State<const N: usize> = [Vec<f64>; N];

impl Sequences<'_> {
    /// The sequence of every h, and each vector of the last state: `first` is that of a sequence, `step` that after a row of the
    /// gates.
    pub fn outputs<const N: usize>(
        &self,
        first: impl Fn(usize) -> State<N>,
        step: impl Fn(usize, &State<N>) -> State<N>,
        rows: Rows,
    ) -> Vec<HostTensor> {
        let &[batch, steps, _] = self.gates.shape() else { unreachable!("the graph accepted rank 3") };
        let runs: Vec<_> = (0..batch).map(|batch| self.run(batch, steps, first(batch), &step)).collect();
        let row = |row: usize, out: &mut [f64]| out.copy_from_slice(&runs[row / steps].0[row % steps]);
        let sequence = rows.compute(&[batch, steps, self.hidden], row);
        let last = (0..N)
            .map(|vector| rows.compute(&[batch, self.hidden], |row, out| out.copy_from_slice(&runs[row].1[vector])));
        std::iter::once(sequence).chain(last).collect()
    }

    /// A row for each step, and the last state.
    fn run<const N: usize>(
        &self,
        batch: usize,
        steps: usize,
        mut state: State<N>,
        step: impl Fn(usize, &State<N>) -> State<N>,
    ) -> (Vec<Vec<f64>>, State<N>) {
        let mut sequence = vec![vec![0.0; self.hidden]; steps];
        let mut last = vec![0.0; self.hidden];
        let length = self.lengths.as_ref().map_or(steps, |lengths| (lengths[batch] as usize).min(steps));
        let mut order: Vec<usize> = (0..length).collect();
        if self.direction == Direction::Backward {
            order.reverse();
        }
        for at in order {
            let row = batch * steps + at;
            if self.mask.as_ref().is_none_or(|mask| mask[row] != 0.0) {
                state = step(row, &state);
                last.clone_from(&state[0]);
                sequence[at].clone_from(&state[0]);
            } else if self.masked == MaskedOutput::Repeat {
                sequence[at].clone_from(&last);
            }
        }
        (sequence, state)
    }
}

/// σ.
pub(super) fn bend(gate: Gate, x: f64) -> f64 {
    match gate {
        Gate::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Gate::HardSigmoid => (0.2 * x + 0.5).clamp(0.0, 1.0),
    }
}
