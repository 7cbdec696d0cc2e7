// reduce_fours: y[i] = the sum, mean or maximum of a row of x, which lib/fold_*.wgsl say.
//
//   x  [outputs, 4 · fours]
//   y  [outputs]
//
// A lane owns a row and walks it alone, as vectors of four: for many rows of some hundred bytes, which lie in whole cache lines.
// Best on software devices, where joining the lanes of a workgroup takes longer than reading what they have.

const LANES: u32 = 64u; // host
alias Elem = f32; // host

struct Params {
    outputs: u32,
    fours: u32,
    divisor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<Elem>>;
@group(0) @binding(2) var<storage, read_write> y: array<Elem>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let output = (workgroup.x + workgroup.y * workgroups.x) * LANES + lane;
    if output >= params.outputs {
        return;
    }
    let first = output * params.fours;
    var partial = start();
    for (var i = 0u; i < params.fours; i++) {
        let four = vec4<f32>(x[first + i]);
        let low = joined(taken(four.x), taken(four.y));
        let high = joined(taken(four.z), taken(four.w));
        partial = joined(partial, joined(low, high));
    }
    y[output] = Elem(finished(partial));
}
