// mask_scores_each: y = softcap(x) − slope · distance + bias where query i may look at key j, the fill elsewhere, −inf where there
// is no query or no key, or not of this batch element's sequence.
//
//   x, y  [batch, heads, seq_q, seq_kv]
//   mask  boolean, broadcast to x (allow_dense); bias  additive, broadcast to x (bias_dense)
//   slopes  of ALiBi (slopes_dense); which queries and keys there are, and which belong together: queries_*, keys_*
//
// A lane owns one element.

const LANES: u32 = 256u;
alias Elem = f32; // host

struct Params {
    count: u32,
    heads: u32,
    seq_q: u32,
    seq_kv: u32,
    band_lower: i32,
    band_upper: i32,
    fill: f32,
    excluded: f32,
    softcap: f32,
    band_follows: u32,
    mask_keys: u32,
    bias_keys: u32,
    mask_batch: u32,
    mask_head: u32,
    mask_query: u32,
    mask_key: u32,
    bias_batch: u32,
    bias_head: u32,
    bias_query: u32,
    bias_key: u32,
    position: i32,
    slope_sequence: u32,
    sequences: u32,
    own_batch: u32, // not zero where batch elements have the rows of one sequence each
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read_write> y: array<Elem>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (workgroup.x + workgroup.y * workgroups.x) * LANES + lane;
    if at >= params.count {
        return;
    }
    take_row(at / params.seq_kv);
    y[at] = Elem(masked(f32(x[at]), at));
}
