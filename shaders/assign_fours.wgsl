// assign_fours: target = value, in place, as vectors of four words.
//
//   target, value  any tensor of so many vectors
//
// A lane owns four vectors, a workgroup's width apart, so that its loads are all under way at once.

const LANES: u32 = 256u;
const EACH: u32 = 4u;

struct Params {
    fours: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> value: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> changed: array<vec4<u32>>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = (workgroup.x + workgroup.y * workgroups.x) * LANES * EACH + lane;
    for (var each = 0u; each < EACH; each++) {
        let at = first + each * LANES;
        if at < params.fours {
            changed[at] = value[at];
        }
    }
}
