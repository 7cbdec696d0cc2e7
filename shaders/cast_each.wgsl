// cast_each: y = x in another type, rounded to nearest even; NaN stays NaN.
//
//   x  count elements (x_plain, x_bf16), y  as many (y_plain, y_bf16), two to a word in bf16
//
// A lane owns two elements, which are one word of a bf16 output. Edges: what lies past an odd count reads as zero.

const LANES: u32 = 256u;

struct Params {
    count: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = 2u * ((workgroup.x + workgroup.y * workgroups.x) * LANES + lane);
    if at >= params.count {
        return;
    }
    var second = 0.0;
    if at + 1u < params.count {
        second = x_at(at + 1u);
    }
    y_store(at, x_at(at), second);
}
