//! Functions of one f32, without branches, so that a loop over them is vectorised with the instruction set of the
//! caller.
//!
//! NaN gives NaN everywhere. Results below the smallest normal number may be zero.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, LOG2_E, SQRT_2};

/// Adding and subtracting it rounds a number of magnitude below 2²² to an integer.
const ROUND: f32 = 12_582_912.0;

/// ln 2 in two parts, of which the first has nine bits, so that a small integer times it is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `c[0]·xⁿ + … + c[n]`.
#[inline(always)]
fn polynomial<const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut sum = c[0];
    for c in &c[1..] {
        sum = sum * x + c;
    }
    sum
}

/// `eˣ` within 2e-7, relatively; zero below e^-87 and infinity from where f32 ends.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let inside = if x > 88.8 { 88.8 } else { x };
    let inside = if inside < -87.0 { -87.0 } else { inside };
    let shifted = inside * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (inside - n * LN_2_HIGH) - n * LN_2_LOW;
    // Taylor: the first term left out, r⁷/7!, is below 2e-7 · r at |r| = ln 2 / 2, and so is weighed by r.
    let p = polynomial(r, [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0]);
    // 2ⁿ in two factors: n reaches 128, which no exponent holds. The mantissa of the shifted number ends in n.
    let power = f32::from_bits((shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(126)) << 23);
    let y = p * power * 2.0;
    if x < -87.0 { 0.0 } else { y }
}

/// The natural logarithm within 3e-7, relatively; −infinity for zero, NaN below.
#[inline(always)]
pub fn log(x: f32) -> f32 {
    let subnormal = x < f32::MIN_POSITIVE;
    let bits = (if subnormal { x * 8_388_608.0 } else { x }).to_bits();
    let exponent = (bits >> 23) as i32 - if subnormal { 150 } else { 127 };
    let mantissa = f32::from_bits((bits & 0x007f_ffff) | 0x3f80_0000);
    let large = mantissa > SQRT_2;
    let mantissa = if large { 0.5 * mantissa } else { mantissa };
    let n = (exponent + i32::from(large)) as f32;
    // ln m = 2 artanh((m − 1) / (m + 1)), whose argument stays within 0.172.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let y = n * LN_2_LOW + 2.0 * s * artanh_ratio(s * s) + n * LN_2_HIGH;
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    let y = if x < 0.0 { f32::NAN } else { y };
    if x < f32::INFINITY { y } else { x }
}

/// `artanh(s) / s` from s², for |s| ≤ 1/3, within 2e-8.
#[inline(always)]
fn artanh_ratio(square: f32) -> f32 {
    polynomial(square, [1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 0.2, 1.0 / 3.0, 1.0])
}

/// Within 2e-7, relatively. Moshier, Cephes 2.8, `tanhf.c`.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let c = [-5.704_988_7e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1];
    let near = x + x * z * polynomial(z, c);
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.625 { near } else { far.copysign(x) }
}

/// `eˣ − 1` for x ≤ 0, within 6e-7, relatively.
#[inline(always)]
pub fn exp_minus_one(x: f32) -> f32 {
    let t = tanh(0.5 * x);
    2.0 * t / (1.0 - t)
}

/// `1 / (1 + e^−x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    let e = exp(-x.abs());
    (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// `ln(1 + eˣ)`.
#[inline(always)]
pub fn softplus(x: f32) -> f32 {
    let e = exp(-x.abs());
    let s = e / (2.0 + e);
    (if x < 0.0 { 0.0 } else { x }) + 2.0 * s * artanh_ratio(s * s)
}

/// Within 2e-7, relatively.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    let far = (1.0 - erfc_tail(x.abs())).copysign(x);
    choose(x.abs() < 1.0, erf_near(x), far)
}

