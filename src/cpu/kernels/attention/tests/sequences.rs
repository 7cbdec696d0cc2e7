//! Sequences of several lengths: packed, in a cache, in pages.

use super::problem::{Problem, archs, shape};
use super::random::Random;
use crate::cpu::kernels::args::{AttentionArgs, Elements, Operand, Share};
use crate::cpu::kernels::attention::cut::into_blocks;
use crate::cpu::kernels::sequence::sequences;
use crate::mask::Bound;
use pulp::Arch;

/// Queries of each sequence in each job on so many threads, and the parts of its keys.
fn cut(problem: &Problem, threads: usize) -> Vec<(usize, usize, usize)> {
    let none = Elements::F32(&[]);
    let operand = Operand { data: none, strides: [0; 3], pages: None };
    let (shape, masking) = (problem.shape, problem.masking(none));
    let share = Share::WHOLE;
    let args = AttentionArgs { shape, scale: 1.0, q: operand, k: operand, v: operand, masking, sinks: None, share };
    let sequences = sequences(&masking, shape.batch, [shape.seq_q, shape.seq_kv]).collect::<Vec<_>>();
    let mut blocks = Vec::new();
    into_blocks(&args, &sequences, threads, &mut blocks);
    let mut cut: Vec<_> = blocks.iter().map(|block| (block.sequence, block.rows, block.parts)).collect();
    cut.sort_unstable();
    cut
}

#[test]
fn jobs_follow_the_lengths() {
    // Three tokens in a cache, and a prompt: one query of two heads each, 1000 queries in jobs of tiles.
    let mut problem = Problem::new(&mut Random(31), shape([4, 2, 1], [1003, 2048], [1, 1]));
    problem.q_starts = Some(vec![0, 1, 2, 1002, 1003]);
    problem.lengths = Some(vec![10, 0, 1000, 2000]);
    let cut = cut(&problem, 4);
    assert_eq!([cut[0], cut[1], cut[cut.len() - 1]], [(0, 2, 1), (1, 2, 1), (3, 2, 1)]);
    assert!(cut[2..cut.len() - 1].iter().all(|&(sequence, rows, _)| sequence == 2 && rows <= 144), "{cut:?}");
}

#[test]
fn long_sequences_of_a_decoding_step_are_split() {
    let mut problem = Problem::new(&mut Random(32), shape([3, 1, 1], [3, 9000], [1, 1]));
    problem.q_starts = Some(vec![0, 1, 2, 3]);
    problem.lengths = Some(vec![10, 100, 9000]);
    assert_eq!(cut(&problem, 4), [(0, 1, 1), (1, 1, 1), (2, 1, 4)]);
    assert_eq!(cut(&problem, 2), [(0, 1, 1), (1, 1, 1), (2, 1, 2)]);
    problem.lengths = None;
    assert_eq!(cut(&problem, 3), [(0, 1, 1), (1, 1, 1), (2, 1, 1)]);
}

#[test]
fn missing_queries_cost_nothing() {
    let mut problem = Problem::new(&mut Random(33), shape([3, 2, 2], [40, 5], [1, 1]));
    problem.q_lengths = Some(vec![0, 3, 0]);
    assert_eq!(cut(&problem, 2), [(1, 3, 1), (1, 3, 1)]);
    problem.q_lengths = None;
    problem.q_starts = Some(vec![7, 7, 7, 7]);
    assert_eq!(cut(&problem, 2), []);
    for arch in archs() {
        let mut packed = problem.clone();
        packed.q.truncate(2 * 40);
        packed.sinks = Some(vec![1.0, 2.0]);
        packed.check(arch);
    }
}

#[test]
fn a_packed_batch_is_its_sequences() {
    for arch in archs() {
        let mut random = Random(34);
        let lengths = [(17, 17), (1, 300), (0, 4), (130, 131)];
        let [queries, keys] = [148, 452];
        let mut packed = Problem::new(&mut random, shape([4, 4, 2], [queries, keys], [16, 24]));
        packed.q.truncate(4 * queries * 16);
        packed.k.truncate(2 * keys * 16);
        packed.v.truncate(2 * keys * 24);
        let starts = |of: [u32; 4]| [0, of[0], of[0] + of[1], of[0] + of[1] + of[2], of.iter().sum()].to_vec();
        packed.q_starts = Some(starts(lengths.map(|(queries, _)| queries)));
        packed.kv_starts = Some(starts(lengths.map(|(_, keys)| keys)));
        packed.bounds.upper = Some(Bound { at: 0, follows: true });
        packed.check(arch);
        let whole = packed.run(arch);
        // The prompt at the end by itself.
        let mut alone = Problem::new(&mut random, shape([1, 4, 2], [130, 131], [16, 24]));
        let take = |from: &[f32], heads: usize, rows: usize, count: usize, width: usize| -> Vec<f32> {
            let head = |h: usize| from[((h + 1) * rows - count) * width..][..count * width].iter().copied();
            (0..heads).flat_map(head).collect()
        };
        alone.q = take(&packed.q, 4, queries, 130, 16);
        alone.k = take(&packed.k, 2, keys, 131, 16);
        alone.v = take(&packed.v, 2, keys, 131, 24);
        alone.bounds = packed.bounds;
        let alone = alone.run(arch);
        assert_eq!(alone.out, take(&whole.out, 4, queries, 130, 24));
        assert_eq!(alone.log_sums, take(&whole.log_sums, 4, queries, 130, 1));
    }
}

#[test]
fn wild_starts_are_harmless() {
    let mut random = Random(35);
    for _ in 0..300 {
        let mut problem = Problem::new(&mut random, shape([3, 2, 1], [20, 30], [4, 4]));
        let mut starts =
            |rows: usize| Some((0..4).map(|_| random.pick(&[0, 5, rows - 1, rows, 1 << 31]) as u32).collect());
        (problem.q_starts, problem.kv_starts) = (starts(20), starts(30));
        problem.q.truncate(2 * 20 * 4);
        problem.k.truncate(30 * 4);
        problem.v.truncate(30 * 4);
        problem.bounds.upper = Some(Bound { at: 3, follows: true });
        let answer = problem.run(Arch::new());
        assert!(answer.out.iter().all(|x| x.is_finite()));
    }
}
