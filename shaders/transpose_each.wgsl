// transpose_each: y[.., at] = x[.., permuted at], any order of up to six axes.
//
//   x  any shape; stride_n is what lies in x between two neighbours along axis n of y
//   y  [size_0, .., size_5], with sizes of one in front where there are fewer axes
//
// A lane owns one element of y, so that writes are contiguous.

const LANES: u32 = 256u;
alias Elem = f32; // host

struct Params {
    count: u32,
    size_1: u32,
    size_2: u32,
    size_3: u32,
    size_4: u32,
    size_5: u32,
    stride_0: u32,
    stride_1: u32,
    stride_2: u32,
    stride_3: u32,
    stride_4: u32,
    stride_5: u32,
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
    y[at] = x[source(at)];
}
