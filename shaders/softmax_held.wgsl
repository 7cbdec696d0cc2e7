// softmax_held: y = softmax(scale · x) along the last axis; a row of −inf only gives zeros.
//
//   x, y   [rows, length], length from 1 to 4 · FOURS · TEAM
//   sinks  [heads], one more score for the rows of a head, [.., heads, seq_q, length], that is not scaled (sinks_dense)
//
// A team of TEAM lanes owns one row and holds it in registers (held_row): it reads and writes each element once, four at a
// time where the length allows it (held_fours). A workgroup has LANES / TEAM teams, which share its barriers; those past
// the last row compute that one and store nothing.

const LANES: u32 = 256u; // host
const TEAM: u32 = 256u; // host
alias Elem = f32; // host
const_assert LANES % TEAM == 0u;

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
@group(0) @binding(1) var<storage, read> x: array<Cell>;
@group(0) @binding(2) var<storage, read_write> y: array<Cell>;

fn taken(start: u32, member: u32, k: u32) -> vec4<f32> {
    return select(vec4(params.excluded), params.scale * loaded(start, member, k), are_inside(member, k));
}

// Scores into weights. Zero for −inf whatever the maximum is.
fn changed(scores: vec4<f32>, member: u32, k: u32, maximum: f32) -> vec4<f32> {
    return select(exp(scores - maximum), vec4<f32>(), bitcast<vec4<u32>>(scores) == vec4(0xff800000u));
}

fn put(weights: vec4<f32>, start: u32, member: u32, k: u32, inverse: f32) {
    store(start, member, k, weights * inverse);
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
    let own = sink(row / params.seq_q % params.heads);

    let scores = held(start, member);
    let maximum = max(max(LOWEST, own), team_max(lane, held_max(scores), 0u));
    let weights = held_changed(scores, member, maximum);
    let own_weight = select(exp(own - maximum), 0.0, is_excluded(own));
    let sum = team_sum(lane, held_sum(weights), 1u) + own_weight;

    // A sum of zero means that every entry was −inf. A NaN sum is kept.
    if first + lane / TEAM < params.rows {
        held_put(weights, start, member, select(1.0 / sum, 0.0, sum == 0.0));
    }
}
