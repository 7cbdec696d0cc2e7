// rotary_row: y = rotate(norm(x)), row by row; a row is one head at one position.
//
//   x, y  [batch, heads, seq, head_dim] or [batch, seq, heads, head_dim]: one row after another in either, so that only
//         the step from one position to the next differs, in rows
//
// A workgroup owns one row; its lanes walk it together. A position past the end of the angles counts as their last.

const LANES: u32 = 64u;
alias Elem = f32; // host

struct Params {
    rows: u32,
    heads: u32,
    seq: u32,
    step: u32,
    head_dim: u32,
    rotary_dim: u32,
    interleaved: u32,
    per_token: u32,
    positions: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read_write> y: array<Elem>;

fn load(at: u32) -> f32 {
    return f32(x[at]);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.x + workgroup.y * workgroups.x;
    if row >= params.rows {
        return;
    }
    let i = row / params.step % params.seq;
    let batch = row / (params.heads * params.seq);
    let start = row * params.head_dim;
    let factor = norm_factor(lane, start, params.head_dim);
    let place = min(position(batch, i), params.positions - 1u);
    let angles = select(place, batch * params.seq + i, params.per_token != 0u) * (params.rotary_dim / 2u);
    for (var d = lane; d < params.head_dim; d += LANES) {
        y[start + d] = Elem(rotated(start, d, factor, angles));
    }
}
