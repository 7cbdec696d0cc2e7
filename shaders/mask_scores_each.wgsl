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
