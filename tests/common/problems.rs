//! The table of attention problems: sizes, masks of every kind, lengths, packed sequences.

use regard::{Attention, Causal, Dtype, Fill, Window};

use super::problem::{Pages, Problem, problem};

/// All stored in f32; callers store those whose deviation is 1 otherwise too.
pub fn problems() -> Vec<Problem> {
    let plain = Attention::default();
    let causal = |alignment| Attention { causal: Some(alignment), ..plain };
    let window = |left, right, causal| Attention { window: Some(Window { left, right, align: None }), causal, ..plain };
    let assigned = |options| Attention { fill: Fill::Assign(-1e9), ..options };
    let mut problems = vec![
        problem("self", [2, 3, 3, 33, 33, 40, 40], plain),
        problem("cross", [2, 2, 2, 7, 65, 16, 16], plain),
        problem("grouped heads", [2, 6, 2, 19, 33, 24, 24], plain),
        problem("one key head", [1, 8, 1, 5, 37, 16, 20], causal(Causal::BottomRight)),
        problem("one query", [2, 4, 2, 1, 129, 64, 64], plain),
        problem("one key", [1, 2, 2, 9, 1, 8, 8], plain),
        problem("causal top-left, more keys", [1, 2, 2, 31, 67, 16, 16], causal(Causal::TopLeft)),
        problem("causal top-left, more queries", [1, 2, 2, 67, 31, 16, 16], causal(Causal::TopLeft)),
        problem("causal bottom-right, more keys", [1, 2, 1, 31, 67, 16, 16], causal(Causal::BottomRight)),
        problem("causal bottom-right, more queries", [1, 2, 1, 67, 31, 16, 16], causal(Causal::BottomRight)),
        problem("causal assigned", [1, 2, 1, 67, 31, 16, 16], assigned(causal(Causal::BottomRight))),
        problem("window on both sides", [1, 2, 2, 65, 65, 16, 16], window(Some(5), Some(3), None)),
        problem("window of one key", [1, 1, 1, 33, 33, 16, 16], window(Some(0), Some(0), None)),
        problem("causal window", [1, 2, 2, 65, 97, 16, 16], window(Some(7), None, Some(Causal::BottomRight))),
        problem("window that no query is in", [1, 1, 1, 40, 9, 8, 8], window(Some(2), Some(2), Some(Causal::TopLeft))),
        problem("window assigned", [1, 2, 2, 40, 70, 8, 8], assigned(window(Some(2), Some(9), None))),
        problem("scale of its own", [1, 2, 2, 17, 17, 16, 16], Attention { scale: Some(-0.75), ..plain }),
        problem("scale of zero", [1, 2, 2, 17, 17, 16, 16], Attention { scale: Some(0.0), ..plain }),
        problem("wide heads", [1, 2, 1, 9, 17, 520, 530], causal(Causal::TopLeft)),
        problem("no batch", [0, 2, 2, 3, 3, 8, 8], plain),
        problem("no query", [1, 2, 2, 0, 3, 8, 8], plain),
        problem("no key", [2, 2, 2, 3, 0, 8, 8], plain),
        problem("no head dimension", [1, 2, 2, 3, 5, 0, 8], plain),
        problem("no value dimension", [1, 2, 2, 3, 5, 8, 0], plain),
    ];
    for (head_dim, head_dim_v) in
        [(1, 1), (2, 3), (32, 32), (64, 64), (80, 12), (65, 129), (128, 128), (256, 256), (512, 257)]
    {
        let name = format!("head_dim {head_dim} and {head_dim_v}");
        problems.push(problem(&name, [1, 2, 2, 21, 35, head_dim, head_dim_v], causal(Causal::TopLeft)));
    }
    problems.extend(masked());
    problems.extend(sequences());
    for rank in [2, 3] {
        let mut lower = problem(&format!("rank {rank}"), [1, 1, 1, 21, 35, 16, 12], causal(Causal::BottomRight));
        for shape in [&mut lower.q, &mut lower.k, &mut lower.v] {
            shape.drain(..4 - rank);
        }
        problems.push(lower);
    }
    problems.push(Problem { deviation: 30.0, ..problem("scores of thousands", [1, 2, 1, 33, 33, 64, 64], plain) });
    problems
}

