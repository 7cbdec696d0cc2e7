// masked_softmax_row: y = softmax(m) along the last axis, where m is what mask_scores makes of x; a row of −inf only gives zeros.
//
//   x, y  [batch, heads, seq_q, seq_kv]
//   mask  boolean, broadcast to x (allow_dense); bias  additive, broadcast to x (bias_dense)
//   slopes  of ALiBi (slopes_dense); which queries and keys there are, and which belong together: queries_*, keys_*
//   sinks  [heads], one more score for the rows of a head, which nothing masks (sinks_dense)
//
// A workgroup owns one row; its lanes walk the row together, LANES elements at a time: for the maximum, for the weights and their
// sum, and to divide. The first two mask the scores anew, so that those are never stored; a lane reads what itself has written.

const LANES: u32 = 256u; // host
alias Elem = f32; // host

const LOWEST: f32 = -3.4028234e38;

@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read_write> y: array<Elem>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = workgroup.x + workgroup.y * workgroups.x;
    if row >= params.count / params.seq_kv {
        return;
    }
    take_row(row);
    let own_sink = sink(row / params.seq_q % params.heads);
    let start = row * params.seq_kv;
    let end = start + params.seq_kv;
    var lane_maximum = max(LOWEST, own_sink);
    for (var at = start + lane; at < end; at += LANES) {
        lane_maximum = max(lane_maximum, masked(f32(x[at]), at));
    }
    let maximum = reduce_max(lane, lane_maximum);
    var lane_sum = 0.0;
    for (var at = start + lane; at < end; at += LANES) {
        let score = masked(f32(x[at]), at);
        // Zero for −inf whatever the maximum is.
        let weight = select(exp(score - maximum), 0.0, is_excluded(score));
        y[at] = Elem(weight);
        lane_sum += weight;
    }
    let sum = reduce_sum(lane, lane_sum) + select(exp(own_sink - maximum), 0.0, is_excluded(own_sink));

    // A sum of zero means that every entry was −inf. A NaN sum is kept.
    let inverse = select(1.0 / sum, 0.0, sum == 0.0);
    for (var at = start + lane; at < end; at += LANES) {
        y[at] = Elem(f32(y[at]) * inverse);
    }
}
