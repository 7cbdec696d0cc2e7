//! The recurrence of a GRU over steps whose input has been projected.
//!
//! All sequences take a step together, as in `lstm`; the candidate's product comes after the gates', which may scale
//! its input.

use super::args::{Elements, ElementsMut};
use super::recurrence::{Gate, Steps, bend, carried, widened};
use super::tanh::tanh;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Fewest units worth a task of their own.
const MIN_UNITS: usize = 1 << 12;

/// What the reset gate scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Reset {
    /// The state's product with the candidate's weights: torch, Keras with `reset_after`, ONNX with
    /// `linear_before_reset`.
    #[default]
    AfterProduct,
    /// The state itself: the first definition (Cho et al., arXiv:1406.1078v1), and ONNX by default.
    BeforeProduct,
}

/// A recurrence and its tensors. Gates are in the order update, reset, candidate.
#[derive(Debug, Clone, Copy)]
pub struct GruArgs<'a> {
    /// Sequences and units.
    pub sizes: [usize; 2],
    /// Which steps take place.
    pub steps: Steps<'a>,
    /// Bends the gates.
    pub gate: Gate,
    /// What the reset gate scales.
    pub reset: Reset,
    /// `[batch, steps, 3 · hidden]`.
    pub gates: Elements<'a>,
    /// `[hidden, 3 · hidden]`.
    pub recurrent: Elements<'a>,
    /// First h, `[batch, hidden]`.
    pub state: Option<Elements<'a>>,
    /// `[hidden]`, added to the candidate's product before the reset gate scales it.
    pub candidate_bias: Option<Elements<'a>>,
}

/// What the steps share.
struct Weights {
    /// `[hidden, 2 · hidden]`.
    gates: Vec<f32>,
    /// `[hidden, hidden]`.
    candidate: Vec<f32>,
    bias: Vec<f32>,
}

/// What the sequences carry from step to step, and room for a step.
struct State {
    h: Vec<f32>,
    /// `h · R` of both gates, then the gates.
    gates: Vec<f32>,
    /// `r · h`.
    scaled: Vec<f32>,
    /// The candidate's product.
    candidate: Vec<f32>,
    /// Sequences that have computed a step.
    begun: Vec<bool>,
}

/// Computes `args` into the sequence `[batch, steps, hidden]` and the last h `[batch, hidden]`.
pub fn gru(args: &GruArgs, mut sequence: ElementsMut, mut last_h: ElementsMut) {
    let [batch, hidden] = args.sizes;
    if batch * hidden == 0 {
        return;
    }
    let recurrent = widened(args.recurrent);
    let columns = |first: usize, count: usize| -> Vec<f32> {
        recurrent.chunks_exact(3 * hidden).flat_map(|row| row[first..][..count].iter().copied()).collect()
    };
    let weights = Weights {
        gates: columns(0, 2 * hidden),
        candidate: columns(2 * hidden, hidden),
        bias: args.candidate_bias.map_or_else(|| vec![0.0; hidden], widened),
    };
    let zeros = || vec![0.0; batch * hidden];
    let h = args.state.map_or_else(zeros, widened);
    let gates = vec![0.0; 2 * batch * hidden];
    let mut state = State { h, gates, scaled: zeros(), candidate: zeros(), begun: vec![false; batch] };
    sequence.clear();
    for count in 0..args.steps.count {
        take_step(args, &weights, count, &mut state);
        args.steps.put_out(count, &state.h, &state.begun, &mut sequence);
    }
    last_h.write(0, &state.h);
}

/// One step of every sequence that has it.
fn take_step(args: &GruArgs, weights: &Weights, count: usize, state: &mut State) {
    let [batch, hidden] = args.sizes;
    let State { h, gates, scaled, candidate, begun } = state;
    let min = MIN_UNITS.div_ceil(hidden);
    let row = |index: usize| {
        let step = args.steps.computed(index, count)?;
        Some(Row { gates: args.gates, first: (index * args.steps.count + step) * 3 * hidden })
    };
    carried(h, Elements::F32(&weights.gates), [batch, hidden, 2 * hidden], gates);
    let units = gates.par_chunks_exact_mut(2 * hidden).zip(h.par_chunks_exact(hidden));
    let units = units.zip(scaled.par_chunks_exact_mut(hidden)).enumerate().with_min_len(min);
    units.for_each(|(index, ((gates, h), scaled))| {
        if let Some(row) = row(index) {
            Arch::new().dispatch(Gates { row, gate: args.gate, gates, h, scaled });
        }
    });
    let factor = if args.reset == Reset::AfterProduct { &*h } else { &*scaled };
    carried(factor, Elements::F32(&weights.candidate), [batch, hidden, hidden], candidate);
    let units = h.par_chunks_exact_mut(hidden).zip(gates.par_chunks_exact(2 * hidden));
    let units = units.zip(candidate.par_chunks_exact_mut(hidden)).zip(begun).enumerate().with_min_len(min);
    units.for_each(|(index, (((h, gates), candidate), begun))| {
        if let Some(row) = row(index) {
            *begun = true;
            if args.reset == Reset::AfterProduct {
                let reset = gates[hidden..].iter().zip(&weights.bias);
                candidate.iter_mut().zip(reset).for_each(|(sum, (r, bias))| *sum = r * (*sum + bias));
            }
            Arch::new().dispatch(Mix { row, update: &gates[..hidden], candidate, h });
        }
    });
}

/// The projected input of one step.
#[derive(Clone, Copy)]
struct Row<'a> {
    gates: Elements<'a>,
    first: usize,
}

impl Row<'_> {
    /// A vector from `at` on, of which `count` lanes are read.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, at: usize, count: usize) -> S::f32s {
        let mut vector = simd.splat_f32s(0.0);
        let lanes: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut vector));
        self.gates.read(self.first + at, &mut lanes[..count]);
        vector
    }
}

/// Both gates of one sequence, and the state scaled by the second.
struct Gates<'a> {
    row: Row<'a>,
    gate: Gate,
    gates: &'a mut [f32],
    h: &'a [f32],
    scaled: &'a mut [f32],
}

impl WithSimd for Gates<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for first in (0..self.gates.len()).step_by(S::F32_LANES) {
            let count = S::F32_LANES.min(self.gates.len() - first);
            let carried = simd.partial_load_f32s(&self.gates[first..][..count]);
            let sum = simd.add_f32s(self.row.load(simd, first, count), carried);
            simd.partial_store_f32s(&mut self.gates[first..][..count], bend(simd, self.gate, sum));
        }
        let reset = &self.gates[self.h.len()..];
        for ((scaled, r), h) in self.scaled.iter_mut().zip(reset).zip(self.h) {
            *scaled = r * h;
        }
    }
}

/// The new state of one sequence.
struct Mix<'a> {
    row: Row<'a>,
    update: &'a [f32],
    candidate: &'a [f32],
    h: &'a mut [f32],
}

impl WithSimd for Mix<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let hidden = self.h.len();
        for first in (0..hidden).step_by(S::F32_LANES) {
            let count = S::F32_LANES.min(hidden - first);
            let part = |data: &[f32]| simd.partial_load_f32s(&data[first..][..count]);
            let (z, h, carried) = (part(self.update), part(self.h), part(self.candidate));
            let n = tanh(simd, simd.add_f32s(self.row.load(simd, 2 * hidden + first, count), carried));
            // n + z · (h − n)
            let mixed = simd.mul_add_e_f32s(z, simd.sub_f32s(h, n), n);
            simd.partial_store_f32s(&mut self.h[first..][..count], mixed);
        }
    }
}
