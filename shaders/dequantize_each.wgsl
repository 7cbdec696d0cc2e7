// dequantize_each: y = x × scale of its row.
//
//   x  [.., width], signed levels, four to a word; scales  [..]; y  [.., width]
//
// A lane owns the four elements of a word, which may be of several rows. Edges: the last word may be partly filled.

const LANES: u32 = 256u;
alias Elem = f32; // host

struct Params {
    count: u32,
    width: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<Elem>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = 4u * ((workgroup.x + workgroup.y * workgroups.x) * LANES + lane);
    if first >= params.count {
        return;
    }
    let word = x[first / 4u];
    for (var at = first; at < min(first + 4u, params.count); at++) {
        y[at] = Elem(int8_level(word, at) * scales[at / params.width]);
    }
}
