//! What recurrent layers share: gates, and which steps of a sequence take place.

use super::args::{Elements, ElementsMut};
use super::exp::clamp_low;
use super::matmul::{BatchOffsets, MatmulArgs, RightLayout, Zeros, matmul};
use super::tanh::tanh;
use pulp::Simd;

/// What bends gates into 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Gate {
    /// `1 / (1 + exp(−x))`.
    #[default]
    Sigmoid,
    /// `clip(0.2 x + 0.5, 0, 1)`, as Keras 2 has it.
    HardSigmoid,
}

/// Which step comes first. Row t of the output belongs to step t either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Direction {
    /// The first.
    #[default]
    Forward,
    /// The last, or the last within the length.
    Backward,
}

/// What a masked step, which keeps the state, puts out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MaskedOutput {
    /// Zeros: Keras under `Bidirectional`, or with `zero_output_for_mask`.
    #[default]
    Zeros,
    /// The last output before it, zeros where there is none: a plain Keras layer.
    Repeat,
}

/// Which steps of which sequences take place, and what the others put out.
#[derive(Debug, Clone, Copy)]
pub struct Steps<'a> {
    /// Steps of the longest sequence.
    pub count: usize,
    /// Which comes first.
    pub direction: Direction,
    /// What masked steps put out.
    pub masked: MaskedOutput,
    /// `[batch, count]`, zero for steps that are left out.
    pub mask: Option<&'a [u8]>,
    /// `[batch]`; more than all steps counts as all.
    pub lengths: Option<&'a [u32]>,
}

impl Steps<'_> {
    /// The step that a sequence takes as its `count`th, unless it is over.
    fn taken(&self, sequence: usize, count: usize) -> Option<usize> {
        let length = self.lengths.map_or(self.count, |lengths| (lengths[sequence] as usize).min(self.count));
        match self.direction {
            Direction::Forward => (count < length).then_some(count),
            Direction::Backward => (length - count.min(length)).checked_sub(1),
        }
    }

    /// The same, unless it is masked.
    pub fn computed(&self, sequence: usize, count: usize) -> Option<usize> {
        let kept = |step: &usize| self.mask.is_none_or(|mask| mask[sequence * self.count + step] != 0);
        self.taken(sequence, count).filter(kept)
    }

    /// Writes the rows of the `count`th step: the states `h`, where a sequence computes it, or repeats what it has
    /// begun.
    pub fn put_out(&self, count: usize, h: &[f32], begun: &[bool], out: &mut ElementsMut) {
        let hidden = h.len() / begun.len();
        for (sequence, (h, begun)) in h.chunks_exact(hidden).zip(begun).enumerate() {
            let repeats = self.masked == MaskedOutput::Repeat && *begun;
            let step = if repeats { self.taken(sequence, count) } else { self.computed(sequence, count) };
            if let Some(step) = step {
                out.write((sequence * self.count + step) * hidden, h);
            }
        }
    }
}

/// All elements, as f32.
pub fn widened(elements: Elements) -> Vec<f32> {
    let mut data = vec![0.0; elements.len()];
    elements.read(0, &mut data);
    data
}

/// The product of states `[m, k]` and weights `[k, n]`.
pub fn carried(states: &[f32], weights: Elements, [m, k, n]: [usize; 3], out: &mut [f32]) {
    let args = MatmulArgs {
        m,
        n,
        k,
        alpha: 1.0,
        a: Elements::F32(states),
        b: weights,
        layout: RightLayout::RowMajor,
        bias: None,
        batches: &[BatchOffsets { a: 0, b: 0 }],
        zeros: Zeros::Multiply,
        steps: &[],
        residual: None,
    };
    matmul(&args, ElementsMut::F32(out));
}

/// A gate; NaN gives NaN.
#[inline(always)]
pub fn bend<S: Simd>(simd: S, gate: Gate, x: S::f32s) -> S::f32s {
    let half = simd.splat_f32s(0.5);
    match gate {
        // σ(x) = tanh(x / 2) / 2 + 1 / 2
        Gate::Sigmoid => simd.mul_add_e_f32s(tanh(simd, simd.mul_f32s(x, half)), half, half),
        Gate::HardSigmoid => {
            let line = clamp_low(simd, simd.mul_add_e_f32s(x, simd.splat_f32s(0.2), half), simd.splat_f32s(0.0));
            simd.neg_f32s(clamp_low(simd, simd.neg_f32s(line), simd.splat_f32s(-1.0)))
        }
    }
}
