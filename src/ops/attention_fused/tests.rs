//! The reference against numbers worked out by hand.

use super::*;
use crate::mask::{Causal, Fill, Masking, Window};
use crate::ops::mask_cases::MaskCase;
use crate::ops::operands::Layout;

fn masked(causal: Causal, fill: Fill) -> AttentionFused {
    AttentionFused { scale: 1.0, rule: MaskCase::causal("", causal, fill).rule, ..AttentionFused::default() }
}

fn attention(op: AttentionFused, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f64> {
    let tensor = |x: &[f32]| HostTensor::f32(&[x.len(), 1], x.to_vec()).unwrap();
    op.reference(&[&tensor(q), &tensor(k), &tensor(v)], Rows::All)[0].as_f64().unwrap().to_vec()
}

#[test]
fn reference_by_hand() {
    let plain = AttentionFused { scale: 1.0, ..AttentionFused::default() };
    assert_eq!(attention(plain, &[0.0], &[5.0, 6.0], &[1.0, 3.0]), [2.0]);
    let quarter = attention(plain, &[1.0], &[0.0, 3.0_f32.ln()], &[4.0, 0.0]);
    assert!((quarter[0] - 1.0).abs() < 1e-6);
    let causal = masked(Causal::TopLeft, Fill::Exclude);
    assert_eq!(attention(causal, &[0.0; 2], &[1.0; 2], &[2.0, 4.0]), [2.0, 3.0]);
    let capped = AttentionFused { rule: ScoreRule { softcap: Some(1.0), ..plain.rule }, ..plain };
    let weight = 1.0_f64.tanh().exp();
    let got = attention(capped, &[1.0], &[0.0, 1.0], &[0.0, 1.0])[0];
    assert!((got - weight / (1.0 + weight)).abs() < 1e-12);
}

/// Two positions of one head: query, key and value of each.
#[test]
fn a_joined_row_is_query_key_and_value() {
    let all = Layout::Joined { heads: 1, kv_heads: 1 };
    let operands = Operands { q_layout: all, kv_layout: all, ..Operands::default() };
    let op = AttentionFused { scale: 1.0, operands, ..AttentionFused::default() };
    let x = HostTensor::f32(&[1, 2, 3], vec![0.0, 0.0, 4.0, 1.0, 3.0_f32.ln(), 0.0]).unwrap();
    let out = op.reference(&[&x; 3], Rows::All).remove(0);
    assert_eq!(out.shape(), [1, 2, 1]);
    let got = out.as_f64().unwrap();
    assert!((got[0] - 2.0).abs() < 1e-12 && (got[1] - 1.0).abs() < 1e-6, "{got:?}");
    // Of a joined tensor that stands for all three each part is read once.
    let cost = op.cost(&[x.desc().clone(), x.desc().clone(), x.desc().clone()]);
    assert_eq!((cost.flops, cost.read, cost.written), (2 * 2 * 2 * 2, 3 * 2 * 4, 2 * 4));
}

#[test]
fn bottom_right_causality_counts_from_the_length() {
    let op = masked(Causal::BottomRight, Fill::Exclude);
    let op = AttentionFused { rule: ScoreRule { has_lengths: true, ..op.rule }, ..op };
    let tensor = |x: &[f32]| HostTensor::f32(&[x.len(), 1], x.to_vec()).unwrap();
    let (q, k, v) = (tensor(&[0.0; 2]), tensor(&[0.0; 5]), tensor(&[1.0, 3.0, 8.0, 100.0, f32::NAN]));
    let lengths = HostTensor::u32(&[1], vec![3]).unwrap();
    let out = op.reference(&[&q, &k, &v, &lengths], Rows::All).remove(0);
    assert_eq!(out.as_f64().unwrap(), [2.0, 4.0]);
}

#[test]
fn fully_masked_rows_are_zero_or_uniform() {
    let op = masked(Causal::BottomRight, Fill::Exclude);
    assert_eq!(attention(op, &[1.0, 1.0], &[9.0], &[7.0]), [0.0, 7.0]);
    let op = masked(Causal::BottomRight, Fill::Assign(-1e9));
    assert_eq!(attention(op, &[1.0, 1.0], &[9.0], &[7.0]), [7.0, 7.0]);
}

#[test]
fn causal_cost_counts_visited_scores() {
    let desc = TensorDesc::new(Dtype::F32, [1, 1, 4, 8]);
    let op = masked(Causal::TopLeft, Fill::Exclude);
    assert_eq!(op.cost(&[desc.clone(), desc.clone(), desc]).flops, 10 * 2 * 16);
}

#[test]
fn a_window_reads_the_keys_in_it() {
    let [q, kv] = [1, 100].map(|seq| TensorDesc::new(Dtype::F32, [1, 1, seq, 8]));
    let window = Some(Window { left: Some(9), ..Window::default() });
    let masking = Masking { causal: Some(Causal::BottomRight), window, ..Masking::default() };
    let op =
        AttentionFused { scale: 1.0, rule: ScoreRule { masking, ..ScoreRule::default() }, ..AttentionFused::default() };
    let cost = op.cost(&[q, kv.clone(), kv]);
    assert_eq!((cost.flops, cost.read, cost.written), (10 * 2 * 16, (1 + 2 * 10) * 8 * 4, 8 * 4));
}
