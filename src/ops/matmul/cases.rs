//! Shapes around the tiles, batches, both layouts of b, both dtypes, factors that may be rounded, large and small ones.

use super::{Epilogue, MatMul, Zeros, split_last_two};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::op::Op;
use crate::ops::{Binary, EPSILON_F16, EPSILON_F32, Operand, Step, Unary};
use crate::precision::Precision;
use crate::tensor::{Dtype, HostTensor};

pub(in crate::ops) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for [m, k, n] in [[1, 1, 1], [63, 15, 65], [64, 16, 64], [65, 17, 63], [1, 257, 100], [1, 40, 1], [101, 1, 67]]
        {
            for transpose_b in [false, true] {
                cases.push(case(dtype, &[m, k], &[k, n], MatMul { transpose_b, ..MatMul::default() }, 1.0));
            }
        }
        let plain = MatMul::default();
        cases.push(case(dtype, &[2, 3, 33, 20], &[2, 3, 20, 5], plain, 30.0));
        cases.push(case(dtype, &[3, 1, 7, 20], &[4, 20, 9], plain, 1.0));
        cases.push(case(dtype, &[5, 1, 40], &[5, 40, 33], plain, 1.0));
        cases.push(case(dtype, &[2, 3, 2, 5, 8], &[3, 1, 8, 4], plain, 1.0));
        cases.push(case(dtype, &[6, 7, 24], &[24, 31], plain, 1e-3));
        cases.push(case(dtype, &[0, 4], &[4, 3], plain, 1.0));
        cases.push(case(dtype, &[3, 0], &[0, 5], plain, 1.0));
    }
    // Around the tiles of cooperative matrices, at which each layout is staged by itself.
    for [m, k, n] in [[31, 33, 35], [64, 64, 64], [65, 100, 72], [129, 68, 70]] {
        for transpose_b in [false, true] {
            let plain = MatMul { transpose_b, ..MatMul::default() };
            let half = MatMul { precision: Precision::Half, ..plain };
            let wide = MatMul { output: Some(Dtype::F32), ..plain };
            cases.push(case(Dtype::F16, &[m, k], &[k, n], plain, 30.0));
            cases.push(case(Dtype::F16, &[2, m, k], &[2, k, n], MatMul { alpha: -0.5, ..wide }, 1.0));
            cases.push(case(Dtype::F32, &[m, k], &[k, n], half, 1.0));
        }
    }
    // Enough tiles for the larger ones.
    for transpose_b in [false, true] {
        let plain = MatMul { transpose_b, ..MatMul::default() };
        cases.push(case(Dtype::F16, &[33, 66, 40], &[33, 40, 70], plain, 1.0));
        cases.push(case(Dtype::F16, &[33, 129, 9], &[33, 9, 131], plain, 1e-3));
    }
    for deviation in [1e-3, 100.0] {
        let half = MatMul { precision: Precision::Half, ..MatMul::default() };
        cases.push(case(Dtype::F32, &[70, 90], &[90, 66], half, deviation));
    }
    cases.push(case(
        Dtype::F32,
        &[3, 1, 37, 20],
        &[4, 20, 41],
        MatMul { alpha: 2.0, precision: Precision::Half, ..MatMul::default() },
        1.0,
    ));
    cases.extend(epilogues());
    cases.push(many_products());
    cases.push(annihilated());
    cases.push(mixed());
    cases.push(case(Dtype::F32, &[9, 20], &[20, 11], MatMul { alpha: -0.125, ..MatMul::default() }, 1.0));
    cases
}

/// Each kernel with steps after it: functions, residuals of both dtypes on either side, both in both orders, numbers.
fn epilogues() -> Vec<Case> {
    let residual = Operand::Input(1);
    let add = Step::Binary(Binary::Add, residual);
    let chains: [&[Step]; 7] = [
        &[Step::Unary(Unary::Gelu)],
        &[Step::Unary(Unary::Tanh)],
        &[add],
        &[Step::Unary(Unary::Silu), Step::Binary(Binary::Mul, residual)],
        &[add, Step::Unary(Unary::Relu)],
        &[Step::Reversed(Binary::Sub, residual)],
        &[Step::Binary(Binary::Mul, Operand::Scalar(0.5)), Step::Unary(Unary::Clamp { min: -1.0, max: f32::INFINITY })],
    ];
    let mut cases = Vec::new();
    for steps in chains {
        let epilogue = Epilogue::of(steps).expect("two steps at most");
        for (dtype, a, b) in [
            (Dtype::F32, vec![70, 33], vec![33, 67]),
            (Dtype::F32, vec![1, 100], vec![100, 35]),
            (Dtype::F16, vec![3, 66, 40], vec![3, 40, 68]),
        ] {
            let of_b = MatMul { epilogue, ..MatMul::default() };
            let of_transposed_b = MatMul { transpose_b: true, alpha: 0.5, ..of_b };
            cases.extend([of_b, of_transposed_b].map(|op| after(case(dtype, &a, &b, op, 1.0), op)));
        }
    }
    let epilogue = Epilogue::of(&[add]).expect("one step");
    let op = MatMul { epilogue, output: Some(Dtype::F16), ..MatMul::default() };
    cases.push(after(case(Dtype::F32, &[0, 4], &[4, 3], op, 1.0), op));
    cases.push(after(case(Dtype::F32, &[3, 0], &[0, 5], op, 1.0), op));
    // Enough tiles for the larger ones.
    let op = MatMul { epilogue, ..MatMul::default() };
    cases.push(after(case(Dtype::F32, &[33, 129, 9], &[33, 9, 131], op, 1.0), op));
    cases
}

