//! Problems: every function at two magnitudes and at its edges, every kind of broadcast, long chains, ragged sizes.

use half::f16;

use super::{Binary, Elementwise, Operand, Step, Unary};
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::ops::{EPSILON_F16, EPSILON_F32};
use crate::tensor::{Dtype, HostTensor, TensorDesc};

const FUNCTIONS: [Unary; 22] = [
    Unary::Relu,
    Unary::LeakyRelu { alpha: 0.1 },
    Unary::Elu { alpha: 1.5 },
    Unary::Gelu,
    Unary::GeluTanh,
    Unary::Silu,
    Unary::Swish { beta: 1.702 },
    Unary::Tanh,
    Unary::Sigmoid,
    Unary::HardSigmoid { alpha: 0.2, beta: 0.5 },
    Unary::Exp,
    Unary::Log,
    Unary::Sqrt,
    Unary::Rsqrt,
    Unary::Neg,
    Unary::Abs,
    Unary::Erf,
    Unary::Softplus,
    Unary::Reciprocal,
    Unary::Clamp { min: -0.5, max: 0.75 },
    Unary::Clamp { min: f32::NEG_INFINITY, max: 1.0 },
    Unary::Clamp { min: 2.0, max: 2.0 },
];

const COMBINATIONS: [Binary; 7] =
    [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Min, Binary::Max, Binary::Pow];

pub(in crate::ops) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for f in FUNCTIONS {
            cases.extend([1.0, 4.0].map(|deviation| unary(dtype, f, deviation)));
            cases.push(edges(dtype, f));
        }
        for f in COMBINATIONS {
            cases.extend(binary(dtype, f));
        }
        cases.extend(sizes(dtype));
        cases.extend(broadcasts(dtype));
        cases.extend(chains(dtype));
    }
    cases.push(many_workgroups());
    cases
}

/// Roundings of f32 that a result of these steps may be off by, relatively, and the rounding to its storage.
fn tolerance(dtype: Dtype, roundings: f64) -> Tolerance {
    let storage = match dtype {
        // Both sides are rounded, and neighbours are a unit in the last place apart, or the smallest subnormal.
        Dtype::F16 => (2.0 * EPSILON_F16, 6e-8),
        _ => (0.0, 0.0),
    };
    // WGSL may flush what is below the normal numbers.
    Tolerance { of_scale: 0.0, relative: roundings * EPSILON_F32 + storage.0, absolute: 1e-37 + storage.1 }
}

/// WGSL grants `exp(x)` 3 + 2 |x| units in the last place, which are two roundings each; the rest of a function takes
/// ten.
fn of_exponential(reach: f64) -> f64 {
    2.0 * (3.0 + 2.0 * reach) + 10.0
}

fn unary(dtype: Dtype, f: Unary, deviation: f32) -> Case {
    let reach = 5.0 * f64::from(deviation);
    let roundings = match f {
        // Beyond 87 the exponential is zero. Its argument is itself rounded.
        Unary::Gelu => of_exponential(87.0_f64.min(0.5 * reach * reach)) + 2.0 * 87.0_f64.min(0.5 * reach * reach),
        Unary::GeluTanh => 4.0 * of_exponential(87.0_f64.min(1.6 * (reach + 0.045 * reach.powi(3)))),
        Unary::Swish { beta } => of_exponential(reach * f64::from(beta)) + 2.0 * reach,
        _ => of_exponential(reach),
    };
    let input = CaseInput::normal(dtype, &[3, 331], deviation);
    // A clamped or shifted straight line is off by a rounding of its largest part, not of its result.
    let absolute = if matches!(f, Unary::HardSigmoid { .. }) { reach * EPSILON_F32 } else { 0.0 };
    let tolerance = tolerance(dtype, roundings);
    let tolerance = Tolerance { absolute: tolerance.absolute + absolute, ..tolerance };
    Case::new(format!("{dtype} {f:?} deviation {deviation}"), chain(&[Step::Unary(f)]), vec![input], tolerance)
}

/// NaN, infinities where the function has a limit that arithmetic reaches, zero, tiny and large numbers.
fn edges(dtype: Dtype, f: Unary) -> Case {
    let mut values =
        vec![f32::NAN, 0.0, f32::INFINITY, 1e-3, -1e-3, 1e-6, 1.0, -1.0, 0.999, 1.001, 10.5, -10.5, 60_000.0];
    match f {
        // These are zero times infinity at −∞.
        Unary::Gelu | Unary::GeluTanh | Unary::Silu | Unary::Swish { .. } => values.push(-60_000.0),
        // Finite beyond f32 in the reference.
        Unary::Exp => {
            values = values.into_iter().filter(|x| *x < 11.0 || !x.is_finite()).chain([f32::NEG_INFINITY]).collect()
        }
        // An infinite slope.
        Unary::HardSigmoid { .. } => {}
        _ => values.extend([f32::NEG_INFINITY, -60_000.0]),
    }
    let reach = 87.0;
    let input = given(dtype, &[values.len()], values);
    let tolerance = tolerance(dtype, 4.0 * of_exponential(reach));
    Case::new(format!("{dtype} {f:?} edges"), chain(&[Step::Unary(f)]), vec![input], tolerance)
}

