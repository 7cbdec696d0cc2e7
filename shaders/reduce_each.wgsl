// reduce_each: y[i] = the sum, mean or maximum of a set of elements of x, which lib/fold_*.wgsl say.
//
//   x  dense, up to 6 axes, of which some are kept and the others reduced
//   y  one element for each position along the kept axes
//
// A lane owns one element of y and walks the reduced axes alone. Best where the fastest axis is kept, so that
// neighbouring lanes read neighbouring elements. Sums are taken over blocks of 64 elements, and over blocks then, so
// that fewer roundings follow each other.

const LANES: u32 = 64u; // host
const BLOCK: u32 = 64u;
alias Elem = f32; // host

struct Params {
    kept: array<vec4<u32>, 6>, // size and stride, the fastest axis first
    reduced: array<vec4<u32>, 6>,
    outputs: u32,
    count: u32,
    kept_axes: u32,
    reduced_axes: u32,
    divisor: f32,
    empty: u32, // bits of the result where there is nothing to reduce
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
    let output = (workgroup.x + workgroup.y * workgroups.x) * LANES + lane;
    if output >= params.outputs {
        return;
    }
    let origin = kept_offset(output);
    var total = start();
    for (var block = 0u; block < params.count; block += BLOCK) {
        var partial = start();
        for (var i = block; i < min(block + BLOCK, params.count); i++) {
            partial = joined(partial, taken(f32(x[origin + reduced_offset(i)])));
        }
        total = joined(total, partial);
    }
    y[output] = Elem(result(total));
}
