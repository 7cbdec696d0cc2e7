//! Attention against its definition in f64.

mod masks;
mod problem;

use crate::cpu::kernels::args::{BandAnchor, Dense};
use crate::mask::Fill;
use half::f16;
use problem::{Problem, Random, archs, shape};
use pulp::Arch;

fn random_problem(random: &mut Random) -> Problem {
    let lengths = [1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 48, 49, 129];
    let dims = [1, 3, 5, 8, 16, 40, 64, 80, 128, 256];
    let heads = random.pick(&[[1, 1, 1], [2, 3, 3], [1, 4, 2], [2, 6, 1], [1, 8, 2]]);
    let seq = [random.pick(&lengths), random.pick(&[1, 5, 16, 33, 127, 128, 129, 300])];
    let same = random.pick(&dims);
    let dims = [same, random.pick(&[same, same, 24, 7])];
    let problem = Problem::new(random, shape(heads, seq, dims));
    with_random_masks(problem, random)
}

/// Each option, or none, in every combination.
fn with_random_masks(mut problem: Problem, random: &mut Random) -> Problem {
    let seq_kv = problem.shape.seq_kv;
    problem.padding = random.pick(&[0, 0, 3]);
    problem.softcap = random.pick(&[None, None, Some(0.3), Some(30.0)]);
    if random.next(3) == 0 {
        problem.lengths = Some((0..problem.shape.batch).map(|_| random.next(seq_kv + 3) as u32).collect());
        problem.anchor = random.pick(&[BandAnchor::Fixed, BandAnchor::Length]);
    }
    if random.next(2) == 0 {
        problem.upper = Some(random.next(40) as isize - 20);
    }
    if random.next(3) == 0 {
        problem.lower = Some(random.next(200) as isize - 60);
    }
    if random.next(3) == 0 {
        let (kept, keys) = (random.next(16), random.pick(&[seq_kv, seq_kv, seq_kv / 2, 0]));
        problem = problem.with_bool_mask(random, kept, keys);
    }
    if random.next(3) == 0 {
        let (kept, keys) = (random.next(16), random.pick(&[seq_kv, seq_kv, seq_kv - 1, seq_kv / 3]));
        let lowest = random.pick(&[-2.0, f32::NEG_INFINITY, f32::MIN]);
        problem = problem.with_bias(random, kept, keys, lowest);
    }
    problem.fill = random.pick(&[Fill::Exclude, Fill::Exclude, Fill::Assign(-1e9), Fill::Assign(0.5)]);
    problem
}

#[test]
fn random_problems_match_the_definition() {
    let mut random = Random(0x5eed);
    for round in 0..400 {
        let problem = random_problem(&mut random);
        for arch in archs() {
            if round % 4 == 0 || matches!(arch, Arch::Scalar) == (round % 8 == 1) {
                problem.check(arch);
            }
        }
    }
}

#[test]
fn a_wrong_element_is_noticed() {
    let problem = Problem::new(&mut Random(3), shape([1, 2, 2], [17, 33], [8, 8]));
    let mut got = problem.run(Arch::new(), false);
    got[100] += 1e-4;
    assert!(std::panic::catch_unwind(|| problem.compare(&got, 4e-6)).is_err());
}

#[test]
fn keys_split_over_threads_match() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(16).build().unwrap();
    let mut random = Random(77);
    for (heads, seq_q) in [([1, 1, 1], 1), ([1, 4, 1], 1), ([1, 2, 2], 17), ([1, 1, 1], 60)] {
        let mut problem = Problem::new(&mut random, shape(heads, [seq_q, 2500], [24, 40]));
        pool.install(|| problem.check(Arch::new()));
        problem.upper = Some(700);
        pool.install(|| problem.check(Arch::new()));
        problem.upper = Some(-30);
        pool.install(|| problem.check(Arch::new()));
    }
}

#[test]
fn half_precision_storage() {
    let mut random = Random(5);
    for _ in 0..60 {
        let mut problem = random_problem(&mut random);
        if problem.fill == Fill::Assign(-1e9) {
            problem.fill = Fill::Assign(-3.0);
        }
        let rounded = |x: &mut Vec<f32>| x.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
        [&mut problem.q, &mut problem.k, &mut problem.v].into_iter().for_each(rounded);
        if let Some(bias) = &mut problem.bias {
            rounded(&mut bias.data);
        }
        // Half a unit in the last place of a number below one.
        problem.compare(&problem.run(Arch::new(), true), 2.5e-4);
    }
}