/// Boolean and additive masks, each way of broadcasting, alone and together.
fn masked() -> Vec<Problem> {
    let sizes = [2, 4, 2, 35, 41, 16, 16];
    let plain = Attention::default();
    let boolean =
        |name: &str, shape: &[usize], options| Problem { mask: Some(shape.to_vec()), ..problem(name, sizes, options) };
    let additive = |name: &str, dtype, shape: &[usize]| Problem {
        bias: Some((dtype, shape.to_vec())),
        ..problem(name, sizes, plain)
    };
    let lengths = |name: &str, lengths: [u32; 2], options| Problem {
        kv_lengths: Some(lengths.to_vec()),
        ..problem(name, sizes, options)
    };
    let causal = Attention {
        causal: Some(Causal::TopLeft),
        window: Some(Window { left: Some(20), ..Window::default() }),
        ..plain
    };
    vec![
        boolean("boolean", &[2, 4, 35, 41], plain),
        boolean("boolean for all heads", &[2, 1, 35, 41], plain),
        boolean("boolean per key", &[2, 1, 1, 41], plain),
        boolean("boolean per query", &[35, 1], plain),
        boolean("boolean assigned", &[4, 35, 41], Attention { fill: Fill::Assign(-1e9), ..plain }),
        additive("additive", Dtype::F32, &[2, 4, 35, 41]),
        additive("additive of rank 2", Dtype::F32, &[35, 41]),
        additive("additive f16 per head", Dtype::F16, &[4, 1, 41]),
        boolean("boolean, shorter than the keys", &[35, 20], plain),
        additive("additive, shorter than the keys", Dtype::F32, &[4, 35, 20]),
        problem("softcap", sizes, Attention { softcap: Some(0.5), ..plain }),
        lengths("lengths", [17, 99], plain),
        lengths("lengths of zero and one", [0, 1], plain),
        lengths("lengths, causal bottom-right", [17, 40], Attention { causal: Some(Causal::BottomRight), ..plain }),
        lengths("lengths, causal top-left", [17, 40], Attention { causal: Some(Causal::TopLeft), ..plain }),
        lengths("lengths assigned", [17, 40], Attention { fill: Fill::Assign(-1e9), ..causal }),
        Problem {
            bias: Some((Dtype::F32, vec![4, 35, 41])),
            kv_lengths: Some(vec![39, 22]),
            ..boolean("everything at once", &[2, 1, 1, 41], Attention { softcap: Some(3.0), ..causal })
        },
    ]
}

/// Slopes, sinks, query lengths and packed sequences.
fn sequences() -> Vec<Problem> {
    let sizes = [2, 4, 2, 35, 41, 16, 16];
    let packed_sizes = [1, 4, 2, 67, 70, 16, 16];
    let plain = Attention::default();
    let causal = |alignment| Attention { causal: Some(alignment), ..plain };
    let lse = |problem: Problem| Problem { lse: true, ..problem };
    let sinks = Some(vec![0.5, f32::NEG_INFINITY, 3.0, -2.0]);
    let packed = |name: &str, options| Problem {
        q_starts: Some(vec![0, 33, 33, 40, 65]),
        kv_starts: Some(vec![0, 7, 20, 20, 70]),
        ..problem(name, packed_sizes, options)
    };
    let served = |name: &str, options| {
        let mut problem =
            Problem { q_starts: Some(vec![1, 33, 33, 40]), ..problem(name, [3, 4, 2, 41, 50, 16, 16], options) };
        problem.q[0] = 1;
        problem
    };
    let window = Window { left: Some(9), right: Some(4), align: Some(Causal::TopLeft) };
    let pages = Pages { size: 10, count: 9, table: vec![4, 0, 8, 2, 6, 1, 3] };
    vec![
        lse(problem("log-sum-exp", sizes, causal(Causal::BottomRight))),
        lse(Problem { sinks: sinks.clone(), ..problem("sinks", sizes, causal(Causal::TopLeft)) }),
        Problem { slopes: Some(vec![4]), ..problem("slopes", sizes, plain) },
        Problem { slopes: Some(vec![2, 4]), ..problem("slopes per sequence, causal", sizes, causal(Causal::TopLeft)) },
        problem("window from the top left", sizes, Attention { window: Some(window), ..plain }),
        lse(Problem { q_lengths: Some(vec![33, 0]), ..problem("query lengths", sizes, plain) }),
        lse(Problem {
            q_lengths: Some(vec![5, 99]),
            kv_lengths: Some(vec![17, 40]),
            sinks,
            ..problem(
                "both lengths, sinks, assigned",
                sizes,
                Attention { fill: Fill::Assign(-1e9), ..causal(Causal::BottomRight) },
            )
        }),
        lse(packed("packed", plain)),
        packed("packed, causal bottom-right", causal(Causal::BottomRight)),
        // The second sequence's keys begin within a page.
        Problem { pages: Some(pages), ..packed("packed, pages", causal(Causal::BottomRight)) },
        Problem {
            mask: Some(vec![67, 70]),
            bias: Some((Dtype::F32, vec![4, 1, 70])),
            slopes: Some(vec![4, 4]),
            ..packed("packed, everything", Attention { softcap: Some(3.0), ..causal(Causal::TopLeft) })
        },
        served("packed queries", plain),
        Problem {
            kv_lengths: Some(vec![7, 50, 44]),
            slopes: Some(vec![4]),
            ..served("packed queries, lengths, causal", causal(Causal::BottomRight))
        },
    ]
}
