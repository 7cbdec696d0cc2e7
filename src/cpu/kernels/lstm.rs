//! The recurrence of an LSTM over steps whose input has been projected.
//!
//! All sequences take a step together: one product of their states with the recurrent weights, which are read once, and
//! then the gates of every unit.

use super::args::{Elements, ElementsMut};
use super::recurrence::{Gate, Steps, bend, carried, widened};
use super::tanh::tanh;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Fewest units worth a task of their own.
const MIN_UNITS: usize = 1 << 12;

/// A recurrence and its tensors. Gates are in the order input, forget, candidate, output.
#[derive(Debug, Clone, Copy)]
pub struct LstmArgs<'a> {
    /// Sequences and units.
    pub sizes: [usize; 2],
    /// Which steps take place.
    pub steps: Steps<'a>,
    /// Bends the gates.
    pub gate: Gate,
    /// `[batch, steps, 4 · hidden]`.
    pub gates: Elements<'a>,
    /// `[hidden, 4 · hidden]`.
    pub recurrent: Elements<'a>,
    /// First h and c, `[2, batch, hidden]`.
    pub state: Option<Elements<'a>>,
    /// `[3 · hidden]`: input, forget and output gate.
    pub peepholes: Option<Elements<'a>>,
}

/// What the sequences carry from step to step.
struct State {
    h: Vec<f32>,
    c: Vec<f32>,
    /// `h · R`, then the gates.
    sums: Vec<f32>,
    /// Sequences that have computed a step.
    begun: Vec<bool>,
}

/// Computes `args` into the sequence `[batch, steps, hidden]` and the last h and c, `[batch, hidden]` each.
pub fn lstm(args: &LstmArgs, [mut sequence, mut last_h, mut last_c]: [ElementsMut; 3]) {
    let [batch, hidden] = args.sizes;
    if batch * hidden == 0 {
        return;
    }
    // Once, not at each step.
    let recurrent = match args.recurrent {
        Elements::F32(_) => Vec::new(),
        elements => widened(elements),
    };
    let recurrent = if recurrent.is_empty() { args.recurrent } else { Elements::F32(&recurrent) };
    let args = &LstmArgs { recurrent, ..*args };
    let peepholes = args.peepholes.map(widened);
    let mut h = args.state.map_or_else(|| vec![0.0; 2 * batch * hidden], widened);
    let c = h.split_off(batch * hidden);
    let mut state = State { h, c, sums: vec![0.0; 4 * batch * hidden], begun: vec![false; batch] };
    sequence.clear();
    for count in 0..args.steps.count {
        take_step(args, peepholes.as_deref(), count, &mut state);
        args.steps.put_out(count, &state.h, &state.begun, &mut sequence);
    }
    last_h.write(0, &state.h);
    last_c.write(0, &state.c);
}

/// One step of every sequence that has it.
fn take_step(args: &LstmArgs, peepholes: Option<&[f32]>, count: usize, state: &mut State) {
    let [batch, hidden] = args.sizes;
    let State { h, c, sums, begun } = state;
    carried(h, args.recurrent, [batch, hidden, 4 * hidden], sums);
    let sums = sums.par_chunks_exact_mut(4 * hidden);
    let units = h.par_chunks_exact_mut(hidden).zip(c.par_chunks_exact_mut(hidden)).zip(sums).zip(begun);
    units.enumerate().with_min_len(MIN_UNITS.div_ceil(hidden)).for_each(|(index, (((h, c), sums), begun))| {
        if let Some(step) = args.steps.computed(index, count) {
            *begun = true;
            let row = Row { gates: args.gates, first: (index * args.steps.count + step) * 4 * hidden };
            Arch::new().dispatch(Cells { row, gate: args.gate, sums, peepholes, h, c });
        }
    });
}

/// The projected input of one step.
struct Row<'a> {
    gates: Elements<'a>,
    first: usize,
}

/// The units of one sequence at one step.
struct Cells<'a> {
    row: Row<'a>,
    gate: Gate,
    sums: &'a mut [f32],
    peepholes: Option<&'a [f32]>,
    h: &'a mut [f32],
    c: &'a mut [f32],
}

impl WithSimd for Cells<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { row, gate, sums, peepholes, h, c } = self;
        let hidden = h.len();
        for first in (0..hidden).step_by(S::F32_LANES) {
            let count = S::F32_LANES.min(hidden - first);
            let mut inputs = [simd.splat_f32s(0.0); 4];
            for (index, input) in inputs.iter_mut().enumerate() {
                let at = index * hidden + first;
                let mut projected = simd.splat_f32s(0.0);
                let lanes: &mut [f32] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut projected));
                row.gates.read(row.first + at, &mut lanes[..count]);
                *input = simd.add_f32s(projected, simd.partial_load_f32s(&sums[at..][..count]));
            }
            let peephole = |index: usize| match peepholes {
                Some(peepholes) => simd.partial_load_f32s(&peepholes[index * hidden + first..][..count]),
                None => simd.splat_f32s(0.0),
            };
            let cell = simd.partial_load_f32s(&c[first..][..count]);
            let peepholes = [peephole(0), peephole(1), peephole(2)];
            let (new_h, new_c) = unit(simd, gate, inputs, peepholes, cell);
            simd.partial_store_f32s(&mut h[first..][..count], new_h);
            simd.partial_store_f32s(&mut c[first..][..count], new_c);
        }
    }
}

/// New h and c of a vector of units.
#[inline(always)]
fn unit<S: Simd>(simd: S, gate: Gate, inputs: [S::f32s; 4], peepholes: [S::f32s; 3], c: S::f32s) -> (S::f32s, S::f32s) {
    let i = bend(simd, gate, simd.mul_add_e_f32s(peepholes[0], c, inputs[0]));
    let f = bend(simd, gate, simd.mul_add_e_f32s(peepholes[1], c, inputs[1]));
    let g = tanh(simd, inputs[2]);
    let c = simd.mul_add_e_f32s(f, c, simd.mul_f32s(i, g));
    let o = bend(simd, gate, simd.mul_add_e_f32s(peepholes[2], c, inputs[3]));
    (simd.mul_f32s(o, tanh(simd, c)), c)
}
