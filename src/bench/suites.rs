//! The attention problems of each suite, as tables.

use super::problem::Problem;
use crate::attention::Strategy;
use crate::tensor::Dtype;

/// Short and long sequences, both head dimensions in use, causality, half storage, decoding, and one way that stores scores.
pub(super) fn quick() -> Vec<Problem> {
    let base = Problem::new(1, 8, 1024, 64);
    let decode = Problem { kv_heads: 8, seq_q: 1, ..Problem::new(8, 32, 4096, 128) };
    vec![
        Problem::new(8, 12, 128, 64),
        base,
        base.causal(),
        half(base),
        Problem { strategy: Strategy::Unfused, ..base },
        Problem { batch: 1, ..decode },
        decode,
        Problem::new(1, 4, 2048, 128).causal(),
        Problem::new(1, 4, 2048, 128),
    ]
}

/// The axes of FlashAttention's own benchmark: 16,384 tokens in all, heads of 2,048 in all, both storage types.
pub(super) fn fa() -> Vec<Problem> {
    const TOKENS: usize = 16_384;
    const WIDTH: usize = 2048;
    let mut problems = Vec::new();
    for seq in doublings(512, 16_384) {
        for head_dim in [64, 128, 256] {
            let problem = Problem::new(TOKENS / seq, WIDTH / head_dim, seq, head_dim);
            for problem in [problem, half(problem)] {
                problems.extend([problem.causal(), problem]);
            }
        }
    }
    problems
}

/// The axes of Triton's fused attention tutorial.
pub(super) fn triton() -> Vec<Problem> {
    let mut problems = Vec::new();
    for seq in doublings(1024, 16_384) {
        for head_dim in [64, 128] {
            let problem = half(Problem::new(4, 32, seq, head_dim));
            problems.extend([problem.causal(), problem]);
        }
    }
    problems
}

/// One query or four for each sequence. First come as many keys as every device binds in f32, 128 MiB, for one sequence; then
/// batches, and 1, 4 or 8 query heads on each key head.
pub(super) fn decode() -> Vec<Problem> {
    let step = Problem { kv_heads: 8, seq_q: 1, ..Problem::new(1, 32, 1024, 64) };
    let mut problems: Vec<_> = doublings(1024, 65_536).map(|seq_kv| Problem { seq_kv, ..step }).collect();
    problems.push(half(Problem { seq_kv: 131_072, ..step }));
    let wide = Problem { seq_kv: 8192, head_dim: 128, head_dim_v: 128, ..step };
    problems.extend([32, 8, 4].map(|kv_heads| Problem { kv_heads, ..wide }));
    problems.extend([4096, 32_768].map(|seq_kv| Problem { seq_q: 4, seq_kv, ..step }.causal()));
    problems.extend([(8, 1024), (8, 8192), (64, 1024)].map(|(batch, seq_kv)| Problem { batch, seq_kv, ..step }));
    problems.push(half(Problem { batch: 64, seq_kv: 2048, ..step }));
    problems
}

/// The catalogue of cubek-attention 0.3.1. Where it has a dense mask beside causality, there is causality alone.
pub(super) fn cubek() -> Vec<Problem> {
    let encoder_decoder = Problem { seq_q: 512, ..Problem::new(2, 16, 1024, 128) };
    let problems = [
        Problem::new(8, 12, 128, 64),
        encoder_decoder,
        Problem::new(4, 12, 1024, 64).causal(),
        Problem::new(1, 4, 4096, 64).causal(),
        Problem::new(1, 16, 4096, 128).causal(),
        Problem::new(4, 32, 2048, 128).causal(),
    ];
    problems.map(half).into()
}

/// all-MiniLM-L6-v2 on 32 sentences of 32 tokens, BERT-base on 8 of 512, GPT-2 on 1,024 tokens, Llama 3 8B on a prompt of 2,048 and
/// on one token after 8,192.
pub(super) fn models() -> Vec<Problem> {
    let llama = Problem { kv_heads: 8, ..Problem::new(1, 32, 2048, 128) };
    vec![
        Problem::new(32, 12, 32, 32),
        Problem::new(8, 12, 512, 64),
        Problem::new(1, 12, 1024, 64).causal(),
        llama.causal(),
        Problem { seq_q: 1, seq_kv: 8192, ..llama },
    ]
}

/// Each length fused, which stores no scores, beside unfused, whose scores grow with its square.
pub(super) fn memory() -> Vec<Problem> {
    let both =
        |seq| [Strategy::Fused, Strategy::Unfused].map(|strategy| Problem { strategy, ..Problem::new(1, 8, seq, 64) });
    doublings(256, 16_384).flat_map(both).collect()
}

fn half(problem: Problem) -> Problem {
    Problem { dtype: Dtype::F16, ..problem }
}

fn doublings(first: usize, last: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(first), |size| Some(2 * size)).take_while(move |&size| size <= last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_those_of_the_benchmarks() {
        let fa = fa();
        assert_eq!(fa.len(), 6 * 3 * 2 * 2);
        assert!(fa.iter().all(|problem| problem.batch * problem.seq_q == 16_384));
        assert!(fa.iter().all(|problem| problem.heads * problem.head_dim == 2048));
        assert_eq!(triton().len(), 5 * 2 * 2);
        assert!(decode().iter().all(|problem| matches!(problem.seq_q, 1 | 4)));
        for texts in ["b=8,h=12,s=128,d=64,dtype=f16", "b=2,h=16,sq=512,skv=1024,d=128,dtype=f16"] {
            assert!(cubek().iter().any(|problem| problem.to_string() == texts), "{texts}");
        }
    }

    #[test]
    fn no_problem_comes_twice() {
        for problems in [quick(), fa(), triton(), decode(), cubek(), models(), memory()] {
            let mut seen = std::collections::HashSet::new();
            assert!(problems.iter().all(|problem| seen.insert(*problem)), "{problems:?}");
        }
    }
}
