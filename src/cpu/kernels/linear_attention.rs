//! Attention without softmax, position by position over a state.

use super::args::{Elements, ElementsMut};
use pulp::Arch;
use rayon::prelude::*;

/// Sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    /// Independent sequences.
    pub batch: usize,
    /// Positions.
    pub seq: usize,
    /// Key heads, each with a state.
    pub kv_heads: usize,
    /// Query heads of each.
    pub group: usize,
    /// Elements of a query and of a key.
    pub head_dim: usize,
    /// Elements of a value.
    pub head_dim_v: usize,
}

/// One problem; heads of a position lie one after another.
#[derive(Debug, Clone, Copy)]
pub struct LinearAttentionArgs<'a> {
    /// Sizes.
    pub shape: LinearShape,
    /// Factor on the result.
    pub scale: f32,
    /// `[batch, seq, kv_heads × group × head_dim]`.
    pub q: Elements<'a>,
    /// `[batch, seq, kv_heads × head_dim]`.
    pub k: Elements<'a>,
    /// `[batch, seq, kv_heads × head_dim_v]`.
    pub v: Elements<'a>,
    /// `[batch, kv_heads, head_dim, head_dim_v]`; zeros where there is none.
    pub past: Option<Elements<'a>>,
    /// Logarithm of what the state is multiplied by, `[batch, seq, kv_heads]` or `[batch, seq, kv_heads × head_dim]`.
    pub decay: Option<Elements<'a>>,
    /// A value is first freed of what the state recalls, and then multiplied by this: `[batch, seq, kv_heads]` or `[batch, seq, 1]`.
    pub beta: Option<Elements<'a>>,
}

/// Writes the results, laid out as `q` with `head_dim_v`, and the state after the last position.
pub fn linear_attention(args: &LinearAttentionArgs, y: &mut ElementsMut, present: &mut ElementsMut) {
    let LinearShape { batch, seq, kv_heads, group, head_dim, head_dim_v } = args.shape;
    let arch = Arch::new();
    let walks = (0..batch * kv_heads).into_par_iter();
    let results: Vec<_> = walks.map(|index| arch.dispatch(|| walk(args, index))).collect();
    let width = group * head_dim_v;
    for (index, (out, state)) in results.into_iter().enumerate() {
        present.write(index * head_dim * head_dim_v, &state);
        for t in 0..seq {
            let row = (index / kv_heads * seq + t) * kv_heads + index % kv_heads;
            y.write(row * width, &out[t * width..(t + 1) * width]);
        }
    }
}

/// Results and last state of one batch element and key head.
#[inline(always)]
fn walk(args: &LinearAttentionArgs, index: usize) -> (Vec<f32>, Vec<f32>) {
    let LinearShape { seq, kv_heads, group, head_dim, head_dim_v, .. } = args.shape;
    let mut state = vec![0.0; head_dim * head_dim_v];
    if let Some(past) = &args.past {
        past.read(index * state.len(), &mut state);
    }
    let mut out = vec![0.0; seq * group * head_dim_v];
    let (mut key, mut query, mut factors) = (vec![0.0; head_dim], vec![0.0; head_dim], vec![1.0; head_dim]);
    let (mut value, mut recalled) = (vec![0.0; head_dim_v], vec![0.0; head_dim_v]);
    for t in 0..seq {
        let row = (index / kv_heads * seq + t) * kv_heads + index % kv_heads;
        args.k.read(row * head_dim, &mut key);
        args.v.read(row * head_dim_v, &mut value);
        if args.decay.is_some() {
            decay(args, row, &mut factors);
        }
        recalled.fill(0.0);
        for (d, state) in state.chunks_exact_mut(head_dim_v.max(1)).enumerate() {
            for (state, recalled) in state.iter_mut().zip(&mut recalled) {
                *state *= factors[d];
                *recalled += *state * key[d];
            }
        }
        if let Some(beta) = &args.beta {
            let rate =
                if beta.len() == args.k.len() / head_dim.max(1) { beta.get(row) } else { beta.get(row / kv_heads) };
            value.iter_mut().zip(&recalled).for_each(|(value, recalled)| *value = rate * (*value - recalled));
        }
        for (d, state) in state.chunks_exact_mut(head_dim_v.max(1)).enumerate() {
            state.iter_mut().zip(&value).for_each(|(state, value)| *state += key[d] * value);
        }
        for h in 0..group {
            args.q.read((row * group + h) * head_dim, &mut query);
            let out = &mut out[(t * group + h) * head_dim_v..][..head_dim_v];
            for (d, state) in state.chunks_exact(head_dim_v.max(1)).enumerate() {
                out.iter_mut().zip(state).for_each(|(out, state)| *out += query[d] * state);
            }
            out.iter_mut().for_each(|out| *out *= args.scale);
        }
    }
    (out, state)
}

/// What each key row of the state is multiplied by.
fn decay(args: &LinearAttentionArgs, row: usize, factors: &mut [f32]) {
    let Some(decay) = &args.decay else { return };
    if decay.len() == args.k.len() {
        decay.read(row * factors.len(), factors);
    } else {
        factors.fill(decay.get(row));
    }
    factors.iter_mut().for_each(|factor| *factor = factor.exp());
}
