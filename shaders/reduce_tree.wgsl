// reduce_tree: y[i] = the sum, mean or maximum of a set of elements of x, which lib/fold_*.wgsl say.
//
//   x  dense, up to 6 axes, of which some are kept and the others reduced
//   y  one element for each position along the kept axes
//
// A workgroup owns one element of y; its lanes walk the reduced axes together, LANES elements at a time, and join what
// they have in a tree. Best where the fastest axis is reduced, so that neighbouring lanes read neighbouring elements.

const LANES: u32 = 256u; // host
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

var<workgroup> wg_partial: array<Partial, LANES>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let output = workgroup.x + workgroup.y * workgroups.x;
    if output >= params.outputs {
        return;
    }
    let origin = kept_offset(output);
    var partial = start();
    for (var i = lane; i < params.count; i += LANES) {
        partial = joined(partial, taken(f32(x[origin + reduced_offset(i)])));
    }

    // The reductions of lib/reduce_workgroup are of f32; a maximum that may be NaN is of integers.
    wg_partial[lane] = partial;
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        workgroupBarrier();
        if lane < half {
            wg_partial[lane] = joined(wg_partial[lane], wg_partial[lane + half]);
        }
    }
    if lane == 0u {
        y[output] = Elem(result(wg_partial[0]));
    }
}
