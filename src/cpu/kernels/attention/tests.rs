//! Attention against its definition in f64.

use super::attention_on;
use crate::cpu::kernels::args::*;
use crate::mask::{Band, Fill};
use half::f16;
use pulp::Arch;

/// xorshift, Marsaglia 2003.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % below
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.next(from.len())]
    }

    fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next(20_001) as f32 * 1e-4 - 1.0).collect()
    }
}

/// An owned problem. Where `padding`, added to each row's stride, is not zero, rows lie in (batch, row, head) order.
#[derive(Clone)]
struct Problem {
    shape: AttentionShape,
    scale: f32,
    padding: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    causal_offset: Option<isize>,
    bool_mask: Option<(Vec<u8>, [usize; 4])>,
    bias: Option<(Vec<f32>, [usize; 4])>,
    fill: Fill,
}

impl Problem {
    fn new(random: &mut Random, shape: AttentionShape) -> Self {
        let AttentionShape { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v } = shape;
        Self {
            shape,
            scale: 1.0 / (head_dim.max(1) as f32).sqrt(),
            padding: 0,
            q: random.values(batch * heads * seq_q * head_dim),
            k: random.values(batch * kv_heads * seq_kv * head_dim),
            v: random.values(batch * kv_heads * seq_kv * head_dim_v),
            causal_offset: None,
            bool_mask: None,
            bias: None,
            fill: Fill::Exclude,
        }
    }

    /// Strides of a contiguous mask that broadcasts along the axes whose bit in `kept` is clear, and its length.
    fn mask_strides(&self, kept: usize) -> ([usize; 4], usize) {
        let sizes = [self.shape.batch, self.shape.heads, self.shape.seq_q, self.shape.seq_kv];
        let (mut strides, mut len) = ([0; 4], 1);
        for axis in (0..4).rev().filter(|axis| kept >> axis & 1 == 1) {
            strides[axis] = len;
            len *= sizes[axis];
        }
        (strides, len)
    }

    fn with_bool_mask(mut self, random: &mut Random, kept: usize) -> Self {
        let (strides, len) = self.mask_strides(kept);
        self.bool_mask = Some(((0..len).map(|_| random.pick(&[0, 1, 1, 255])).collect(), strides));
        self
    }

    fn with_bias(mut self, random: &mut Random, kept: usize, lowest: f32) -> Self {
        let (strides, len) = self.mask_strides(kept);
        let mut bias = random.values(len);
        for x in &mut bias {
            if random.next(4) == 0 {
                *x = lowest;
            }
        }
        self.bias = Some((bias, strides));
        self
    }

    /// The definition. NaN in a key or value that a row does not see is never touched.
    fn reference(&self) -> Vec<f64> {
        let AttentionShape { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v } = self.shape;
        let mut out = Vec::new();
        for (b, h, i) in (0..batch * heads * seq_q).map(|r| (r / seq_q / heads, r / seq_q % heads, r % seq_q)) {
            let kv = b * kv_heads + h / (heads / kv_heads);
            let query = &self.q[((b * heads + h) * seq_q + i) * head_dim..][..head_dim];
            let mut scores: Vec<Option<f64>> = Vec::new();
            for j in 0..seq_kv {
                let at = |s: [usize; 4]| b * s[0] + h * s[1] + i * s[2] + j * s[3];
                let bias = self.bias.as_ref().map_or(0.0, |(data, s)| data[at(*s)]);
                let hidden = self.causal_offset.is_some_and(|offset| j as isize > i as isize + offset)
                    || self.bool_mask.as_ref().is_some_and(|(data, s)| data[at(*s)] == 0);
                let key = &self.k[(kv * seq_kv + j) * head_dim..][..head_dim];
                let dot: f64 = query.iter().zip(key).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
                scores.push(match (hidden, self.fill) {
                    (true, Fill::Exclude) => None,
                    (true, Fill::Assign(value)) => Some(f64::from(value)),
                    (false, _) if bias == f32::NEG_INFINITY => None,
                    // A bias near f32::MIN swallows the score in f32, and so it must here.
                    (false, _) if bias < -1e30 => Some(f64::from(bias)),
                    (false, _) => Some(dot * f64::from(self.scale) + f64::from(bias)),
                });
            }
            let max = scores.iter().flatten().copied().fold(f64::NEG_INFINITY, f64::max);
            let (mut sum, mut row) = (0.0, vec![0.0; head_dim_v]);
            for (j, score) in scores.iter().enumerate() {
                let Some(score) = score else { continue };
                let weight = (score - max).exp();
                sum += weight;
                for (x, &v) in row.iter_mut().zip(&self.v[(kv * seq_kv + j) * head_dim_v..]) {
                    *x += weight * f64::from(v);
                }
            }
            out.extend(row.iter().map(|x| if sum == 0.0 { 0.0 } else { x / sum }));
        }
        out
    }

