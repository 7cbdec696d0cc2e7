//! The hyperbolic tangent of a soft cap, on whole vectors.

use super::exp::clamp_low;
use pulp::{Arch, Simd, WithSimd};

/// `tanh(x)` for `|x| <= END` is `x·P(x²) / Q(x²)` within 3e-8 relative: weighted least squares iterated towards the
/// minimax fraction, both constant terms held at one so that `tanh(x) = x` for small `x`.
const P: [f32; 4] = [0.134_158_66, 0.003_537_085_6, 2.129_949_5e-5, 1.433_317e-8];

/// Coefficients of `Q`, from `x²` on.
const Q: [f32; 4] = [0.467_491_92, 0.026_034_517, 0.000_335_378_37, 8.171_95e-7];

/// From here on the tangent is one within 8.3e-8.
const END: f32 = 8.5;

/// `tanh(x)` in each lane, within 6e-7 relative; NaN gives NaN.
#[inline(always)]
pub fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let low = simd.splat_f32s(-END);
    let x = clamp_low(simd, x, low);
    let x = simd.neg_f32s(clamp_low(simd, simd.neg_f32s(x), low));
    let square = simd.mul_f32s(x, x);
    let numerator = simd.mul_f32s(x, one_plus(simd, P, square));
    simd.div_f32s(numerator, one_plus(simd, Q, square))
}

/// `1 + x·(c[0] + x·(c[1] + …))`.
#[inline(always)]
fn one_plus<S: Simd>(simd: S, c: [f32; 4], x: S::f32s) -> S::f32s {
    let mut sum = simd.splat_f32s(c[3]);
    for c in [c[2], c[1], c[0], 1.0] {
        sum = simd.mul_add_e_f32s(sum, x, simd.splat_f32s(c));
    }
    sum
}

/// `cap · tanh(x / cap)`.
#[inline(always)]
pub fn soft_cap<S: Simd>(simd: S, x: S::f32s, cap: f32) -> S::f32s {
    simd.mul_f32s(tanh(simd, simd.div_f32s(x, simd.splat_f32s(cap))), simd.splat_f32s(cap))
}

/// Caps a row of scores.
pub struct SoftCap<'a> {
    pub scores: &'a mut [f32],
    pub cap: f32,
}

impl SoftCap<'_> {
    /// Runs with the widest vectors of this machine.
    pub fn run(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (body, tail) = S::as_mut_simd_f32s(self.scores);
        for x in body {
            *x = soft_cap(simd, *x, self.cap);
        }
        let last = soft_cap(simd, simd.partial_load_f32s(tail), self.cap);
        simd.partial_store_f32s(tail, last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::Scalar;

    fn check(run: impl Fn(&mut [f32], f32)) {
        // From far below the smallest normal number to beyond the end, both signs, densely where the curve bends.
        let tiny = (0..4000).map(|i| 2f32.powf(i as f32 * 0.035 - 140.0));
        let dense = (0..200_003).map(|i| i as f32 * 0.00005);
        let inputs: Vec<f32> = tiny.chain(dense).flat_map(|x| [x, -x]).chain([1e4, 3e38, -3e38]).collect();
        for cap in [1.0, 0.125, 30.0, 50.0] {
            let mut out: Vec<f32> = inputs.iter().map(|x| x * cap).collect();
            let scaled = out.clone();
            run(&mut out, cap);
            for (&x, &y) in scaled.iter().zip(&out) {
                let exact = f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh();
                // A subnormal is off by its spacing, 1.4e-45, at each of the steps.
                let allowed = 6e-7 * exact.abs() + f64::from(cap.max(1.0)) * 3e-45;
                assert!((f64::from(y) - exact).abs() <= allowed, "{cap} tanh({x} / {cap}) = {y}, not {exact}");
            }
        }
        let mut special = [0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0];
        run(&mut special, 2.0);
        assert!(special[0] == 0.0 && special[3].is_nan() && special[4].is_sign_negative());
        assert!((special[1] - 2.0).abs() < 1e-6 && (special[2] + 2.0).abs() < 1e-6, "{special:?}");
    }

    #[test]
    fn matches_f64_in_vectors() {
        check(|scores, cap| SoftCap { scores, cap }.run());
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            check(|scores, cap| Arch::V3(simd).dispatch(SoftCap { scores, cap }));
        }
    }

    #[test]
    fn matches_f64_in_the_scalar_fallback() {
        check(|scores, cap| SoftCap { scores, cap }.with_simd(Scalar));
    }
}
