// assign_words: target = value, in place, as words of four bytes.
//
//   target, value  any tensor of so many bytes
//
// A lane owns one word. Bytes of the last word that lie behind the tensor's end stay as they are.

const LANES: u32 = 256u;

struct Params {
    words: u32,
    last_mask: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> value: array<u32>;
@group(0) @binding(2) var<storage, read_write> changed: array<u32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (workgroup.x + workgroup.y * workgroups.x) * LANES + lane;
    if at >= params.words {
        return;
    }
    if at + 1u == params.words && params.last_mask != 0xffffffffu {
        changed[at] = (value[at] & params.last_mask) | (changed[at] & ~params.last_mask);
    } else {
        changed[at] = value[at];
    }
}
