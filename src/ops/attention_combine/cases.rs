//! One share and many, shares that take no part, widths that fill vectors and words and widths that do not, every layout and dtype,
//! sinks, rows that are no query, large sums, zero sizes.

use super::AttentionCombine;
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::ops::operands::Layout;
use crate::ops::sinks::sinks;
use crate::ops::{EPSILON_BF16, EPSILON_F16, EPSILON_F32};
use crate::tensor::{Dtype, HostTensor};

const PLAIN: AttentionCombine = AttentionCombine {
    dtype: Dtype::F32,
    layout: Layout::HeadsFirst,
    has_sinks: false,
    has_q_lengths: false,
    has_q_starts: false,
    returns_lse: false,
};

pub(in crate::ops) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let plain = AttentionCombine { dtype, ..PLAIN };
        for width in [1, 5, 6, 8, 129] {
            for layout in [Layout::HeadsFirst, Layout::SeqFirst, Layout::Merged { heads: 4 }] {
                let op = AttentionCombine { layout, returns_lse: width == 5, has_sinks: width == 6, ..plain };
                cases.push(case(op, [3, 2, 4, 3, width], 1.0, None));
            }
        }
        cases.push(case(AttentionCombine { has_sinks: true, returns_lse: true, ..plain }, [2, 1, 3, 5, 16], 1.0, None));
    }
    let all = AttentionCombine { has_sinks: true, returns_lse: true, ..PLAIN };
    for splits in [1, 2, 7, 100] {
        cases.push(case(PLAIN, [splits, 2, 4, 1, 64], 1.0, None));
        cases.push(case(all, [splits, 2, 4, 1, 64], 30.0, None));
    }
    for shape in [[2, 0, 4, 3, 8], [2, 1, 4, 0, 8], [2, 1, 4, 3, 0]] {
        cases.push(case(all, shape, 1.0, None));
        cases.push(case(PLAIN, shape, 1.0, None));
    }
    for op in [PLAIN, AttentionCombine { returns_lse: true, ..PLAIN }, all] {
        cases.push(case(AttentionCombine { has_q_lengths: true, ..op }, [2, 3, 2, 5, 8], 1.0, Some(&[0, 3, 99])));
        cases.push(case(AttentionCombine { has_q_starts: true, ..op }, [2, 1, 2, 9, 8], 1.0, Some(&[1, 4, 4, 8])));
    }
    cases
}

/// A case of `shape` (splits, batch, heads, seq_q, head_dim_v), whose sums have this deviation. Every fifth of them is −inf, with a
/// NaN for partial results, and those of every seventh row all are.
fn case(op: AttentionCombine, shape: [usize; 5], deviation: f32, rows: Option<&[u32]>) -> Case {
    let [splits, batch, heads, seq_q, width] = shape;
    let of_a_share = batch * heads * seq_q;
    let none = |at: usize| at % 5 == 4 || at.checked_rem(of_a_share).is_some_and(|row| row % 7 == 6);
    let normal =
        |shape: &[usize], seed| CaseInput::normal(Dtype::F32, shape, 1.0).draw(seed).as_f32().expect("f32").to_vec();
    let sums_shape = [splits, batch, heads, seq_q];
    let sums = normal(&sums_shape, 1).into_iter().enumerate();
    let sums = sums.map(|(at, sum)| if none(at) { f32::NEG_INFINITY } else { deviation * sum });
    let partials = normal(&shape, 2).into_iter().enumerate();
    let partials = partials.map(|(at, partial)| if none(at / width) { f32::NAN } else { partial });
    let given = |tensor: HostTensor| CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) };
    let partials = HostTensor::f32(&shape, partials.collect()).expect("the shape is theirs");
    let sums = HostTensor::f32(&sums_shape, sums.collect()).expect("the shape is theirs");
    let mut inputs = vec![given(partials), given(sums)];
    inputs.extend(op.has_sinks.then(|| sinks(heads)));
    inputs.extend(rows.map(|rows| given(HostTensor::u32(&[rows.len()], rows.to_vec()).expect("one axis"))));
    let AttentionCombine { dtype, layout, .. } = op;
    let words = [
        (op.has_sinks, " sinks"),
        (op.returns_lse, " lse"),
        (op.has_q_lengths, " lengths"),
        (op.has_q_starts, " starts"),
    ];
    let words: String = words.into_iter().filter(|(has, _)| *has).map(|(_, word)| word).collect();
    let name = format!("{dtype} {layout:?} {shape:?} of {deviation}{words}");
    // Differences of sums that reach 5 deviations are rounded, and each weight relatively by as much; exp, the sum of as many
    // terms as there are shares and the division add a few roundings, storage one, which may go the other way.
    let rounded = match dtype {
        Dtype::F16 => 2.0 * EPSILON_F16,
        Dtype::BF16 => 2.0 * EPSILON_BF16,
        _ => 0.0,
    };
    let weight = 2.0 * 5.0 * f64::from(deviation).max(1.0) + 16.0 + (splits as f64).sqrt();
    Case::new(name, op, inputs, Tolerance::of_scale(weight * EPSILON_F32 + rounded))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Op, Rows};

    #[test]
    fn reference_by_hand() {
        let tensor = |shape: &[usize], data: &[f32]| HostTensor::f32(shape, data.to_vec()).unwrap();
        let partials = tensor(&[3, 1, 1, 1, 1], &[4.0, 8.0, f32::NAN]);
        let sums = tensor(&[3, 1, 1, 1], &[0.0, 3.0_f32.ln(), f32::NEG_INFINITY]);
        let sinks = tensor(&[1], &[4.0_f32.ln()]);
        let op = AttentionCombine { has_sinks: true, returns_lse: true, ..PLAIN };
        let outputs = op.reference(&[&partials, &sums, &sinks], Rows::All);
        let [output, lse] = [0, 1].map(|output: usize| outputs[output].as_f64().unwrap()[0]);
        assert!((output - 28.0 / 8.0).abs() < 1e-6 && (lse - 8.0_f64.ln()).abs() < 1e-6, "{output}, {lse}");
        let nothing = tensor(&[3, 1, 1, 1], &[f32::NEG_INFINITY; 3]);
        let outputs = AttentionCombine { has_sinks: false, ..op }.reference(&[&partials, &nothing], Rows::All);
        assert_eq!([0, 1].map(|output: usize| outputs[output].as_f64().unwrap()[0]), [0.0, f64::NEG_INFINITY]);
    }
}