    /// Strides and a strided copy of `[batch, heads, rows, width]` data.
    fn lay_out(&self, data: &[f32], [batch, heads, rows, width]: [usize; 4]) -> (Vec<f32>, [usize; 3]) {
        if self.padding == 0 {
            return (data.to_vec(), [heads * rows * width, rows * width, width]);
        }
        let row = heads * width + self.padding;
        let mut strided = vec![f32::NAN; batch * rows * row];
        for (index, values) in data.chunks(width.max(1)).enumerate() {
            let (b, h, i) = (index / rows / heads, index / rows % heads, index % rows);
            strided[(b * rows + i) * row + h * width..][..values.len()].copy_from_slice(values);
        }
        (strided, [rows * row, width, row])
    }

    fn run(&self, arch: Arch, half: bool) -> Vec<f32> {
        let AttentionShape { batch, heads, kv_heads, seq_q, seq_kv, head_dim, head_dim_v } = self.shape;
        let (q, q_strides) = self.lay_out(&self.q, [batch, heads, seq_q, head_dim]);
        let (k, k_strides) = self.lay_out(&self.k, [batch, kv_heads, seq_kv, head_dim]);
        let (v, v_strides) = self.lay_out(&self.v, [batch, kv_heads, seq_kv, head_dim_v]);
        let empty = vec![f32::NAN; batch * heads * seq_q * head_dim_v];
        let (mut out, out_strides) = self.lay_out(&empty, [batch, heads, seq_q, head_dim_v]);
        let guard = out.len();
        out.extend([777.0; 3]);
        let bias = self.bias.clone().unwrap_or_default();
        let halves = [&q, &k, &v, &bias.0, &out].map(|x| to_half(x));
        let mut half_out = halves[4].clone();
        let pick = |single, index: usize| {
            if half { Elements::F16(&halves[index]) } else { Elements::F32(single) }
        };
        let args = AttentionArgs {
            shape: self.shape,
            scale: self.scale,
            q: Operand { data: pick(&q, 0), strides: q_strides },
            k: Operand { data: pick(&k, 1), strides: k_strides },
            v: Operand { data: pick(&v, 2), strides: v_strides },
            masking: Masking {
                band: band(self.causal_offset),
                bool_mask: self.bool_mask.as_ref().map(|(data, strides)| (data.as_slice(), *strides)),
                bias: self.bias.as_ref().map(|_| (pick(&bias.0, 3), bias.1)),
                fill: self.fill,
            },
        };
        if half {
            attention_on(arch, &args, ElementsMut::F16(&mut half_out), out_strides);
            out = half_out.iter().map(|x| x.to_f32()).collect();
        } else {
            attention_on(arch, &args, ElementsMut::F32(&mut out), out_strides);
        }
        assert_eq!(out[guard..], [777.0; 3]);
        let at = |r: usize, c: usize| {
            let [b, h, i] = [r / seq_q / heads, r / seq_q % heads, r % seq_q];
            out[b * out_strides[0] + h * out_strides[1] + i * out_strides[2] + c]
        };
        (0..batch * heads * seq_q).flat_map(|r| (0..head_dim_v).map(move |c| (r, c))).map(|(r, c)| at(r, c)).collect()
    }

    /// f32 within 4e-6 of the largest value: the sum of 256 products of numbers below one errs by about 1e-6.
    fn check(&self, arch: Arch) {
        self.compare(&self.run(arch, false), 4e-6);
    }

