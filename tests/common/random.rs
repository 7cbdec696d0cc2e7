//! Attention problems over the whole option space. Head dimensions and dtypes come from small sets: each pair is a pipeline for
//! each combination of rules.

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use regard::{Attention, Causal, Device, Dtype, Fill, Window};

use crate::problem::{Problem, problem};

/// How queries and keys belong together.
#[derive(Debug, Clone)]
enum Sequences {
    Batched,
    /// Starts of queries and keys.
    Packed(Vec<u32>, Vec<u32>),
    /// Starts of queries; each sequence has a batch element of keys.
    BatchedKeys(Vec<u32>),
}

/// Small problems with any sizes, heads, masks, lengths and fills.
pub fn problems(device: &Device) -> impl Strategy<Value = Problem> + use<> {
    let f16 = device.capabilities().f16;
    let dtype = any::<bool>().prop_map(move |half| if half && f16 { Dtype::F16 } else { Dtype::F32 });
    let head_dims = prop_oneof![Just([8, 8]), Just([16, 12]), Just([33, 20])];
    let sizes = (0..=2usize, 1..=3usize, 1..=2usize, 0..=40usize, 0..=40usize);
    let softcap = prop::option::of(0.1..9.0f32);
    let tensors = (any::<[bool; 4]>(), any::<[bool; 8]>(), prop::collection::vec(0..44u32, 8));
    let drawn = ((sizes, head_dims, dtype), (band(), softcap), sequences(), tensors);
    drawn.prop_map(|((sizes, [head_dim, head_dim_v], dtype), (options, softcap), sequences, (axes, has, lengths))| {
        let (batch, group, kv_heads, seq_q, seq_kv) = sizes;
        let heads = group * kv_heads;
        let options = Attention { softcap, ..options };
        let batch = if matches!(sequences, Sequences::Batched) { batch } else { 1 };
        let sizes = [batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v];
        let scores = [batch, heads, seq_q, seq_kv];
        let shape: Vec<usize> = scores.iter().zip(axes).map(|(&size, whole)| if whole { size } else { 1 }).collect();
        let mut problem = Problem {
            dtype,
            mask: has[0].then(|| shape.clone()),
            bias: has[1].then(|| (Dtype::F32, shape[1..].to_vec())),
            sinks: has[2].then(|| [0.5, f32::NEG_INFINITY, 4.0].into_iter().cycle().take(heads).collect()),
            lse: has[3],
            ..problem("random", sizes, options)
        };
        let count = place(&mut problem, sequences, [has[4], has[5]], &lengths);
        problem.slopes = has[6].then(|| if has[7] { vec![heads] } else { vec![count, heads] });
        problem
    })
}

/// Adds starts and lengths; returns how many sequences there are.
fn place(problem: &mut Problem, sequences: Sequences, [kv, q]: [bool; 2], lengths: &[u32]) -> usize {
    let batch = problem.q[0];
    match sequences {
        Sequences::Batched => {
            problem.kv_lengths = kv.then(|| lengths[..batch].to_vec());
            problem.q_lengths = q.then(|| lengths[4..][..batch].to_vec());
            batch
        }
        Sequences::Packed(q_starts, kv_starts) => {
            let count = q_starts.len() - 1;
            problem.q_starts = Some(q_starts);
            problem.kv_starts = Some(kv_starts);
            count
        }
        Sequences::BatchedKeys(starts) => {
            let count = starts.len() - 1;
            problem.q_starts = Some(starts);
            problem.kv_lengths = kv.then(|| lengths[..count].to_vec());
            problem.k[0] = count;
            problem.v[0] = count;
            // No unfused path, and what asks for its steps or takes none but it.
            problem.sinks = None;
            problem.lse = false;
            count
        }
    }
}

/// Causality, window and fill.
fn band() -> impl Strategy<Value = Attention> {
    let past = (0..20u32).prop_map(Causal::Past);
    let alignment = || prop_oneof![Just(Causal::TopLeft), Just(Causal::BottomRight), past.clone()];
    let side = || prop::option::of(0..12i64);
    let window = (side(), side(), prop::option::of(alignment()));
    let fill = prop_oneof![Just(Fill::Exclude), Just(Fill::Assign(-1e9))];
    let drawn = (prop::option::of(alignment()), prop::option::of(window), fill);
    drawn.prop_map(|(causal, window, fill)| {
        let window = window.map(|(left, right, align)| Window { left, right, align: causal.or(align) });
        Attention { causal, window, fill, ..Attention::default() }
    })
}

/// Starts mostly do not decrease; they may begin behind the first row and end before or behind the last.
fn sequences() -> impl Strategy<Value = Sequences> {
    let starts = |most: usize| {
        (prop::collection::vec((0..44u32, 0..44u32), 1..=most), 0..4u8).prop_map(|(starts, wild)| {
            let (mut q, mut kv): (Vec<u32>, Vec<u32>) = starts.into_iter().unzip();
            if wild != 0 {
                q.sort_unstable();
                kv.sort_unstable();
            }
            (q, kv)
        })
    };
    prop_oneof![
        4 => Just(Sequences::Batched),
        2 => starts(5).prop_map(|(q, kv)| Sequences::Packed(q, kv)),
        1 => starts(4).prop_map(|(q, _)| Sequences::BatchedKeys(q)),
    ]
}