/// Both orders, with a tensor and with scalars.
fn binary(dtype: Dtype, f: Binary) -> Vec<Case> {
    let normal = |deviation| CaseInput::normal(dtype, &[2, 101], deviation);
    // Powers of positive numbers, whose exponent times logarithm stays within f16: |y log x| below 10.
    let base = given(dtype, &[2, 101], (0..202).map(|i| 0.3 + 0.015 * i as f32).collect());
    let exponent = given(dtype, &[2, 101], (0..202).map(|i| (i * 37 % 202) as f32 * 0.06 - 6.0).collect());
    let inputs = |deviation| match f {
        Binary::Pow => vec![base.clone(), exponent.clone()],
        _ => vec![normal(deviation), normal(1.0)],
    };
    // The logarithm is off by a few roundings of itself, the product by one more: |y log x| each, beside the
    // exponential's.
    let roundings = if f == Binary::Pow { of_exponential(10.0) + 40.0 } else { 8.0 };
    let steps = [
        ("a, b", Step::Binary(f, Operand::Input(1))),
        ("b, a", Step::Reversed(f, Operand::Input(1))),
        ("a, scalar", Step::Binary(f, Operand::Scalar(if f == Binary::Pow { 3.0 } else { -0.75 }))),
        ("scalar, a", Step::Reversed(f, Operand::Scalar(1.5))),
    ];
    let deviations: &[f32] = if f == Binary::Pow { &[1.0] } else { &[1.0, 50.0] };
    let mut cases = Vec::new();
    for &deviation in deviations {
        for (words, step) in steps {
            let mut inputs = inputs(deviation);
            if words == "b, a" {
                inputs.reverse();
            }
            let name = format!("{dtype} {f:?} {words} deviation {deviation}");
            cases.push(Case::new(name, chain(&[step]), inputs, tolerance(dtype, roundings)));
        }
    }
    cases.push(special_pairs(dtype, f));
    cases
}

/// NaN on either side, infinities, signs; for powers, negative bases with integers and without, zero, large exponents.
fn special_pairs(dtype: Dtype, f: Binary) -> Case {
    let nan = f32::NAN;
    let inf = f32::INFINITY;
    let pairs: Vec<[f32; 2]> = match f {
        Binary::Pow => vec![
            [nan, 0.0],
            [1.0, nan],
            [-2.0, 3.0],
            [-2.0, 2.0],
            [-2.0, 0.5],
            [-2.0, -3.0],
            [0.0, 2.0],
            [0.0, 0.5],
            [7.0, 0.0],
            [-1.001, 17.0],
            [-1.001, 18.0],
            [1.01, 64.0],
            [inf, 0.5],
            [2.0, -0.5],
            [0.5, 15.0],
            [0.5, 0.001],
        ],
        _ => vec![
            [nan, 1.0],
            [1.0, nan],
            [nan, nan],
            [inf, 1.0],
            [1.0, inf],
            [-inf, 2.0],
            [-1.5, 0.25],
            [0.0, 2.0],
            [1.0, 3.0],
            [-inf, nan],
            [nan, inf],
        ],
    };
    let side = |side: usize| given(dtype, &[pairs.len()], pairs.iter().map(|pair| pair[side]).collect());
    // 64 and 18 times a logarithm whose argument, rounded to storage on both sides alike, is near 1.
    let tolerance = tolerance(dtype, of_exponential(10.0) + 40.0);
    Case::new(
        format!("{dtype} {f:?} edges"),
        chain(&[Step::Binary(f, Operand::Input(1))]),
        vec![side(0), side(1)],
        tolerance,
    )
}

/// Around the 256 elements of a workgroup, zero, odd numbers of halves, several workgroups.
fn sizes(dtype: Dtype) -> Vec<Case> {
    let case = |shape: &[usize]| {
        let inputs = vec![CaseInput::normal(dtype, shape, 1.0), CaseInput::normal(dtype, shape, 1.0)];
        let steps = [Step::Binary(Binary::Mul, Operand::Input(1))];
        Case::new(format!("{dtype} {shape:?} product"), chain(&steps), inputs, tolerance(dtype, 2.0))
    };
    let shapes: [&[usize]; 10] =
        [&[], &[1], &[2], &[63], &[255], &[256], &[257], &[100_003], &[3, 0, 5], &[2, 3, 5, 7, 11, 3]];
    shapes.map(case).into()
}

