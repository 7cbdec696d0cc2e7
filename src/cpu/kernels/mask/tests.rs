//! Masks by hand.

use super::*;
use crate::cpu::kernels::args::Packed;
use crate::mask::{Bound, Bounds};
use half::{bf16, f16};

const SIZES: [usize; 4] = [2, 3, 5, 37];

fn bound(at: i64) -> Option<Bound> {
    Some(Bound { at, follows: false })
}

fn scores() -> Vec<f32> {
    (0..SIZES.iter().product()).map(|i: usize| (i * 7 % 101) as f32 * 0.125 - 6.0).collect()
}

fn run(masking: Masking) -> Vec<f32> {
    let scores = scores();
    let mut out = vec![f32::NAN; scores.len()];
    let args = MaskScoresArgs { scores: Elements::F32(&scores), sizes: SIZES, masking };
    mask_scores(&args, ElementsMut::F32(&mut out));
    out
}

fn expect(masking: Masking, want: impl Fn([usize; 4], f32) -> f32) {
    let scores = scores();
    for (index, &got) in run(masking).iter().enumerate() {
        let [b, h, i, j] = [index / (37 * 5 * 3), index / (37 * 5) % 3, index / 37 % 5, index % 37];
        assert_eq!(got, want([b, h, i, j], scores[index]), "{:?}", [b, h, i, j]);
    }
}

#[test]
fn causal() {
    for offset in [-2, 0, 11, 100] {
        for (fill, value) in [(Fill::Exclude, f32::NEG_INFINITY), (Fill::Assign(-7.5), -7.5)] {
            let bounds = Bounds { upper: bound(offset as i64), ..Bounds::NONE };
            let masking = Masking { bounds, fill, ..Masking::NONE };
            expect(masking, |[_, _, i, j], s| if j as isize <= i as isize + offset { s } else { value });
        }
    }
}

#[test]
fn bias_then_mask() {
    let keep: Vec<u8> = (0..2 * 37).map(|i| u8::from(i % 3 != 0)).collect();
    let bias: Vec<f32> = (0..3 * 5).map(|i| if i == 4 { f32::NEG_INFINITY } else { i as f32 }).collect();
    let masking = Masking {
        bool_mask: Some(Dense { data: &keep, strides: [37, 0, 0, 1], keys: 37 }),
        bias: Some(Dense { data: Elements::F32(&bias), strides: [0, 5, 1, 0], keys: 37 }),
        fill: Fill::Assign(9.0),
        ..Masking::NONE
    };
    expect(masking, |[b, h, i, j], s| if keep[b * 37 + j] == 0 { 9.0 } else { s + bias[h * 5 + i] });
}

#[test]
fn masks_of_some_keys() {
    let keep: Vec<u8> = (0..2 * 30).map(|i| u8::from(i % 3 != 0)).collect();
    let bias: Vec<f32> = (0..3 * 20).map(|i| i as f32).collect();
    for (fill, value) in [(Fill::Exclude, f32::NEG_INFINITY), (Fill::Assign(9.0), 9.0)] {
        let masking = Masking {
            bool_mask: Some(Dense { data: &keep, strides: [30, 0, 0, 1], keys: 30 }),
            bias: Some(Dense { data: Elements::F32(&bias), strides: [0, 20, 0, 1], keys: 20 }),
            fill,
            ..Masking::NONE
        };
        expect(masking, |[b, h, _, j], s| match j {
            30.. => value,
            _ if keep[b * 30 + j] == 0 => value,
            20.. => f32::NEG_INFINITY,
            _ => s + bias[h * 20 + j],
        });
        // One number for all of the keys that it covers.
        let masking =
            Masking { bias: Some(Dense { data: Elements::F32(&[0.5]), strides: [0; 4], keys: 3 }), ..Masking::NONE };
        expect(masking, |[_, _, _, j], s| if j < 3 { s + 0.5 } else { f32::NEG_INFINITY });
    }
}

#[test]
fn lengths_and_the_band_that_follows_them() {
    let lengths = [20u32, 99];
    for (fill, value) in [(Fill::Exclude, f32::NEG_INFINITY), (Fill::Assign(-7.5), -7.5)] {
        // Where the band follows the lengths, query 0 of 5 stands at key 15 of 20 and at key 32 of 37.
        for (follows, lower, upper) in [(false, 3, 18), (true, -12, 0), (true, -70, -23)] {
            let bound = |at| Some(Bound { at, follows });
            let bounds = Bounds { lower: bound(lower), upper: bound(upper) };
            let masking = Masking { lengths: Some(&lengths), bounds, fill, ..Masking::NONE };
            expect(masking, |[b, _, i, j], s| {
                let length = [20, 37][b];
                let moved = if follows { length - 5 } else { 0 };
                let distance = j as i64 - i as i64 - moved;
                match j as i64 >= length {
                    true => f32::NEG_INFINITY,
                    false if (lower..=upper).contains(&distance) => s,
                    false => value,
                }
            });
        }
    }
}

