// What lstm_workgroup and gru_workgroup share: their params, the tensors that both have, h in workgroup memory, and what bends gates.

const UNITS: u32 = (HIDDEN + LANES - 1u) / LANES;

struct Params {
    batch: u32,
    steps: u32,
    backwards: u32,
    repeat_masked: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gates: array<ElemX>;
@group(0) @binding(2) var<storage, read> recurrent: array<ElemR>;
@group(0) @binding(3) var<storage, read_write> sequence: array<Elem>;
@group(0) @binding(4) var<storage, read_write> last_h: array<Elem>;

var<workgroup> wg_h: array<f32, HIDDEN>;

// Past these bounds tanh and σ are what they are there, and drivers that compute them from exponentials overflow. NaN
// passes the clamps by hand.
fn bent(x: f32) -> f32 {
    return select(tanh(clamp(x, -10.0, 10.0)), x, is_nan(x));
}

fn gate(x: f32) -> f32 {
    let soft = 1.0 / (1.0 + exp(-clamp(x, -80.0, 80.0)));
    let hard = clamp(0.2 * x + 0.5, 0.0, 1.0);
    return select(select(soft, hard, HARD_SIGMOID), x, is_nan(x));
}
