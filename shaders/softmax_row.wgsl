// softmax_row: y = softmax(scale · x) along the last axis; a row of −inf only gives zeros.
//
//   x, y   [rows, length], length from 1 up to the limit of u32 indices
//   sinks  [heads], one more score for the rows of a head, [.., heads, seq_q, length], that is not scaled (sinks_dense)
//
// A workgroup owns one row; its lanes walk the row together, LANES elements at a time: once for maximum and sum, once to write.

const LANES: u32 = 256u; // host
alias Elem = f32; // host

const LOWEST: f32 = -3.4028234e38;

struct Params {
    rows: u32,
    length: u32,
    scale: f32,
    heads: u32,
    seq_q: u32,
    excluded: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read_write> y: array<Elem>;

fn score(at: u32) -> f32 {
    return params.scale * f32(x[at]);
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
    let total = row_sum(lane, start, params.length, row / params.seq_q % params.heads);

    // A sum of zero means that every entry was −inf. A NaN sum is kept.
    let inverse = select(1.0 / total.sum, 0.0, total.sum == 0.0);
    for (var i = lane; i < params.length; i += LANES) {
        y[start + i] = Elem(weight(score(start + i), total.maximum) * inverse);
    }
}