/// `1 − erf(x)`: relatively within 1e-6 near 0 and `2e-7 · (1 + x²)` far to the right.
#[inline(always)]
pub fn erfc(x: f32) -> f32 {
    let tail = erfc_tail(x.abs());
    let far = if x < 0.0 { 2.0 - tail } else { tail };
    choose(x.abs() < 1.0, 1.0 - erf_near(x), far)
}

/// `a` or `b`, by their bits: LLVM turns an `if` around the two halves of erf into jumps, and leaves the loop scalar.
#[inline(always)]
fn choose(first: bool, a: f32, b: f32) -> f32 {
    let mask = u32::from(first).wrapping_neg();
    f32::from_bits((a.to_bits() & mask) | (b.to_bits() & !mask))
}

/// For |x| < 1. Moshier, Cephes 2.8, `ndtrf.c`.
#[inline(always)]
fn erf_near(x: f32) -> f32 {
    let c =
        [7.853_861e-5, -8.010_194e-4, 5.188_328e-3, -2.685_381_2e-2, 1.128_358_5e-1, -3.761_262_6e-1, FRAC_2_SQRT_PI];
    x * polynomial(x * x, c)
}

/// `erfc(t)` for t ≥ 1. Moshier, Cephes 2.8, `ndtrf.c`.
#[inline(always)]
fn erfc_tail(t: f32) -> f32 {
    let q = 1.0 / t;
    let z = q * q;
    let middle = [
        2.326_82e-2,
        -1.387_039_4e-1,
        3.687_424_7e-1,
        -5.824_733e-1,
        6.210_004_6e-1,
        -4.944_515_3e-1,
        3.404_88e-1,
        -2.741_127e-1,
        5.638_259_4e-1,
    ];
    let right = [
        -1.047_766_4e1,
        1.297_72e1,
        -7.495_519,
        2.921_019,
        -1.015_265_3,
        4.218_463_4e-1,
        -2.820_767_5e-1,
        5.641_896e-1,
    ];
    let (middle, right) = (polynomial(z, middle), polynomial(z, right));
    let p = if t < 2.0 { middle } else { right };
    exp(-t * t) * q * p
}

/// `x · Φ(x)`, Φ being the normal distribution.
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    0.5 * x * erfc(-x * FRAC_1_SQRT_2)
}

/// The same with Φ(x) replaced by `(1 + tanh(√(2/π) (x + 0.044715 x³))) / 2`, which is a sigmoid of twice that
/// argument.
#[inline(always)]
pub fn gelu_tanh(x: f32) -> f32 {
    // Φ is 0 or 1 long before ±100, where the cube is still finite.
    let c = if x > 100.0 { 100.0 } else { x };
    let c = if c < -100.0 { -100.0 } else { c };
    x * sigmoid(1.595_769 * (c + 0.044_715 * c * c * c))
}

/// `xʸ` for an integer y of magnitude up to 64, by multiplication.
#[inline(always)]
pub fn integer_power(x: f32, y: i32) -> f32 {
    let (mut rest, mut base, mut result) = (y.unsigned_abs(), x, 1.0);
    while rest > 0 {
        result *= if rest & 1 == 1 { base } else { 1.0 };
        base *= base;
        rest /= 2;
    }
    let result = if y < 0 { 1.0 / result } else { result };
    if x.is_nan() { x } else { result }
}

