// rms_norm_held: y = x / √(mean(x²) + epsilon) × weight along the last axis (Zhang and Sennrich, arXiv:1910.07467).
//
//   x, y    [rows, length], length from 1 to 4 · FOURS · TEAM
//   weight  [length] (lib/norm_weight_dense), or none
//
// A team of TEAM lanes owns one row and holds it in registers (held_row): it reads and writes each element once, four at a
// time where the length allows it (held_fours). A workgroup has LANES / TEAM teams, which share its barriers; those past
// the last row compute that one and store nothing.

const LANES: u32 = 256u; // host
const TEAM: u32 = 256u; // host
alias Elem = f32; // host
const_assert LANES % TEAM == 0u;

struct Params {
    rows: u32,
    length: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Cell>;
@group(0) @binding(2) var<storage, read_write> y: array<Cell>;

fn taken(start: u32, member: u32, k: u32) -> vec4<f32> {
    return select(vec4<f32>(), loaded(start, member, k), are_inside(member, k));
}

fn put(values: vec4<f32>, start: u32, member: u32, k: u32, factor: f32) {
    let d = elements(member, k);
    let weight = vec4(norm_weight(d.x), norm_weight(d.y), norm_weight(d.z), norm_weight(d.w));
    store(start, member, k, values * factor * weight);
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

    let values = held(start, member);
    let factor = inverseSqrt(team_sum(lane, held_squares(values), 0u) / f32(params.length) + params.epsilon);
    if first + lane / TEAM < params.rows {
        held_put(values, start, member, factor);
    }
}