/// The same with a residual, and what steps do to an error: no function of these has a slope above 1.13, and a residual is rarely
/// above 4.
fn after(case: Case, op: MatMul) -> Case {
    let Case { mut name, mut inputs, mut tolerance, .. } = case;
    for step in op.epilogue.steps() {
        name += &format!(", {step:?}");
    }
    tolerance.absolute = 4.0 * tolerance.absolute + 32.0 * EPSILON_F32;
    tolerance.of_scale *= 2.0;
    if op.epilogue.has_residual() {
        let without = MatMul { epilogue: Epilogue::default(), ..op };
        let descs: Vec<_> = inputs.iter().map(|input| input.desc.clone()).collect();
        let product = without.outputs(&descs).expect("shapes of a case").remove(0);
        inputs.push(CaseInput::normal(product.dtype, &product.shape, 1.0));
    }
    Case::new(name, op, inputs, tolerance)
}

fn case(dtype: Dtype, a: &[usize], b: &[usize], op: MatMul, deviation: f32) -> Case {
    let (batch, [k, n]) = split_last_two(b);
    let b_shape = if op.transpose_b { [batch, &[n, k]].concat() } else { b.to_vec() };
    let mut inputs = vec![CaseInput::normal(dtype, a, deviation), CaseInput::normal(dtype, &b_shape, 1.0)];
    if n % 2 == 1 {
        inputs.push(CaseInput::normal(dtype, &[n], 1.0));
    }
    let scale = if op.alpha == 1.0 { String::new() } else { format!("{} x ", op.alpha) };
    let layout = if op.transpose_b { "transposed b" } else { "b" };
    let into = op.output.map(|output| format!(" into {output}")).unwrap_or_default();
    let (precision, rounded) = match op.precision {
        Precision::Full => ("", 0.0),
        // Both factors are off by half a unit of f16, each term by twice that, and √k of the terms add up.
        Precision::Half => (" half", 4.0 * 2.0 * EPSILON_F16 * (k as f64).sqrt() * f64::from(deviation)),
    };
    let exact = tolerance(op.output.unwrap_or(dtype), k, deviation);
    Case::new(
        format!("{dtype}{precision}{into} {scale}{a:?} x {b:?} {layout} of {deviation}"),
        op,
        inputs,
        Tolerance { absolute: exact.absolute + rounded, ..exact },
    )
}

/// A partial sum of k products has about √k times a term's magnitude, here `deviation`, and takes k roundings, of which
/// about √k add up: `ε · k · deviation`, times 4 for the tails. The result is rounded once more to its storage; of many f16
/// results some lie so near the middle between two that they go the other way than the reference's, which is twice a rounding.
fn tolerance(dtype: Dtype, k: usize, deviation: f32) -> Tolerance {
    let storage = if dtype == Dtype::F16 { 2.0 * EPSILON_F16 } else { EPSILON_F32 };
    let absolute = 4.0 * EPSILON_F32 * (k as f64 + 1.0) * f64::from(deviation);
    Tolerance { of_scale: storage + EPSILON_F32, relative: 0.0, absolute }
}

/// More than 65,535 workgroups.
fn many_products() -> Case {
    let inputs =
        vec![CaseInput::normal(Dtype::F32, &[66_000, 1, 2], 1.0), CaseInput::normal(Dtype::F32, &[66_000, 2, 3], 1.0)];
    Case::new("f32 66000 products of 1 x 2 x 3", MatMul::default(), inputs, tolerance(Dtype::F32, 2, 1.0))
}

/// Zeros in a meet NaN and infinity in b.
fn annihilated() -> Case {
    let a = HostTensor::f32(&[2, 3], vec![0.5, 0.0, 2.0, 1.0, 0.0, 0.0]).expect("2 x 3");
    let b = HostTensor::f32(&[3, 2], vec![1.0, 2.0, f32::NAN, f32::INFINITY, 3.0, 4.0]).expect("3 x 2");
    let given = |tensor: HostTensor| CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) };
    let op = MatMul { zeros: Zeros::Annihilate, ..MatMul::default() };
    Case::new("f32 zeros annihilate NaN and infinity", op, vec![given(a), given(b)], tolerance(Dtype::F32, 3, 1.0))
}

/// f32 weights times f16 values into f16, as unfused attention does.
fn mixed() -> Case {
    let inputs =
        vec![CaseInput::normal(Dtype::F32, &[2, 9, 33], 1.0), CaseInput::normal(Dtype::F16, &[2, 33, 20], 1.0)];
    let op = MatMul { output: Some(Dtype::F16), zeros: Zeros::Annihilate, ..MatMul::default() };
    Case::new("f32 x f16 into f16", op, inputs, tolerance(Dtype::F16, 33, 1.0))
}
