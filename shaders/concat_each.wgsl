// concat_each: y = a, then b, along one axis.
//
//   a  [outer, rows of a, inner]
//   b  [outer, rows of b, inner]
//   y  [outer, rows of a + rows of b, inner]
//
// outer and inner are the products of the axes before and after the joined one; a block is what one outer position holds.
// A lane owns one element of y, so that writes are contiguous.

const LANES: u32 = 256u;
alias Elem = f32; // host

struct Params {
    count: u32,
    a_block: u32,
    b_block: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<Elem>;
@group(0) @binding(2) var<storage, read> b: array<Elem>;
@group(0) @binding(3) var<storage, read_write> y: array<Elem>;

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
    let block = at / (params.a_block + params.b_block);
    let inside = at % (params.a_block + params.b_block);
    if inside < params.a_block {
        y[at] = a[block * params.a_block + inside];
    } else {
        y[at] = b[block * params.b_block + inside - params.a_block];
    }
}
