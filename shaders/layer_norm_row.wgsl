// layer_norm_row: y = (x − mean) / √(variance + epsilon) · scale + bias, where mean and variance are those of a row.
//
//   x, y         [rows, length], length from 1
//   scale, bias  repeat along x and y, which their lengths divide
//
// A workgroup owns one row; its lanes walk the row together, LANES elements at a time. Three walks: the sum; the
// differences to its mean and their squares, which one walk over x² would lose to cancellation; the results. What the mean lost to
// rounding is the mean of the differences: it matters where a row's elements are close to each other.

const LANES: u32 = 256u; // host
alias Elem = f32; // host
alias ScaleElem = f32; // host

struct Params {
    rows: u32,
    length: u32,
    scale_length: u32,
    bias_length: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read> scale: array<ScaleElem>;
@group(0) @binding(3) var<storage, read_write> y: array<Elem>;

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

    var lane_sum = 0.0;
    for (var i = lane; i < params.length; i += LANES) {
        lane_sum += f32(x[start + i]);
    }
    let rough = reduce_sum(lane, lane_sum) / f32(params.length);

    var lane_differences = 0.0;
    var lane_squares = 0.0;
    for (var i = lane; i < params.length; i += LANES) {
        let difference = f32(x[start + i]) - rough;
        lane_differences += difference;
        lane_squares += difference * difference;
    }
    let lost = reduce_sum(lane, lane_differences) / f32(params.length);
    let variance = max(reduce_sum(lane, lane_squares) / f32(params.length) - lost * lost, 0.0);
    let inverse = 1.0 / sqrt(variance + params.epsilon);

    for (var i = start + lane; i < start + params.length; i += LANES) {
        let normal = (f32(x[i]) - rough - lost) * inverse;
        y[i] = Elem(normal * f32(scale[i % params.scale_length]) + column_bias(i % params.bias_length));
    }
    if lane == 0u {
        store_statistics(row, rough + lost, inverse);
    }
}
