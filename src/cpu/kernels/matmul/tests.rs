//! Products against their definition in f64.

use super::*;
use half::f16;

fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
}

struct Sizes {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    broadcast_b: bool,
}

fn offsets(s: &Sizes) -> Vec<BatchOffsets> {
    let b = |i: usize| if s.broadcast_b { 0 } else { i * s.k * s.n };
    (0..s.batch).map(|i| BatchOffsets { a: i * s.m * s.k, b: b(i) }).collect()
}

fn reference(args: &MatmulArgs) -> Vec<f64> {
    let MatmulArgs { m, n, k, .. } = *args;
    let mut out = Vec::new();
    for batch in args.batches {
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let mut sum = args.bias.map_or(0.0, |bias| f64::from(bias.get(j)));
            for l in 0..k {
                let a = f64::from(args.a.get(batch.a + i * k + l));
                let at = if args.layout == RightLayout::RowMajor { l * n + j } else { j * k + l };
                if a != 0.0 || args.zeros == Zeros::Multiply {
                    sum += a * f64::from(args.b.get(batch.b + at));
                }
            }
            out.push(sum);
        }
    }
    out
}

fn check(args: &MatmulArgs, got: &[f32], tolerance: f64) {
    for (index, (&got, want)) in got.iter().zip(reference(args)).enumerate() {
        let same = if want.is_finite() {
            (f64::from(got) - want).abs() <= tolerance
        } else {
            got.is_nan() == want.is_nan() && (got.is_nan() || f64::from(got) == want)
        };
        assert!(same, "{:?} {:?} [{index}]: {got} is not {want}", [args.m, args.n, args.k], args.layout);
    }
}

fn run(sizes: &Sizes, layout: RightLayout, with_bias: bool) {
    let (a, bias) = (values(sizes.batch * sizes.m * sizes.k, 1), values(sizes.n, 3));
    let b = values(sizes.batch * sizes.k * sizes.n, 2);
    let batches = offsets(sizes);
    let args = MatmulArgs {
        alpha: 1.0,
        m: sizes.m,
        n: sizes.n,
        k: sizes.k,
        a: Elements::F32(&a),
        b: Elements::F32(&b),
        layout,
        bias: with_bias.then_some(Elements::F32(&bias)),
        batches: &batches,
        zeros: Zeros::Multiply,
        steps: &[],
        residual: None,
    };
    let mut out = vec![f32::NAN; sizes.batch * sizes.m * sizes.n + 2];
    matmul(&args, ElementsMut::F32(&mut out));
    let (out, guard) = out.split_at(sizes.batch * sizes.m * sizes.n);
    assert!(guard.iter().all(|x| x.is_nan()));
    // Sums of k products below one: a few units in the last place of k.
    check(&args, out, 1e-6 + 5e-7 * sizes.k as f64);
}

#[test]
fn shapes_layouts_and_batches() {
    for m in [1, 2, 3, 4, 5, 7, 8, 9, 17, 33] {
        for (n, k) in [(1, 1), (7, 5), (16, 16), (33, 129), (129, 0), (64, 3), (300, 65), (1000, 300)] {
            for (batch, broadcast_b) in [(1, false), (3, true), (5, false)] {
                for layout in [RightLayout::RowMajor, RightLayout::Transposed] {
                    run(&Sizes { batch, m, n, k, broadcast_b }, layout, (m + n) % 2 == 0);
                }
            }
        }
    }
}

#[test]
fn empty() {
    for [batch, m, n] in [[0, 2, 2], [2, 0, 2], [2, 2, 0]] {
        run(&Sizes { batch, m, n, k: 3, broadcast_b: false }, RightLayout::RowMajor, true);
    }
}

#[test]
fn broadcast_left_and_a_right_that_goes_back() {
    let (a, b) = (values(6, 1), values(24, 2));
    let batches = [BatchOffsets { a: 0, b: 12 }, BatchOffsets { a: 0, b: 0 }];
    let args = MatmulArgs {
        alpha: 1.0,
        m: 2,
        n: 4,
        k: 3,
        a: Elements::F32(&a),
        b: Elements::F32(&b),
        layout: RightLayout::RowMajor,
        bias: None,
        batches: &batches,
        zeros: Zeros::Multiply,
        steps: &[],
        residual: None,
    };
    let mut out = [7.0; 18];
    matmul(&args, ElementsMut::F32(&mut out));
    check(&args, &out[..16], 1e-6);
    assert_eq!(out[16..], [7.0; 2]);
}

#[test]
fn half_precision() {
    let half = |x: Vec<f32>| x.into_iter().map(f16::from_f32).collect::<Vec<_>>();
    let sizes = Sizes { batch: 3, m: 5, n: 20, k: 40, broadcast_b: false };
    let (a, b, bias) = (half(values(600, 1)), half(values(2400, 2)), half(values(20, 3)));
    let batches = offsets(&sizes);
    let args = MatmulArgs {
        alpha: 1.0,
        m: 5,
        n: 20,
        k: 40,
        a: Elements::F16(&a),
        b: Elements::F16(&b),
        layout: RightLayout::Transposed,
        bias: Some(Elements::F16(&bias)),
        batches: &batches,
        zeros: Zeros::Multiply,
        steps: &[],
        residual: None,
    };
    let mut out = vec![f16::NAN; 300];
    matmul(&args, ElementsMut::F16(&mut out));
    // Half a unit in the last place of f16 between 8 and 16.
    check(&args, &out.iter().map(|x| x.to_f32()).collect::<Vec<_>>(), 4e-3);
}

#[test]
fn zero_weights_annihilate() {
    for layout in [RightLayout::RowMajor, RightLayout::Transposed] {
        for m in [1, 20] {
            let (mut a, mut b) = (values(2 * m * 30, 1), values(2 * 30 * 17, 2));
            (b[100], b[3]) = (f32::NAN, f32::INFINITY);
            for row in a.chunks_mut(30) {
                row.iter_mut().step_by(2).for_each(|x| *x = 0.0);
            }
            let batches = offsets(&Sizes { batch: 2, m, n: 17, k: 30, broadcast_b: false });
            for zeros in [Zeros::Annihilate, Zeros::Multiply] {
                let args = MatmulArgs {
                    alpha: 1.0,
                    m,
                    n: 17,
                    k: 30,
                    a: Elements::F32(&a),
                    b: Elements::F32(&b),
                    layout,
                    bias: None,
                    batches: &batches,
                    zeros,
                    steps: &[],
                    residual: None,
                };
                let mut out = vec![0.0; 2 * m * 17];
                matmul(&args, ElementsMut::F32(&mut out));
                check(&args, &out, 1e-5);
            }
        }
    }
}
