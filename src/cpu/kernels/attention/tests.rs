//! Attention against its definition in f64.

mod masks;
mod problem;
mod random;
mod sequences;
mod storage;

use crate::cpu::kernels::args::Dense;
use crate::mask::Fill;
use problem::{Problem, archs, at, shape};
use pulp::Arch;
use random::{Random, random_options, random_sizes, small_sizes, with_random_masks};
use storage::Storage;

#[test]
fn random_problems_match_the_definition() {
    let mut random = Random(0x5eed);
    for round in 0..400 {
        let mut problem = random_sizes(&mut random);
        problem.padding = random.pick(&[0, 0, 3]);
        with_random_masks(&mut problem, &mut random);
        for arch in archs() {
            if round % 4 == 0 || matches!(arch, Arch::Scalar) == (round % 8 == 1) {
                problem.check(arch);
            }
        }
    }
}

#[test]
fn all_options_match_the_definition() {
    let mut random = Random(0xa11);
    for _ in 0..4000 {
        let shape = small_sizes(&mut random);
        let problem = random_options(&mut random, shape);
        for arch in archs() {
            problem.check(arch);
        }
    }
}

#[test]
fn all_options_match_the_definition_around_tiles() {
    let mut random = Random(0xb16);
    for _ in 0..150 {
        let shape = random_sizes(&mut random).shape;
        let problem = random_options(&mut random, shape);
        problem.check(random.pick(&archs()));
    }
}

#[test]
fn a_wrong_element_is_noticed() {
    let problem = Problem::new(&mut Random(3), shape([1, 2, 2], [17, 33], [8, 8]));
    let mut got = problem.run(Arch::new());
    got.out[100] += 1e-4;
    assert!(std::panic::catch_unwind(|| problem.compare(&got)).is_err());
    let mut got = problem.run(Arch::new());
    got.log_sums[20] += 1e-4;
    assert!(std::panic::catch_unwind(|| problem.compare(&got)).is_err());
}

#[test]
fn keys_split_over_threads_match() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(16).build().unwrap();
    let mut random = Random(77);
    for (heads, seq_q) in [([1, 1, 1], 1), ([1, 4, 1], 1), ([1, 2, 2], 17), ([1, 1, 1], 60)] {
        let mut problem = Problem::new(&mut random, shape(heads, [seq_q, 2500], [24, 40]));
        pool.install(|| problem.check(Arch::new()));
        problem.bounds.upper = at(700);
        pool.install(|| problem.check(Arch::new()));
        problem.bounds.upper = at(-30);
        pool.install(|| problem.check(Arch::new()));
    }
}

#[test]
fn every_storage() {
    let mut random = Random(5);
    for round in 0..60 {
        let mut problem = random_sizes(&mut random);
        problem.q_storage = [Storage::F16, Storage::BF16, Storage::F32][round % 3];
        problem.kv_storage = [Storage::F16, Storage::BF16, Storage::I8][round % 3];
        problem.bias_storage = problem.q_storage;
        problem.store();
        with_random_masks(&mut problem, &mut random);
        problem.check(Arch::new());
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
        assert!(problem.run(Arch::new()).out.iter().any(|&x| x != 0.0));
    }
}

#[test]
fn fully_masked_rows() {
    for seq_q in [1, 20] {
        let mut problem = Problem::new(&mut Random(12), shape([1, 2, 1], [seq_q, 150], [8, 8]));
        for masked in 0..3 {
            problem.bounds.upper = at(-500).filter(|_| masked == 0);
            problem.bool_mask = (masked == 1).then(|| Dense { data: vec![0], strides: [0; 4], keys: 150 });
            problem.bias = (masked == 2).then(|| Dense { data: vec![f32::NEG_INFINITY], strides: [0; 4], keys: 150 });
            problem.fill = Fill::Exclude;
            assert!(problem.run(Arch::new()).out.iter().all(|&x| x == 0.0));
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
                    _ => problem.bounds.upper = at(9),
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
            assert!(problem.run(arch).out.iter().all(|x| x.is_nan()));
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