/// Every kind of broadcast: rows, columns, both sides, leading axes, inner axes of one and three inputs, bool.
fn broadcasts(dtype: Dtype) -> Vec<Case> {
    let shapes: [&[&[usize]]; 12] = [
        &[&[7, 65], &[65]],
        &[&[65], &[7, 65]],
        &[&[7, 65], &[7, 1]],
        &[&[7, 1], &[1, 65]],
        &[&[3, 5, 67], &[]],
        &[&[], &[3, 5, 67]],
        &[&[2, 3, 4, 5], &[3, 1, 5]],
        &[&[2, 1, 4, 1, 5, 1], &[3, 1, 7, 1, 2]],
        &[&[1, 3, 1], &[5, 1, 2], &[3, 2]],
        &[&[2, 3, 33], &[33], &[2, 1, 33], &[3, 1]],
        &[&[4, 1], &[0]],
        &[&[130, 2100], &[2100], &[130, 1]],
    ];
    let operations = [Binary::Add, Binary::Mul, Binary::Sub];
    let mut cases: Vec<Case> = Vec::new();
    for shapes in shapes {
        let inputs: Vec<_> = shapes.iter().map(|shape| CaseInput::normal(dtype, shape, 1.0)).collect();
        let steps: Vec<Step> =
            (1..shapes.len()).map(|input| Step::Binary(operations[input - 1], Operand::Input(input))).collect();
        // A difference may cancel: it is off by a rounding of its parts, which reach 100.
        let tolerance = tolerance(dtype, 4.0);
        let tolerance = Tolerance { absolute: tolerance.absolute + 100.0 * EPSILON_F32, ..tolerance };
        cases.push(Case::new(format!("{dtype} {shapes:?}"), chain(&steps), inputs, tolerance));
    }
    for (shape, mask) in [([5, 67], vec![67]), ([5, 67], vec![5, 1]), ([5, 67], vec![5, 67])] {
        let keep = Values::Mask { keep: 0.7, empty_rows: false };
        let mask_input = CaseInput { desc: TensorDesc::new(Dtype::Bool, mask.clone()), values: keep };
        let inputs = vec![CaseInput::normal(dtype, &shape, 1.0), mask_input];
        let steps = [Step::Binary(Binary::Mul, Operand::Input(1))];
        cases.push(Case::new(
            format!("{dtype} {shape:?} times bool {mask:?}"),
            chain(&steps),
            inputs.clone(),
            tolerance(dtype, 1.0),
        ));
        let inputs: Vec<_> = inputs.into_iter().rev().collect();
        cases.push(Case::new(
            format!("{dtype} bool {mask:?} times {shape:?}"),
            chain(&steps),
            inputs,
            tolerance(dtype, 1.0),
        ));
    }
    cases
}

/// The value alone, input 0 read twice, eight steps with four inputs.
fn chains(dtype: Dtype) -> Vec<Case> {
    let input = |shape: &[usize]| CaseInput::normal(dtype, shape, 1.0);
    let gate = [Step::Unary(Unary::Sigmoid), Step::Binary(Binary::Mul, Operand::Input(0))];
    let long = [
        Step::Binary(Binary::Add, Operand::Input(1)),
        Step::Unary(Unary::Tanh),
        Step::Binary(Binary::Mul, Operand::Input(2)),
        Step::Reversed(Binary::Sub, Operand::Scalar(1.0)),
        Step::Binary(Binary::Max, Operand::Input(3)),
        Step::Unary(Unary::Abs),
        Step::Binary(Binary::Add, Operand::Scalar(0.5)),
        Step::Unary(Unary::Rsqrt),
    ];
    let inputs = vec![input(&[3, 5, 129]), input(&[129]), input(&[5, 1]), input(&[3, 1, 129])];
    // Eight steps of numbers up to 6, of which the tangent and the difference may be off by 20 roundings of 5 each; the
    // last divides by at least 0.5, so that errors grow threefold.
    let wide = tolerance(dtype, 40.0);
    let wide = Tolerance { absolute: wide.absolute + 300.0 * EPSILON_F32, ..wide };
    vec![
        Case::new(format!("{dtype} no step"), chain(&[]), vec![input(&[3, 77])], tolerance(dtype, 0.0)),
        Case::new(
            format!("{dtype} no step, broadcast"),
            chain(&[]),
            vec![input(&[77]), input(&[3, 1])],
            tolerance(dtype, 0.0),
        ),
        Case::new(
            format!("{dtype} x sigmoid(x)"),
            chain(&gate),
            vec![input(&[5, 211])],
            tolerance(dtype, of_exponential(5.0)),
        ),
        Case::new(format!("{dtype} eight steps, four inputs"), chain(&long), inputs, wide),
    ]
}

/// 67,266 workgroups.
fn many_workgroups() -> Case {
    let inputs = vec![CaseInput::normal(Dtype::F32, &[4100, 1], 1.0), CaseInput::normal(Dtype::F32, &[4200], 1.0)];
    let steps = [Step::Binary(Binary::Mul, Operand::Input(1))];
    Case::new("f32 [4100, 1] times [4200]", chain(&steps), inputs, tolerance(Dtype::F32, 2.0))
}

fn chain(steps: &[Step]) -> Elementwise {
    Elementwise { steps: steps.to_vec() }
}

fn given(dtype: Dtype, shape: &[usize], values: Vec<f32>) -> CaseInput {
    let tensor = match dtype {
        Dtype::F16 => HostTensor::f16(shape, values.into_iter().map(f16::from_f32).collect()),
        _ => HostTensor::f32(shape, values),
    };
    let tensor = tensor.expect("as many values as the shape says");
    CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) }
}
