// rms_norm_row: y = x / √(mean(x²) + epsilon) × weight along the last axis (Zhang and Sennrich, arXiv:1910.07467).
//
//   x, y    [rows, length]
//   weight  [length] (lib/norm_weight_dense), or none
//
// A workgroup owns one row; its lanes walk it together, twice.

const LANES: u32 = 256u; // host
alias Elem = f32; // host

struct Params {
    rows: u32,
    length: u32,
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
    let start = row * params.length;
    let factor = norm_factor(lane, start, params.length);
    for (var d = lane; d < params.length; d += LANES) {
        y[start + d] = Elem(normed(start, d, factor));
    }
}
