// softmax_row: y = softmax(scale · x) along the last axis; a row of −inf only gives zeros.
//
//   x, y  [rows, length], length from 1 up to the limit of u32 indices
//
// A workgroup owns one row; its lanes walk the row together, LANES elements at a time. The first walk keeps a running
// maximum and sum in each lane (Milakov and Gimelshein, arXiv:1805.02867), one reduction joins them, the second walk writes.

const LANES: u32 = 256u; // host
alias Elem = f32; // host

const LOWEST: f32 = -3.4028234e38;

struct Params {
    rows: u32,
    length: u32,
    scale: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read_write> y: array<Elem>;

// exp(score − maximum), and zero for −inf whatever the maximum is.
fn weight(score: f32, maximum: f32) -> f32 {
    return select(exp(score - maximum), 0.0, is_excluded(score));
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

    var lane_maximum = LOWEST;
    var lane_sum = 0.0;
    for (var i = lane; i < params.length; i += LANES) {
        let score = params.scale * f32(x[start + i]);
        let maximum = max(lane_maximum, score);
        lane_sum = lane_sum * exp(lane_maximum - maximum) + weight(score, maximum);
        lane_maximum = maximum;
    }
    let maximum = reduce_max(lane, lane_maximum);
    let sum = reduce_sum(lane, lane_sum * exp(lane_maximum - maximum));

    // A sum of zero means that every entry was −inf. A NaN sum is kept.
    let inverse = select(1.0 / sum, 0.0, sum == 0.0);
    for (var i = lane; i < params.length; i += LANES) {
        y[start + i] = Elem(weight(params.scale * f32(x[start + i]), maximum) * inverse);
    }
}
