//! What a row may not see: lengths, windows, masks that cover only some keys.

use super::problem::{Problem, Random, archs, shape};
use super::with_random_masks;
use crate::cpu::kernels::args::{AttentionArgs, BandAnchor, Dense, Elements, Operand};
use crate::cpu::kernels::attention::job::span;
use crate::mask::Fill;
use pulp::Arch;

const FILLS: [Fill; 2] = [Fill::Exclude, Fill::Assign(0.5)];

#[test]
fn keys_that_do_not_exist_are_not_read() {
    for (seq_q, length) in [(1, 130), (1, 5), (40, 130), (40, 128), (40, 1)] {
        for (arch, fill) in archs().into_iter().flat_map(|arch| FILLS.map(|fill| (arch, fill))) {
            let mut problem = Problem::new(&mut Random(21), shape([1, 2, 1], [seq_q, 300], [8, 24]));
            problem.lengths = Some(vec![length as u32]);
            problem.fill = fill;
            // Reading one more row would panic.
            problem.k.truncate(length * 8);
            problem.v.truncate(length * 24);
            problem.check(arch);
            problem.bool_mask = Some(Dense { data: vec![0; length], strides: [0, 0, 0, 1], keys: length });
            problem.check(arch);
        }
    }
}

#[test]
fn nothing_beyond_the_length_reaches_the_output() {
    for (seq_q, bad) in [(1, f32::NAN), (3, f32::INFINITY), (50, f32::NAN)] {
        for (arch, fill) in archs().into_iter().flat_map(|arch| FILLS.map(|fill| (arch, fill))) {
            let mut problem = Problem::new(&mut Random(22), shape([2, 2, 2], [seq_q, 200], [8, 8]));
            problem.lengths = Some(vec![129, 70]);
            problem.fill = fill;
            for row in [129, 199, 329, 400 + 70, 600 + 199] {
                problem.k[row * 8 + 2] = bad;
                problem.v[row * 8 + 1] = bad;
            }
            problem.check(arch);
            problem.bias = Some(Dense { data: vec![bad; 200], strides: [0, 0, 0, 1], keys: 200 });
            problem.bias.as_mut().unwrap().data[..129].fill(0.25);
            problem.check(arch);
        }
    }
}

#[test]
fn an_assigned_row_is_uniform_over_the_keys_that_exist() {
    for seq_q in [1, 30] {
        let mut problem = Problem::new(&mut Random(23), shape([2, 1, 1], [seq_q, 40], [4, 1]));
        problem.v.fill(0.0);
        problem.v[7] = 1.0;
        problem.lengths = Some(vec![8, 0]);
        problem.upper = Some(-500);
        problem.fill = Fill::Assign(-1e9);
        let out = problem.run(Arch::new(), false);
        assert!(out[..seq_q].iter().all(|&x| (x - 0.125).abs() < 1e-6), "{out:?}");
        assert!(out[seq_q..].iter().all(|&x| x == 0.0), "{out:?}");
    }
}

#[test]
fn nan_below_the_band() {
    for (seq_q, bad) in [(1, f32::NAN), (8, f32::NAN), (100, f32::INFINITY)] {
        // Without an upper bound nothing but the left edge cuts the first blocks.
        for (arch, upper) in archs().into_iter().flat_map(|arch| [None, Some(260)].map(|upper| (arch, upper))) {
            let mut problem = Problem::new(&mut Random(24), shape([1, 1, 1], [seq_q, 400], [8, 24]));
            (problem.lower, problem.upper) = (Some(170), upper);
            for row in [0, 169, 170 + seq_q - 2] {
                problem.v[row * 24 + 3] = bad;
            }
            if upper.is_some() {
                problem.v[261 * 24 + 4] = bad;
            }
            problem.k[20 * 8] = bad;
            problem.k[169 * 8] = bad;
            problem.check(arch);
        }
    }
}

#[test]
fn a_capped_score_is_still_excluded() {
    for arch in archs() {
        for seq_q in [1, 20] {
            let mut problem = Problem::new(&mut Random(25), shape([1, 1, 1], [seq_q, 20], [8, 8]));
            problem.softcap = Some(2.0);
            problem.scale = 30.0;
            problem.k[5 * 8] = f32::NAN;
            problem.bias = Some(Dense { data: vec![0.0; 20], strides: [0, 0, 0, 1], keys: 20 });
            problem.bias.as_mut().unwrap().data[5] = f32::NEG_INFINITY;
            problem.check(arch);
            problem.bias.as_mut().unwrap().data[5] = 0.0;
            assert!(problem.run(arch, false).iter().all(|x| x.is_nan()));
        }
    }
}

#[test]
fn split_keys_respect_every_mask() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(16).build().unwrap();
    let mut random = Random(26);
    for round in 0..60 {
        let heads = random.pick(&[[1, 1, 1], [2, 4, 1], [2, 2, 2]]);
        let seq = [random.pick(&[1, 2, 17, 60]), random.pick(&[1100, 2500])];
        let problem = Problem::new(&mut random, shape(heads, seq, [8, 16]));
        let mut problem = with_random_masks(problem, &mut random);
        if round % 2 == 0 {
            problem.lower = problem.lower.map(|lower| lower * 10);
            problem.upper = problem.upper.map(|upper| upper.abs() * 60);
        }
        for arch in archs() {
            pool.install(|| problem.check(arch));
        }
    }
}

/// The keys that the rows of one batch element visit.
fn visited(problem: &Problem, batch: usize, rows: std::ops::Range<usize>) -> std::ops::Range<usize> {
    let none = Elements::F32(&[]);
    let empty = Operand { data: none, strides: [0; 3] };
    let masking = problem.masking(none);
    span(&AttentionArgs { shape: problem.shape, scale: 1.0, q: empty, k: empty, v: empty, masking }, batch, rows)
}

#[test]
fn only_keys_of_the_band_are_visited() {
    let mut problem = Problem::new(&mut Random(27), shape([2, 2, 1], [10, 500], [1, 1]));
    problem.lower = Some(300);
    problem.upper = Some(400);
    assert_eq!(visited(&problem, 0, 3..5), 303..405);
    // Across heads: the last query of one and the first of the next.
    assert_eq!(visited(&problem, 0, 9..11), 300..410);
    problem.lengths = Some(vec![350, 0]);
    assert_eq!(visited(&problem, 0, 3..5), 303..350);
    assert_eq!(visited(&problem, 1, 3..5), 0..0);
    problem.anchor = BandAnchor::Length;
    assert_eq!(visited(&problem, 0, 3..5), 153..255);
    problem.fill = Fill::Assign(0.0);
    assert_eq!(visited(&problem, 0, 3..5), 0..350);
}
