//! Cases of `linear_attention`, and its definition by hand.

use super::LinearAttention;
use crate::case::{Case, CaseInput, Values};
use crate::compare::Tolerance;
use crate::ops::{EPSILON_F16, EPSILON_F32};
use crate::tensor::{Dtype, HostTensor};

/// The four rules.
const RULES: [[bool; 2]; 4] = [[false, false], [true, false], [false, true], [true, true]];

struct Problem {
    sizes: [usize; 6],
    past: Option<Dtype>,
    /// Decay and beta are there.
    rule: [bool; 2],
    /// Decay of each key row, beta for all heads.
    other_widths: bool,
}

/// Every rule with and without a past, grouped heads, sizes around the 16 columns and the 4 and 16 lanes of each, both widths of
/// decay and of beta, no position, no head_dim, both dtypes and an f32 state beside f16.
pub(in crate::ops) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in [Dtype::F32, Dtype::F16] {
        for rule in RULES {
            for (past, other_widths) in [(None, false), (Some(dtype), true), (Some(Dtype::F32), false)] {
                cases.push(case(dtype, &Problem { sizes: [2, 5, 6, 2, 7, 17], past, rule, other_widths }));
            }
        }
        let sizes = [
            [1, 1, 1, 1, 1, 1],
            [2, 33, 4, 4, 33, 15],
            [1, 129, 8, 1, 64, 33],
            [3, 4, 3, 3, 129, 16],
            [1, 2, 2, 1, 1024, 3],
            [2, 0, 2, 2, 8, 8],
            [0, 3, 2, 2, 8, 8],
        ];
        for sizes in sizes {
            cases.push(case(dtype, &Problem { sizes, past: Some(dtype), rule: [true, true], other_widths: true }));
        }
    }
    // Inputs that may appear twice above.
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    cases.dedup_by(|a, b| a.name == b.name);
    cases
}

fn case(dtype: Dtype, problem: &Problem) -> Case {
    let &Problem { sizes: [batch, seq, heads, kv_heads, n, m], past, rule: [gated, delta], other_widths } = problem;
    let (decay, beta) = if other_widths { (kv_heads * n, 1) } else { (kv_heads, kv_heads) };
    let length = (n as f64).sqrt();
    let mut inputs = vec![
        drawn(dtype, &[batch, seq, heads * n], |x| x),
        // Keys of length 1, or the delta rule does not converge.
        drawn(dtype, &[batch, seq, kv_heads * n], |x| x / length),
        drawn(dtype, &[batch, seq, kv_heads * m], |x| x),
    ];
    inputs.extend(past.map(|dtype| drawn(dtype, &[batch, kv_heads, n, m], |x| x)));
    if gated {
        inputs.push(drawn(dtype, &[batch, seq, decay], |x| -0.1 * x.abs()));
    }
    if delta {
        inputs.push(drawn(dtype, &[batch, seq, beta], |x| 1.0 / (1.0 + (-x).exp())));
    }
    let op = LinearAttention {
        heads,
        kv_heads,
        scale: (heads == 6).then_some(0.25),
        has_past: past.is_some(),
        has_decay: gated,
        has_beta: delta,
    };
    // Each position rounds every element of the state a few times, of which about √seq add up in the worst of them; then come
    // sums of head_dim terms.
    let storage = if dtype == Dtype::F16 { EPSILON_F16 } else { 0.0 };
    let of_scale = 8.0 * (2.0 + (seq as f64).sqrt() + length) * EPSILON_F32 + storage;
    let past = past.map_or("none".into(), |dtype| dtype.to_string());
    let shape = format!("b={batch},s={seq},h={heads},kv={kv_heads},d={n},v={m}");
    let name = format!("{dtype} {shape}, past {past}, decay {gated}, beta {delta}, widths {other_widths}");
    Case::new(name, op, inputs, Tolerance::of_scale(of_scale))
}

