//! What a user can do wrong with slopes, sinks, lengths and packed sequences: more of the table in `tests/graph.rs`.

use regard::ops::{LogSumExp, LogSumExpRows, ScoreMasks, Softmax};
use regard::{Attention, Causal, Dtype, Graph, Strategy, Tensor, Window};

use crate::{BadGraph, Build, attends, one, tensor};

/// Attention of `[batch, 2, 5, 8]` over `[kv_batch, 2, 7, 8]` with options that name tensors of the graph.
fn rules([batch, kv_batch]: [usize; 2], options: fn(&mut Graph) -> Attention) -> Build {
    Box::new(move |graph| {
        let options = options(graph);
        let [q, k, v] =
            [[batch, 2, 5, 8], [kv_batch, 2, 7, 8], [kv_batch, 2, 7, 8]].map(|shape| tensor(graph, Dtype::F32, &shape));
        graph.attention(q, k, v, &options)
    })
}

fn u32s(graph: &mut Graph, len: usize) -> Option<Tensor> {
    Some(tensor(graph, Dtype::U32, &[len]))
}

fn f32s(graph: &mut Graph, shape: &[usize]) -> Option<Tensor> {
    Some(tensor(graph, Dtype::F32, shape))
}

/// The table.
pub fn bad_rules() -> Vec<BadGraph> {
    let window = Window { left: Some(3), right: None, align: Some(Causal::TopLeft) };
    vec![
        (
            "a window and causality that stand apart",
            attends(
                [&[1, 2, 5, 8]; 3],
                Attention { window: Some(window), causal: Some(Causal::BottomRight), ..Attention::default() },
            ),
            "attention: the window stands TopLeft and causality BottomRight",
        ),
        (
            "slopes of other heads",
            rules([3, 3], |graph| Attention { slopes: f32s(graph, &[3]), ..Attention::default() }),
            "attention: slopes are f32 [3], they must be f32 [2] or [3, 2]",
        ),
        (
            "slopes of another batch, unfused",
            rules([3, 3], |graph| Attention {
                slopes: f32s(graph, &[2, 2]),
                strategy: Strategy::Unfused,
                ..Attention::default()
            }),
            "attention: slopes are f32 [2, 2], they must be f32 [2] or [3, 2]",
        ),
        (
            "slopes of halves",
            rules([1, 1], |graph| Attention { slopes: Some(tensor(graph, Dtype::F16, &[2])), ..Attention::default() }),
            "attention: slopes are f16 [2], they must be f32 [2] or [1, 2]",
        ),
        (
            "sinks of other heads",
            rules([1, 1], |graph| Attention { sinks: f32s(graph, &[3]), ..Attention::default() }),
            "attention: sinks are f32 [3], they must be f32 [2]",
        ),
        (
            "query lengths of another batch",
            rules([1, 1], |graph| Attention { q_lengths: u32s(graph, 2), ..Attention::default() }),
            "attention: q_lengths is u32 [2], it must be u32 [1]",
        ),
        (
            "packed queries with lengths",
            rules([1, 1], |graph| Attention {
                q_lengths: u32s(graph, 1),
                q_starts: u32s(graph, 3),
                ..Attention::default()
            }),
            "attention: q_starts says how long packed sequences are, q_lengths cannot say it too",
        ),
        (
            "packed keys with lengths",
            rules([1, 1], |graph| Attention {
                q_starts: u32s(graph, 3),
                kv_starts: u32s(graph, 3),
                kv_lengths: u32s(graph, 2),
                ..Attention::default()
            }),
            "attention: kv_starts says how long packed sequences are, kv_lengths cannot say it too",
        ),
        (
            "packed keys only",
            rules([1, 1], |graph| Attention { kv_starts: u32s(graph, 3), ..Attention::default() }),
            "attention: kv_starts packs the keys, and q_starts does not say how queries are packed",
        ),
        (
            "packed queries and keys that do not match",
            rules([1, 1], |graph| Attention {
                q_starts: u32s(graph, 3),
                kv_starts: u32s(graph, 4),
                ..Attention::default()
            }),
            "attention: kv_starts is u32 [4], q_starts is u32 [3]",
        ),
        (
            "no starts",
            rules([1, 1], |graph| Attention { q_starts: u32s(graph, 0), ..Attention::default() }),
            "attention: q_starts is u32 [0], it must be u32 [sequences + 1]",
        ),
        (
            "starts of floats",
            rules([1, 1], |graph| Attention {
                q_starts: u32s(graph, 3),
                kv_starts: f32s(graph, &[3]),
                ..Attention::default()
            }),
            "attention: kv_starts is f32 [3], it must be u32 [sequences + 1]",
        ),
        (
            "packed queries in a batch",
            rules([2, 2], |graph| Attention { q_starts: u32s(graph, 3), ..Attention::default() }),
            "attention: q_starts divides a batch of 1, the query has batch 2",
        ),
        (
            "packed keys in a batch",
            rules([1, 2], |graph| Attention {
                q_starts: u32s(graph, 3),
                kv_starts: u32s(graph, 3),
                ..Attention::default()
            }),
            "attention: kv_starts divides a batch of 1, the key has batch 2",
        ),
        (
            "packed queries over too few keys",
            rules([1, 2], |graph| Attention { q_starts: u32s(graph, 4), ..Attention::default() }),
            "attention: key has batch 2, q_starts has 3 sequences",
        ),
        (
            "lengths of packed queries' keys",
            rules([1, 2], |graph| Attention {
                q_starts: u32s(graph, 3),
                kv_lengths: u32s(graph, 1),
                ..Attention::default()
            }),
            "attention: kv_lengths is u32 [1], it must be u32 [2]",
        ),
        (
            "scores of packed queries over batched keys",
            Box::new(|graph| {
                let q_starts = u32s(graph, 3);
                let scores = tensor(graph, Dtype::F32, &[1, 2, 5, 7]);
                graph.mask_scores(scores, &ScoreMasks { q_starts, ..ScoreMasks::default() })
            }),
            "mask_scores: q_starts has 2 sequences, and scores over keys of their own have batch 1",
        ),
        (
            "softmax with sinks of rank 2",
            one(Dtype::F32, &[4, 7], |graph, x| {
                let sinks = tensor(graph, Dtype::F32, &[4]);
                graph.softmax_with_sinks(x, 1.0, sinks)
            }),
            "softmax: sinks need scores [.., heads, seq_q, seq_kv], got f32 [4, 7]",
        ),
        (
            "softmax without its sinks",
            one(Dtype::F32, &[2, 4, 7], |graph, x| Ok(graph.add(Softmax { scale: 1.0, has_sinks: true }, &[x])?[0])),
            "softmax: takes two tensors, got 1",
        ),
        (
            "log_sum_exp of rank 1",
            one(Dtype::F32, &[7], |graph, x| graph.log_sum_exp(x, &LogSumExpRows::default())),
            "log_sum_exp: scores are f32 or f16 of rank 2 to 4, got f32 [7]",
        ),
        (
            "log_sum_exp without its sinks",
            one(Dtype::F32, &[2, 4, 7], |graph, x| {
                Ok(graph.add(LogSumExp { has_sinks: true, ..LogSumExp::default() }, &[x])?[0])
            }),
            "log_sum_exp: takes 2 tensors with these options, got 1",
        ),
        (
            "log_sum_exp of packed sequences in a batch",
            one(Dtype::F32, &[3, 2, 4, 7], |graph, x| {
                let q_starts = u32s(graph, 3);
                graph.log_sum_exp(x, &LogSumExpRows { q_starts, ..LogSumExpRows::default() })
            }),
            "log_sum_exp: q_starts divides a batch of 1, the query has batch 3",
        ),
    ]
}
