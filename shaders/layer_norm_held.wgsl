// layer_norm_held: y = (x − mean) / √(variance + epsilon) · scale + bias, where mean and variance are those of a row.
//
//   x, y         [rows, length], length from 1 to 4 · FOURS · TEAM
//   scale, bias  repeat along x and y, which their lengths divide; WHOLE when both lengths are a row's
//
// A team of TEAM lanes owns one row and holds it in registers (held_row): it reads and writes each element once, four at a
// time where the length allows it (held_fours). A workgroup has LANES / TEAM teams, which share its barriers; those past
// the last row compute that one and store nothing. Mean and variance come from the differences to a rough mean, as in
// layer_norm_row.

const LANES: u32 = 256u; // host
const TEAM: u32 = 256u; // host
alias Elem = f32; // host
alias ScaleElem = f32; // host
const WHOLE: bool = false; // host
const_assert LANES % TEAM == 0u;

struct Params {
    rows: u32,
    length: u32,
    scale_length: u32,
    bias_length: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Cell>;
@group(0) @binding(2) var<storage, read> scale: array<ScaleElem>;
@group(0) @binding(3) var<storage, read_write> y: array<Cell>;

fn taken(start: u32, member: u32, k: u32) -> vec4<f32> {
    return select(vec4<f32>(), loaded(start, member, k), are_inside(member, k));
}

// Elements into differences to the mean. Past the row's end there is nothing to differ.
fn changed(values: vec4<f32>, member: u32, k: u32, mean: f32) -> vec4<f32> {
    return select(vec4<f32>(), values - mean, are_inside(member, k));
}

// Elements of what repeats. Remainders take longer than all the rest, so the host says where there are none.
fn repeated(start: u32, d: vec4<u32>, length: u32) -> vec4<u32> {
    if WHOLE {
        return d;
    }
    return (start + d) % length;
}

fn put(differences: vec4<f32>, start: u32, member: u32, k: u32, inverse: f32) {
    let d = elements(member, k);
    let s = repeated(start, d, params.scale_length);
    let b = repeated(start, d, params.bias_length);
    let factor = vec4(f32(scale[s.x]), f32(scale[s.y]), f32(scale[s.z]), f32(scale[s.w]));
    let shift = vec4(column_bias(b.x), column_bias(b.y), column_bias(b.z), column_bias(b.w));
    store(start, member, k, differences * inverse * factor + shift);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (workgroup.x + workgroup.y * workgroups.x) * (LANES / TEAM);
    if first >= params.rows {
        return;
    }
    let row = min(first + lane / TEAM, params.rows - 1u);
    let member = lane % TEAM;
    let start = row * params.length;
    let length = f32(params.length);

    let values = held(start, member);
    let rough = team_sum(lane, held_sum(values), 0u) / length;
    let differences = held_changed(values, member, rough);
    let lost = team_sum(lane, held_sum(differences), 1u) / length;
    let squares = team_sum(lane, held_squares(differences), 0u) / length;
    let inverse = 1.0 / sqrt(max(squares - lost * lost, 0.0) + params.epsilon);

    if first + lane / TEAM < params.rows {
        held_put(held_changed(differences, member, lost), start, member, inverse);
        if member == 0u {
            store_statistics(row, rough + lost, inverse);
        }
    }
}