/// Normal values, changed.
fn drawn(dtype: Dtype, shape: &[usize], change: impl Fn(f64) -> f64) -> CaseInput {
    let normal = CaseInput::normal(Dtype::F32, shape, 1.0);
    let seed = shape.iter().fold(1, |seed, &size| seed * 31 + size as u64);
    let data = normal.draw(seed).to_f64().into_iter().map(change).collect();
    let tensor = HostTensor::f64(shape, data).expect("as many as were drawn").cast(dtype);
    CaseInput { desc: tensor.desc().clone(), values: Values::Given(tensor) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Op, Rows};
    use crate::tensor::TensorDesc;

    const PLAIN: LinearAttention =
        LinearAttention { heads: 1, kv_heads: 1, scale: Some(1.0), has_past: false, has_decay: false, has_beta: false };

    fn tensor(shape: &[usize], data: &[f32]) -> HostTensor {
        HostTensor::f32(shape, data.to_vec()).unwrap()
    }

    fn run(op: LinearAttention, inputs: &[HostTensor]) -> [Vec<f64>; 2] {
        let outputs = op.reference(&inputs.iter().collect::<Vec<_>>(), Rows::All);
        [0, 1].map(|output| outputs[output].as_f64().unwrap().to_vec())
    }

    #[test]
    fn rules_by_hand() {
        let q = tensor(&[1, 2, 2], &[1.0, 0.0, 1.0, 2.0]);
        let k = tensor(&[1, 2, 2], &[1.0, 0.0, 0.5, 0.5]);
        let v = tensor(&[1, 2, 1], &[3.0, 4.0]);
        let qkv = [q, k, v];
        assert_eq!(run(PLAIN, &qkv), [vec![3.0, 9.0], vec![5.0, 2.0]]);
        // Two positions with S = 2 · [3, 0] + [2, 2].
        let decay = tensor(&[1, 2, 1], &[0.0, 2.0_f32.ln()]);
        let gated = LinearAttention { has_decay: true, ..PLAIN };
        let [y, state] = run(gated, &[&qkv[..], &[decay]].concat());
        assert!((y[1] - 12.0).abs() < 1e-6 && (state[0] - 8.0).abs() < 1e-6 && state[1] == 2.0);
        // The second key recalls 1.5 of 3; half of what is missing to 4 is learnt.
        let beta = tensor(&[1, 2, 1], &[1.0, 0.5]);
        let delta = LinearAttention { has_beta: true, ..PLAIN };
        assert_eq!(run(delta, &[&qkv[..], &[beta]].concat()), [vec![3.0, 4.875], vec![3.625, 0.625]]);
        let past = tensor(&[1, 1, 2, 1], &[10.0, 20.0]);
        let after = LinearAttention { has_past: true, scale: Some(2.0), ..PLAIN };
        assert_eq!(run(after, &[&qkv[..], &[past]].concat()), [vec![26.0, 118.0], vec![15.0, 22.0]]);
    }

    #[test]
    fn query_heads_share_the_state_of_their_key_head() {
        let op = LinearAttention { heads: 4, kv_heads: 2, ..PLAIN };
        let inputs = [
            tensor(&[1, 1, 4], &[1.0, 2.0, 3.0, 4.0]),
            tensor(&[1, 1, 2], &[1.0, 10.0]),
            tensor(&[1, 1, 2], &[1.0, 1.0]),
        ];
        assert_eq!(run(op, &inputs), [vec![1.0, 2.0, 30.0, 40.0], vec![1.0, 10.0]]);
    }

    #[test]
    fn refuses_what_does_not_fit() {
        let desc = |shape: &[usize]| TensorDesc::new(Dtype::F32, shape);
        let refused = |op: LinearAttention, inputs: &[TensorDesc], part: &str| {
            let error = op.outputs(inputs).unwrap_err().to_string();
            assert!(error.starts_with("linear_attention: ") && error.contains(part), "{error}");
        };
        let qkv = [desc(&[1, 3, 4]), desc(&[1, 3, 4]), desc(&[1, 3, 5])];
        refused(PLAIN, &qkv[..2], "got 2 tensors");
        refused(LinearAttention { heads: 3, kv_heads: 2, ..PLAIN }, &qkv, "3 heads are no multiple of 2");
        refused(LinearAttention { heads: 3, ..PLAIN }, &qkv, "not of 3 heads");
        refused(PLAIN, &[desc(&[1, 3, 4]), desc(&[1, 2, 4]), desc(&[1, 3, 5])], "k is f32 [1, 2, 4]");
        refused(PLAIN, &[desc(&[1, 3, 1025]), desc(&[1, 3, 1025]), desc(&[1, 3, 5])], "1025, at most 1024");
        let half = TensorDesc::new(Dtype::F16, [1, 3, 4]);
        refused(PLAIN, &[qkv[0].clone(), half, qkv[2].clone()], "f32 [1, 3, 4] and f16 [1, 3, 4]");
        let with = |extra: &[usize]| [&qkv[..], &[desc(extra)]].concat();
        refused(
            LinearAttention { has_past: true, ..PLAIN },
            &with(&[1, 1, 5, 4]),
            "the past state is f32 [1, 1, 5, 4]",
        );
        refused(LinearAttention { has_decay: true, ..PLAIN }, &with(&[1, 3, 2]), "decay is f32 [1, 3, 2]");
        refused(LinearAttention { has_beta: true, ..PLAIN }, &with(&[1, 3, 4]), "beta is f32 [1, 3, 4]");
        refused(LinearAttention { scale: Some(f32::NAN), ..PLAIN }, &qkv, "scale is NaN");
    }
}
