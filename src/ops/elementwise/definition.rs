//! What a step is, in f64.

use super::{Binary, Operand, Step, Unary};

/// The value after all steps, `inputs` being the elements that belong together.
pub(in crate::ops) fn value(steps: &[Step], inputs: &[f64]) -> f64 {
    let operand = |operand: Operand| match operand {
        Operand::Input(input) => inputs[input],
        Operand::Scalar(scalar) => f64::from(scalar),
    };
    steps.iter().fold(inputs[0], |x, step| match *step {
        Step::Unary(f) => unary(f, x),
        Step::Binary(f, other) => binary(f, x, operand(other)),
        Step::Reversed(f, other) => binary(f, operand(other), x),
    })
}

fn unary(f: Unary, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let clamp = |x: f64, min: f64, max: f64| {
        if x < min {
            min
        } else if x > max {
            max
        } else {
            x
        }
    };
    match f {
        Unary::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
        Unary::LeakyRelu { alpha } => {
            if x < 0.0 {
                f64::from(alpha) * x
            } else {
                x
            }
        }
        Unary::Elu { alpha } => {
            if x < 0.0 {
                f64::from(alpha) * x.exp_m1()
            } else {
                x
            }
        }
        Unary::Gelu => 0.5 * x * erfc(-x / 2.0_f64.sqrt()),
        // (1 + tanh u) / 2 without its cancellation.
        Unary::GeluTanh => x * sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))),
        Unary::Silu => x * sigmoid(x),
        Unary::Swish { beta } => x * sigmoid(f64::from(beta) * x),
        Unary::Tanh => x.tanh(),
        Unary::Sigmoid => sigmoid(x),
        Unary::HardSigmoid { alpha, beta } => clamp(f64::from(alpha) * x + f64::from(beta), 0.0, 1.0),
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Sqrt => x.sqrt(),
        Unary::Rsqrt => 1.0 / x.sqrt(),
        Unary::Neg => -x,
        Unary::Abs => x.abs(),
        Unary::Erf => 1.0 - erfc(x),
        Unary::Softplus => x.max(0.0) + if x.is_nan() { x } else { (-x.abs()).exp().ln_1p() },
        Unary::Reciprocal => 1.0 / x,
        Unary::Clamp { min, max } => clamp(x, f64::from(min), f64::from(max)),
    }
}

fn binary(f: Binary, a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        return f64::NAN;
    }
    match f {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Min => a.min(b),
        Binary::Max => a.max(b),
        Binary::Pow => a.powf(b),
    }
}

/// `2/√π ∫ e^(−t²) dt` from x to infinity: near 0 from the series of the error function, whose terms are all of one
/// sign, and from its continued fraction elsewhere. Within 1e-13, relatively.
fn erfc(x: f64) -> f64 {
    let root = std::f64::consts::PI.sqrt();
    if x.is_nan() {
        x
    } else if x < 0.0 {
        2.0 - erfc(-x)
    } else if x < 1.5 {
        let mut term = x;
        let mut sum = x;
        for n in 1..60 {
            term *= 2.0 * x * x / f64::from(2 * n + 1);
            sum += term;
        }
        1.0 - 2.0 / root * (-x * x).exp() * sum
    } else if x > 27.0 {
        0.0
    } else {
        let fraction = (1..200).rev().fold(x, |below, k| x + 0.5 * f64::from(k) / below);
        (-x * x).exp() / (root * fraction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_from_tables() {
        // Abramowitz and Stegun, tables 7.1 and 7.3.
        for (x, wanted) in
            [(0.0, 0.0), (0.5, 0.5204998778), (1.0, 0.8427007929), (2.0, 0.9953222650), (-1.0, -0.8427007929)]
        {
            assert!((unary(Unary::Erf, x) - wanted).abs() < 1e-10, "{x}");
        }
        assert!((erfc(3.0) / 2.209049699858544e-5 - 1.0).abs() < 1e-12);
        assert!((erfc(1.4999999) / erfc(1.5000001) - 1.0).abs() < 1e-6);
        assert!((unary(Unary::Gelu, 1.0) - 0.8413447461).abs() < 1e-10);
        assert!((unary(Unary::GeluTanh, 1.0) - 0.8411919906).abs() < 1e-10);
        assert!((unary(Unary::Silu, 1.0) - 0.7310585786).abs() < 1e-10);
        assert!((unary(Unary::Softplus, 0.0) - 2f64.ln()).abs() < 1e-15);
        assert_eq!(unary(Unary::HardSigmoid { alpha: 0.25, beta: 0.5 }, 1.0), 0.75);
        assert_eq!(unary(Unary::LeakyRelu { alpha: 0.5 }, -3.0), -1.5);
        assert!((unary(Unary::Elu { alpha: 2.0 }, -1.0) + 1.2642411177).abs() < 1e-10);
    }

    #[test]
    fn steps_follow_each_other() {
        let steps = [
            Step::Binary(Binary::Sub, Operand::Input(1)),
            Step::Reversed(Binary::Div, Operand::Scalar(6.0)),
            Step::Unary(Unary::Neg),
            Step::Reversed(Binary::Pow, Operand::Input(0)),
        ];
        // 6 / (5 − 2) = 2, then −2, then 5⁻².
        assert!((value(&steps, &[5.0, 2.0]) - 0.04).abs() < 1e-15);
        assert_eq!(value(&[], &[3.0]), 3.0);
    }

    #[test]
    fn nan_passes() {
        for f in [Unary::Relu, Unary::Gelu, Unary::Erf, Unary::Softplus, Unary::Clamp { min: 0.0, max: 1.0 }] {
            assert!(unary(f, f64::NAN).is_nan(), "{f:?}");
        }
        for f in [Binary::Min, Binary::Max, Binary::Pow] {
            assert!(binary(f, f64::NAN, 0.0).is_nan() && binary(f, 1.0, f64::NAN).is_nan(), "{f:?}");
        }
    }
}
