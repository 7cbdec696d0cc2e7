//! What a row may not see: lengths, windows, masks that cover only some keys.

use super::problem::{Problem, archs, at, shape};
use super::random::{Random, random_options};
use crate::cpu::kernels::args::{Dense, Elements};
use crate::cpu::kernels::attention::cut::span;
use crate::cpu::kernels::sequence::sequences;
use crate::mask::{Bound, Fill};
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
        problem.bounds.upper = at(-500);
        problem.fill = Fill::Assign(-1e9);
        let out = problem.run(Arch::new()).out;
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
            (problem.bounds.lower, problem.bounds.upper) = (at(170), upper.and_then(at));
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
            assert!(problem.run(arch).out.iter().all(|x| x.is_nan()));
        }
    }
}

#[test]
fn split_keys_respect_every_option() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(16).build().unwrap();
    let mut random = Random(26);
    for round in 0..80 {
        let heads = random.pick(&[[1, 1, 1], [2, 4, 1], [2, 2, 2]]);
        let seq = [random.pick(&[1, 2, 17, 60]), random.pick(&[1100, 2500])];
        let mut problem = random_options(&mut random, shape(heads, seq, [8, 16]));
        if round % 2 == 0 {
            let wider = |bound: Bound, by: i64| Bound { at: bound.at.abs() * by, ..bound };
            problem.bounds.lower = problem.bounds.lower.map(|lower| wider(lower, -10));
            problem.bounds.upper = problem.bounds.upper.map(|upper| wider(upper, 60));
        }
        for arch in archs() {
            pool.install(|| problem.check(arch));
        }
    }
}

#[test]
fn blocks_that_a_mask_hides_are_not_read() {
    for (seq_q, kept, arch) in [1, 20, 100]
        .into_iter()
        .flat_map(|q| [0b1000, 0b1100, 0b1111].map(|k| (q, k)))
        .flat_map(|(q, k)| archs().into_iter().map(move |arch| (q, k, arch)))
    {
        let mut problem = Problem::new(&mut Random(28), shape([1, 2, 1], [seq_q, 500], [8, 24]));
        problem.add_bool_mask(&mut Random(29), kept, 500);
        for (index, keep) in problem.bool_mask.as_mut().unwrap().data.iter_mut().enumerate() {
            *keep = if index % 500 < 256 { *keep } else { 0 };
        }
        // Reading one more row would panic.
        problem.k.truncate(256 * 8);
        problem.v.truncate(256 * 24);
        problem.check(arch);
    }
}

/// The keys that the rows of one batch element visit.
fn visited(problem: &Problem, batch: usize, rows: std::ops::Range<usize>) -> std::ops::Range<usize> {
    let shape = problem.shape;
    let masking = problem.masking(Elements::F32(&[]));
    span(problem.fill, &sequences(&masking, shape.batch, [shape.seq_q, shape.seq_kv]).nth(batch).unwrap(), rows)
}

#[test]
fn only_keys_of_the_band_are_visited() {
    let mut problem = Problem::new(&mut Random(27), shape([2, 2, 1], [10, 500], [1, 1]));
    problem.bounds.lower = at(300);
    problem.bounds.upper = at(400);
    assert_eq!(visited(&problem, 0, 3..5), 303..405);
    // Across heads: the last query of one and the first of the next.
    assert_eq!(visited(&problem, 0, 9..11), 300..410);
    problem.lengths = Some(vec![350, 0]);
    assert_eq!(visited(&problem, 0, 3..5), 303..350);
    assert_eq!(visited(&problem, 1, 3..5), 0..0);
    // 350 keys and 10 queries.
    problem.bounds.lower = Some(Bound { at: -190, follows: true });
    problem.bounds.upper = Some(Bound { at: -90, follows: true });
    assert_eq!(visited(&problem, 0, 3..5), 153..255);
    problem.q_lengths = Some(vec![8, 8]);
    assert_eq!(visited(&problem, 0, 7..9), 152..260);
    problem.fill = Fill::Assign(0.0);
    assert_eq!(visited(&problem, 0, 3..5), 0..350);
}