/// `xʸ`; NaN when either is.
#[inline(always)]
pub fn power(x: f32, y: f32) -> f32 {
    if x.is_nan() || y.is_nan() { f32::NAN } else { x.powf(y) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `2/√π e^(−x²) Σ 2ⁿ x^(2n+1) / (2n+1)!!`.
    fn erf_exact(x: f64) -> f64 {
        let (mut term, mut sum, mut n) = (x, x, 0.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
    }

    /// The continued fraction for x > 1.
    fn erfc_exact(x: f64) -> f64 {
        let fraction = (1..400).rev().fold(x, |below, k| x + 0.5 * f64::from(k) / below);
        (-x * x).exp() / (std::f64::consts::PI.sqrt() * fraction)
    }

    /// Relative error at most `relative`, apart from what lies below the normal numbers.
    fn check(name: &str, from: f32, to: f32, relative: f64, got: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) {
        let mut worst = (0.0, 0.0);
        for i in 0..=100_000 {
            let x = from + (to - from) * (i as f32 / 100_000.0);
            let (got, exact) = (f64::from(got(x)), exact(f64::from(x)));
            let error = ((got - exact).abs() - 3e-38).max(0.0) / exact.abs();
            if !(error <= worst.0) {
                worst = (error, x);
            }
        }
        assert!(worst.0 <= relative, "{name}: off by {:e} at {}", worst.0, worst.1);
    }

    #[test]
    fn within_what_they_promise() {
        check("exp", -87.0, 88.7, 2e-7, exp, f64::exp);
        check("log", 1e-3, 3.0, 3e-7, log, f64::ln);
        check("log", 1e-30, 1e30, 3e-7, log, f64::ln);
        check("tanh", 1e-6, 12.0, 2e-7, tanh, f64::tanh);
        check("exp − 1", -30.0, -1e-6, 6e-7, exp_minus_one, f64::exp_m1);
        check("sigmoid", -80.0, 80.0, 3e-7, sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
        check("softplus", -80.0, 80.0, 4e-7, softplus, |x| x.exp().ln_1p());
        check("erf", 1e-6, 5.0, 2e-7, erf, erf_exact);
        check("erf", -5.0, -1e-6, 2e-7, erf, erf_exact);
        check("erfc", -5.0, 1.0, 1e-6, erfc, |x| 1.0 - erf_exact(x));
        check("erfc", 1.0, 9.0, 2e-7 * 82.0, erfc, erfc_exact);
    }

    #[test]
    fn gelu_keeps_its_tail() {
        let exact =
            |x: f64| 0.5 * x * if x < -1.5 { erfc_exact(-x / 2f64.sqrt()) } else { 1.0 + erf_exact(x / 2f64.sqrt()) };
        check("gelu", -1.5, 8.0, 1e-6, gelu, exact);
        check("gelu", -12.0, -1.5, 2e-5, gelu, exact);
        let exact =
            |x: f64| x / (1.0 + (-2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).exp());
        check("gelu_tanh", -1.5, 8.0, 1e-6, gelu_tanh, exact);
        check("gelu_tanh", -9.0, -1.5, 2e-5, gelu_tanh, exact);
    }

    #[test]
    fn edges() {
        let infinity = f32::INFINITY;
        assert_eq!([exp(-infinity), exp(infinity), exp(0.0), exp(89.0)], [0.0, infinity, 1.0, infinity]);
        assert_eq!([log(0.0), log(infinity), log(1.0)], [-infinity, infinity, 0.0]);
        assert!((log(1e-42) - 1e-42f32.ln()).abs() < 1e-4 && log(-1.0).is_nan());
        assert_eq!(
            [tanh(infinity), tanh(-infinity), tanh(1e30), erf(infinity), erf(-infinity)],
            [1.0, -1.0, 1.0, 1.0, -1.0]
        );
        assert_eq!([sigmoid(-infinity), sigmoid(infinity), softplus(-infinity)], [0.0, 1.0, 0.0]);
        assert_eq!(
            [softplus(infinity), gelu(infinity), gelu_tanh(infinity), gelu_tanh(-1e30)],
            [infinity, infinity, infinity, 0.0]
        );
        assert_eq!([integer_power(-2.0, 3), integer_power(2.0, -2), integer_power(5.0, 0)], [-8.0, 0.25, 1.0]);
        for f in [exp, log, tanh, exp_minus_one, sigmoid, softplus, erf, erfc, gelu, gelu_tanh] {
            assert!(f(f32::NAN).is_nan());
        }
        assert!(integer_power(f32::NAN, 0).is_nan() && power(f32::NAN, 0.0).is_nan() && power(1.0, f32::NAN).is_nan());
    }
}
