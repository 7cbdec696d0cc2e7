//! Cases of `rotary`.

use super::{PositionRule, Rotary};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::ops::operands::Layout;
use crate::ops::rotation::{NormRule, Pairs};
use crate::ops::{EPSILON_F16, EPSILON_F32};
use crate::tensor::{Dtype, HostTensor};

/// One case before it is drawn.
struct Draft {
    shape: &'static [usize],
    layout: Layout,
    /// `[positions, pairs]`, or of the rows themselves.
    angles: &'static [usize],
    pairs: Pairs,
    positions: Option<(PositionRule, HostTensor)>,
    /// Whether there is a norm, and whether it has a weight.
    norm: Option<bool>,
}

/// Every layout and source of positions, partial widths, odd sizes, positions past the end, zero sizes, f32 and f16 mixed.
pub(in crate::ops) fn cases() -> Vec<Case> {
    let given = |shape: &[usize], data: &[u32]| HostTensor::u32(shape, data.to_vec()).expect("one for each");
    let plain = || Draft {
        shape: &[2, 3, 5, 16],
        layout: Layout::HeadsFirst,
        angles: &[9, 8],
        pairs: Pairs::Halves,
        positions: None,
        norm: None,
    };
    let positions = || Some((PositionRule::Given, given(&[2, 5], &[0, 8, 3, 3, 9, 1, u32::MAX, 2, 7, 4])));
    let after = || Some((PositionRule::After, given(&[2], &[3, u32::MAX - 1])));
    let seq_first = || Draft { shape: &[2, 5, 3, 16], layout: Layout::SeqFirst, ..plain() };
    let merged = || Draft { shape: &[2, 5, 48], layout: Layout::Merged { heads: 3 }, ..plain() };
    let drafts = || {
        vec![
            plain(),
            Draft { pairs: Pairs::Interleaved, ..plain() },
            Draft { positions: positions(), ..plain() },
            Draft { positions: positions(), pairs: Pairs::Interleaved, norm: Some(true), ..merged() },
            Draft { positions: after(), norm: Some(false), ..plain() },
            Draft { positions: after(), ..seq_first() },
            Draft { angles: &[2, 5, 8], ..seq_first() },
            Draft { angles: &[2, 5, 3], pairs: Pairs::Interleaved, norm: Some(true), ..merged() },
            Draft { angles: &[5, 5], ..plain() },
            Draft { angles: &[5, 0], ..plain() },
            Draft { shape: &[3, 1, 7, 130], angles: &[7, 65], ..plain() },
            Draft { shape: &[3, 7, 129], angles: &[7, 33], norm: Some(true), pairs: Pairs::Interleaved, ..plain() },
            Draft { shape: &[4, 2], angles: &[4, 1], ..plain() },
            Draft { shape: &[1, 1], layout: Layout::Merged { heads: 1 }, angles: &[1, 0], ..plain() },
            Draft { shape: &[2, 3, 0, 16], ..plain() },
            Draft { shape: &[2, 5, 3, 0], angles: &[5, 0], ..seq_first() },
        ]
    };
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        cases.extend(drafts().into_iter().map(|draft| case(draft, [dtype; 3], 1.0)));
    }
    cases.push(case(Draft { norm: Some(true), ..plain() }, [Dtype::F16, Dtype::F32, Dtype::F32], 1.0));
    cases.push(case(Draft { norm: Some(true), ..plain() }, [Dtype::F32, Dtype::F16, Dtype::F16], 1.0));
    cases.push(case(Draft { norm: Some(false), ..plain() }, [Dtype::F32; 3], 1e4));
    cases
}

fn case(draft: Draft, [dtype, angle, weight]: [Dtype; 3], deviation: f32) -> Case {
    let Draft { shape, layout, angles, pairs, positions, norm } = draft;
    let normal = |dtype, shape: &[usize]| CaseInput::normal(dtype, shape, 1.0);
    let heads = if let Layout::Merged { heads } = layout { heads } else { 1 };
    let head_dim = shape[shape.len() - 1] / heads;
    let rule = positions.as_ref().map_or(PositionRule::Counted, |(rule, _)| *rule);
    let mut inputs = vec![CaseInput::normal(dtype, shape, deviation), normal(angle, angles), normal(angle, angles)];
    inputs.extend(positions.map(|(_, given)| CaseInput { desc: given.desc().clone(), values: Values::Given(given) }));
    inputs.extend((norm == Some(true)).then(|| normal(weight, &[head_dim])));
    let name = format!(
        "{dtype} {angle} {shape:?} {layout:?} angles {angles:?} {pairs:?} {rule:?} norm {norm:?} of {deviation}"
    );
    let norm = norm.map(|has_weight| NormRule { epsilon: 1e-6, has_weight });
    // Two products of normals, which reach 5 together about as often as one: each rounded, and their sum. A norm adds the
    // roundings of a root of √head_dim and two products.
    let storage = if dtype == Dtype::F16 { EPSILON_F16 } else { 0.0 };
    let normed = if norm.is_some() { 8.0 + (head_dim as f64).sqrt() } else { 0.0 };
    let tolerance = Tolerance::of_scale((4.0 + normed) * EPSILON_F32 + storage);
    Case::new(name, Rotary { layout, pairs, positions: rule, norm }, inputs, tolerance)
}