#[test]
fn capped_then_biased_then_masked() {
    let bias: Vec<f32> = (0..37).map(|i| if i == 5 { f32::NEG_INFINITY } else { i as f32 }).collect();
    let scores = scores();
    let masking = Masking {
        softcap: Some(3.0),
        bias: Some(Dense { data: Elements::F32(&bias), strides: [0, 0, 0, 1], keys: 37 }),
        bounds: Bounds { upper: bound(30), ..Bounds::NONE },
        fill: Fill::Assign(100.0),
        ..Masking::NONE
    };
    for (index, &got) in run(masking).iter().enumerate() {
        let (i, j) = (index / 37 % 5, index % 37);
        let capped = 3.0 * (f64::from(scores[index]) / 3.0).tanh() + f64::from(bias[j]);
        let want = if j > i + 30 { 100.0 } else { capped };
        assert!(f64::from(got) == want || (f64::from(got) - want).abs() < 5e-6, "{index}: {got}, not {want}");
    }
}

#[test]
fn slopes_after_the_cap_and_before_the_masks() {
    let data: Vec<f32> = (0..6).map(|i| i as f32 * 0.25).collect();
    let q_lengths = [u32::MAX, 2];
    for (follows, strides) in [(false, [3, 1]), (true, [0, 1])] {
        let slopes = Some(Slopes { data: &data, strides, position: Bound { at: 3, follows } });
        let bounds = Bounds { upper: bound(30), ..Bounds::NONE };
        let masking = Masking { slopes, q_lengths: Some(&q_lengths), bounds, ..Masking::NONE };
        expect(masking, |[b, h, i, j], s| {
            let queries = [5, 2][b];
            let position = if follows { 3 + 37 - queries as i64 } else { 3 };
            let distance = (j as i64 - i as i64 - position).abs() as f32;
            let slope = data[b * strides[0] + h];
            if i >= queries || j > i + 30 { f32::NEG_INFINITY } else { s - slope * distance }
        });
    }
}

#[test]
fn packed_sequences_see_themselves() {
    let sizes = [1, 2, 9, 14];
    let scores: Vec<bf16> = (0..2 * 9 * 14).map(|i| bf16::from_f32((i % 50) as f32)).collect();
    let bias: Vec<f32> = (0..9 * 14).map(|i| (i % 7) as f32).collect();
    let packed = Packed { q_starts: &[1, 4, 4, 8], kv_starts: Some(&[0, 5, 9, 20]) };
    let bounds = Bounds { upper: Some(Bound { at: 0, follows: true }), ..Bounds::NONE };
    let bias = Dense { data: Elements::F32(&bias), strides: [0, 0, 14, 1], keys: 14 };
    let slopes = Slopes { data: &[0.0, 0.0, 2.0], strides: [1, 0], position: Bound { at: 0, follows: true } };
    let masking = Masking {
        packed: Some(packed),
        bounds,
        slopes: Some(slopes),
        bias: Some(bias),
        fill: Fill::Assign(-1.0),
        ..Masking::NONE
    };
    let mut out = vec![bf16::NAN; scores.len()];
    let args = MaskScoresArgs { scores: Elements::BF16(&scores), sizes, masking };
    mask_scores(&args, ElementsMut::BF16(&mut out));
    for (index, got) in out.iter().enumerate() {
        let (row, key) = (index / 14 % 9, index % 14);
        let score = scores[index].to_f32() + (row * 14 + key) as f32 % 7.0;
        // Two keys are before query 0 of the first sequence, one before that of the last.
        let want = match (row, key) {
            (1..4, 0..5) if key > row - 1 + 2 => -1.0,
            (1..4, 0..5) => score,
            (4..8, 9..14) if key - 9 > row - 4 + 1 => -1.0,
            (4..8, 9..14) => score - 2.0 * (key as f32 - 9.0 - (row as f32 - 4.0) - 1.0).abs(),
            _ => f32::NEG_INFINITY,
        };
        assert_eq!(got.to_f32(), want, "{row}, {key}");
    }
}

#[test]
fn wild_starts_leave_rows_without_a_sequence() {
    let packed = Packed { q_starts: &[3, 5, 0, 2], kv_starts: Some(&[9, 20, u32::MAX, 4]) };
    let masking = Masking { packed: Some(packed), ..Masking::NONE };
    expect(masking, |[_, _, i, j], s| if i >= 3 && (9..20).contains(&j) { s } else { f32::NEG_INFINITY });
}

#[test]
fn half_precision_and_nan() {
    let scores = [1.0f32, f32::NAN, f32::NAN, 2.0].map(f16::from_f32);
    let bias = [0.5, f32::NEG_INFINITY, 0.0, f32::NAN].map(f16::from_f32);
    let mut out = [f16::ZERO; 4];
    let bias = Dense { data: Elements::F16(&bias), strides: [0, 0, 0, 1], keys: 4 };
    let masking = Masking { bias: Some(bias), ..Masking::NONE };
    let args = MaskScoresArgs { scores: Elements::F16(&scores), sizes: [1, 1, 1, 4], masking };
    mask_scores(&args, ElementsMut::F16(&mut out));
    assert_eq!(out[..2], [f16::from_f32(1.5), f16::NEG_INFINITY]);
    assert!(out[2].is_nan() && out[3].is_nan());
}

#[test]
fn empty() {
    let args = MaskScoresArgs { scores: Elements::F32(&[]), sizes: [1, 2, 0, 4], masking: Masking::NONE };
    mask_scores(&args, ElementsMut::F32(&mut []));
}