    fn compare(&self, got: &[f32], tolerance: f64) {
        let want = self.reference();
        assert_eq!(got.len(), want.len());
        for (index, (&got, &want)) in got.iter().zip(&want).enumerate() {
            let same = if want.is_finite() {
                (f64::from(got) - want).abs() <= tolerance
            } else {
                got.is_nan() == want.is_nan() && (got.is_nan() || f64::from(got) == want)
            };
            let (shape, masks) = (self.shape, (self.causal_offset, self.bool_mask.is_some(), self.bias.is_some()));
            assert!(same, "{shape:?} {masks:?} {:?}: [{index}] is {got}, not {want}", self.fill);
        }
    }
}

fn to_half(x: &[f32]) -> Vec<f16> {
    x.iter().map(|&x| f16::from_f32(x)).collect()
}

/// Every instruction set of this machine.
fn archs() -> Vec<Arch> {
    let mut archs = vec![Arch::Scalar, Arch::new()];
    #[cfg(target_arch = "x86_64")]
    archs.extend(pulp::x86::V3::try_new().map(Arch::V3));
    archs
}

fn shape(heads: [usize; 3], seq: [usize; 2], dims: [usize; 2]) -> AttentionShape {
    let [batch, heads, kv_heads] = heads;
    AttentionShape { batch, heads, kv_heads, seq_q: seq[0], seq_kv: seq[1], head_dim: dims[0], head_dim_v: dims[1] }
}

fn random_problem(random: &mut Random) -> Problem {
    let lengths = [1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 48, 49, 129];
    let dims = [1, 3, 5, 8, 16, 40, 64, 80, 128, 256];
    let heads = random.pick(&[[1, 1, 1], [2, 3, 3], [1, 4, 2], [2, 6, 1], [1, 8, 2]]);
    let seq = [random.pick(&lengths), random.pick(&[1, 5, 16, 33, 127, 128, 129, 300])];
    let same = random.pick(&dims);
    let dims = [same, random.pick(&[same, same, 24, 7])];
    let mut problem = Problem::new(random, shape(heads, seq, dims));
    problem.padding = random.pick(&[0, 0, 3]);
    if random.next(2) == 0 {
        problem.causal_offset = Some(random.next(40) as isize - 20);
    }
    if random.next(3) == 0 {
        let kept = random.next(16);
        problem = problem.with_bool_mask(random, kept);
    }
    if random.next(3) == 0 {
        let kept = random.next(16);
        let lowest = random.pick(&[-2.0, f32::NEG_INFINITY, f32::MIN]);
        problem = problem.with_bias(random, kept, lowest);
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
        problem.causal_offset = Some(700);
        pool.install(|| problem.check(Arch::new()));
        problem.causal_offset = Some(-30);
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
        if let Some((bias, _)) = &mut problem.bias {
            rounded(bias);
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
        problem.bias = Some((vec![-1e4, 1e4], [0, 1, 0, 0]));
        problem.scale = 0.0;
        problem.check(Arch::new());
    }
}

#[test]
fn the_lowest_finite_bias_is_not_a_mask() {
    for seq_q in [1, 20] {
        let mut problem = Problem::new(&mut Random(11), shape([1, 2, 2], [seq_q, 50], [8, 8]));
        problem.bias = Some((vec![f32::MIN], [0; 4]));
        problem.check(Arch::new());
        assert!(problem.run(Arch::new(), false).iter().any(|&x| x != 0.0));
    }
}

#[test]
fn fully_masked_rows() {
    for seq_q in [1, 20] {
        let mut problem = Problem::new(&mut Random(12), shape([1, 2, 1], [seq_q, 150], [8, 8]));
        for masked in 0..3 {
            problem.causal_offset = (masked == 0).then_some(-500);
            problem.bool_mask = (masked == 1).then(|| (vec![0], [0; 4]));
            problem.bias = (masked == 2).then(|| (vec![f32::NEG_INFINITY], [0; 4]));
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
                    0 => problem.bool_mask = Some((keep, [0, 0, 0, 1])),
                    1 => problem.bias = Some((bias, [0, 0, 0, 1])),
                    _ => problem.causal_offset = Some(9),
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

/// The band of a causal offset.
fn band(offset: Option<isize>) -> Band {
    offset.map_or(Band::FULL, |offset| Band { upper: offset as i64, ..Band::FULL })
}
