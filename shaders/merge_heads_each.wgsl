// merge_heads_each: y[batch, s, head × head_dim + d] = x[batch, head, s, d].
//
//   x  [batch, heads, seq, head_dim]
//   y  [batch, seq, heads × head_dim]
//
// A lane owns one element of y, so that writes are contiguous.

const LANES: u32 = 256u;
alias Elem = f32; // host

struct Params {
    count: u32,
    heads: u32,
    seq: u32,
    head_dim: u32,
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
    let d = at % params.head_dim;
    let head = at / params.head_dim % params.heads;
    let s = at / (params.head_dim * params.heads) % params.seq;
    let batch = at / (params.head_dim * params.heads * params.seq);
    y[at] = x[((batch * params.heads + head) * params.seq + s) * params.head_dim + d];
}