#[test]
fn large_scores_stay_accurate() {
    // Integers whose products and sums are exact in f32, so that the softmax alone is measured.
    let mut random = Random(9);
    for seq_q in [1, 40] {
        let mut problem = Problem::new(&mut random, shape([1, 2, 2], [seq_q, 200], [16, 16]));
        for x in problem.q.iter_mut().chain(&mut problem.k) {
            *x = (*x * 50.0).round();
        }
        problem.scale = 0.25;
        problem.check(Arch::new());
        problem.scale = 1.0 / 1024.0;
        problem.check(Arch::new());
        problem.bias = Some(Dense { data: vec![-1e4, 1e4], strides: [0, 1, 0, 0], keys: 200 });
        problem.scale = 0.0;
        problem.check(Arch::new());
    }
}

#[test]
fn the_lowest_finite_bias_is_not_a_mask() {
    for seq_q in [1, 20] {
        let mut problem = Problem::new(&mut Random(11), shape([1, 2, 2], [seq_q, 50], [8, 8]));
        problem.bias = Some(Dense { data: vec![f32::MIN], strides: [0; 4], keys: 50 });
        problem.check(Arch::new());
        assert!(problem.run(Arch::new(), false).iter().any(|&x| x != 0.0));
    }
}

#[test]
fn fully_masked_rows() {
    for seq_q in [1, 20] {
        let mut problem = Problem::new(&mut Random(12), shape([1, 2, 1], [seq_q, 150], [8, 8]));
        for masked in 0..3 {
            problem.upper = (masked == 0).then_some(-500);
            problem.bool_mask = (masked == 1).then(|| Dense { data: vec![0], strides: [0; 4], keys: 150 });
            problem.bias = (masked == 2).then(|| Dense { data: vec![f32::NEG_INFINITY], strides: [0; 4], keys: 150 });
            problem.fill = Fill::Exclude;
            assert!(problem.run(Arch::new(), false).iter().all(|&x| x == 0.0));
            problem.fill = Fill::Assign(-1e9);
            problem.check(Arch::new());
        }
    }
}

#[test]
fn non_finite_keys_and_values_behind_a_mask() {
    for (seq_q, bad) in [(1, f32::NAN), (33, f32::NAN), (5, f32::INFINITY), (140, f32::NEG_INFINITY)] {
        let base = Problem::new(&mut Random(13), shape([1, 4, 2], [seq_q, 150], [8, 24]));
        let hidden_keys = [3, 77, 149];
        for kind in 0..3 {
            for arch in archs() {
                let mut problem = base.clone();
                let keep: Vec<u8> = (0..150).map(|j| u8::from(!hidden_keys.contains(&j))).collect();
                let bias = keep.iter().map(|&k| if k == 0 { f32::NEG_INFINITY } else { 0.0 }).collect();
                match kind {
                    0 => problem.bool_mask = Some(Dense { data: keep, strides: [0, 0, 0, 1], keys: 150 }),
                    1 => problem.bias = Some(Dense { data: bias, strides: [0, 0, 0, 1], keys: 150 }),
                    _ => problem.upper = Some(9),
                }
                for j in hidden_keys {
                    problem.v[j * 24 + 5] = bad;
                    problem.v[(150 + j) * 24 + 23] = bad;
                }
                problem.check(arch);
                if kind < 2 {
                    problem.k[77 * 8 + 1] = bad;
                    problem.check(arch);
                }
            }
        }
    }
}

#[test]
fn visible_nan_reaches_the_output() {
    for seq_q in [1, 33] {
        for arch in archs() {
            let mut problem = Problem::new(&mut Random(14), shape([1, 1, 1], [seq_q, 40], [8, 8]));
            problem.v[20 * 8 + 3] = f32::NAN;
            problem.check(arch);
            problem.k[7 * 8 + 2] = f32::NAN;
            assert!(problem.run(arch, false).iter().all(|x| x.is_nan()));
        }
    }
}

#[test]
fn empty_dimensions() {
    let mut random = Random(15);
    for zero in 0..5 {
        let mut empty = shape([1, 2, 2], [3, 4], [5, 6]);
        *[&mut empty.batch, &mut empty.seq_q, &mut empty.seq_kv, &mut empty.head_dim_v, &mut empty.head_dim][zero] = 0;
        for padding in [0, 2] {
            let problem = Problem { padding, ..Problem::new(&mut random, empty) };
            problem.check(Arch::new());
        }
    }
}
