// log_sum_exp_row: y = ln(Σ exp(x) + exp(sink)) along the last axis; −inf for rows that do not exist or have nothing to add up.
//
//   x      [batch, heads, seq_q, seq_kv]
//   y      [batch, heads, seq_q], f32
//   sinks  [heads], one more score for each row of a head (sinks_dense)
//   which rows exist: queries_*
//
// A workgroup owns one row; its lanes walk the row together, LANES elements at a time.

const LANES: u32 = 256u; // host
alias Elem = f32; // host

const LOWEST: f32 = -3.4028234e38;

struct Params {
    rows: u32,
    heads: u32,
    seq_q: u32,
    seq_kv: u32,
    sequences: u32,
    own_batch: u32, // not zero where batch elements have the rows of one sequence each
    excluded: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

fn score(at: u32) -> f32 {
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
    let i = row % params.seq_q;
    let batch = row / (params.seq_q * params.heads);
    let s = sequence_at(batch, i);
    let exists = i - s.q_begin < s.q_count && (params.own_batch == 0u || s.index == batch);
    let total = row_sum(lane, row * params.seq_kv, params.seq_kv, row / params.seq_q % params.heads);
    if lane == 0u {
        y[row] = select(params.excluded, total.maximum + log(total.sum), exists && total.sum != 0.0);
    }
}
