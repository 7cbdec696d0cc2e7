//! The exponential of the softmax, on whole vectors.

use pulp::Simd;

/// `2^r` on [-1/2, 1/2] is `1 + r·(C[0] + r·(C[1] + …))` within 9.2e-8 relative: weighted least squares
/// iterated towards the minimax polynomial, with the constant term held at one so that `exp(0) = 1`.
#[expect(clippy::approx_constant, reason = "the minimax coefficient is three units below ln 2")]
const C: [f32; 5] = [0.693_147, 0.240_222_42, 0.055_507_34, 0.009_671_519, 0.001_326_465];

/// Adding this to a number of magnitude below 2^22 rounds it to an integer `n` and leaves `n + 127`, the
/// exponent field of `2^n`, in the low mantissa bits.
const ROUND: f32 = 12_582_912.0 + 127.0;

/// Below this the exponent field is zero, so the factor `2^n` is the number zero.
const LOWEST: f32 = -88.2;

/// `exp(x)` for `x <= 0` in each lane, down to 2^-126 and exactly zero below (negative infinity included).
/// NaN gives NaN.
///
/// The relative error stays below `2e-7 + 9e-8·|x|`. The second term is the rounding of `x · log2 e`, a sixth of that
/// with fused multiply-add; beside `exp(x)` itself it never exceeds 4e-8 of the largest weight of a softmax,
/// so correcting it would cost an instruction for nothing.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let x = clamp_low(simd, x, simd.splat_f32s(LOWEST));
    let log2_e = simd.splat_f32s(std::f32::consts::LOG2_E);
    let round = simd.splat_f32s(ROUND);
    let shifted = simd.mul_add_e_f32s(x, log2_e, round);
    let n = simd.sub_f32s(shifted, round);
    let r = simd.mul_add_e_f32s(x, log2_e, simd.neg_f32s(n));
    let mut p = simd.splat_f32s(C[4]);
    p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(C[3]));
    p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(C[2]));
    p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(C[1]));
    p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(C[0]));
    p = simd.mul_add_e_f32s(p, r, simd.splat_f32s(1.0));
    let bits = simd.transmute_u32s_f32s(shifted);
    let power = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
    simd.mul_f32s(p, simd.transmute_f32s_u32s(power))
}

/// `max(x, low)` that keeps a NaN in `x`.
#[inline(always)]
pub(super) fn clamp_low<S: Simd>(simd: S, x: S::f32s, low: S::f32s) -> S::f32s {
    // x86 `maxps` returns its second operand when either is NaN; NEON and WebAssembly return the NaN.
    // Only Rust's `f32::max`, which the scalar fallback uses, would drop it.
    if const { S::IS_SCALAR } { simd.select_f32s(simd.less_than_f32s(x, low), low, x) } else { simd.max_f32s(low, x) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pulp::{Arch, Scalar, WithSimd};

    struct Map<'a>(&'a mut [f32]);

    impl WithSimd for Map<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (body, tail) = S::as_mut_simd_f32s(self.0);
            for x in body {
                *x = exp(simd, *x);
            }
            let last = exp(simd, simd.partial_load_f32s(tail));
            simd.partial_store_f32s(tail, last);
        }
    }

    fn check(run: impl Fn(&mut [f32])) {
        let inputs: Vec<f32> = (0..200_003).map(|i| -(i as f32) * 0.0005).collect();
        let mut out = inputs.clone();
        run(&mut out);
        for (&x, &y) in inputs.iter().zip(&out) {
            let exact = f64::from(x).exp();
            // Down to 2^-126 the error is relative; below, either zero or the exact value may stand.
            let allowed = if x > -87.3 { exact * (2e-7 - 9e-8 * f64::from(x)) } else { 1.3e-38 };
            assert!((f64::from(y) - exact).abs() <= allowed, "exp({x}) = {y}");
        }
        let mut special = [0.0, -0.0, f32::NEG_INFINITY, f32::MIN, -1e4, f32::NAN, -88.3];
        run(&mut special);
        assert_eq!(special[..5], [1.0, 1.0, 0.0, 0.0, 0.0]);
        assert!(special[5].is_nan());
        assert_eq!(special[6], 0.0);
    }

    #[test]
    fn matches_f64_in_vectors() {
        check(|x| Arch::new().dispatch(Map(x)));
    }

    #[test]
    fn matches_f64_in_the_scalar_fallback() {
        check(|x| Map(x).with_simd(Scalar));
    }
}
