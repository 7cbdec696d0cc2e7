// matrix_chain_each: y = steps times the sum of a's products with b, added one after the other.
//
//   a  [8, edge, edge]    b  [edge, edge]    y  [groups, edge, edge]
//
// A lane owns one element of y.

alias Elem = f16; // host

const LANES: u32 = 64u;
const CHAINS: u32 = 8u;

struct Params {
    groups: u32,
    steps: u32,
    edge: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<Elem>;
@group(0) @binding(2) var<storage, read> b: array<Elem>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let at = (workgroup.x + workgroup.y * workgroups.x) * LANES + lane;
    let edge = params.edge;
    if at >= params.groups * edge * edge {
        return;
    }
    let row = at / edge % edge;
    let column = at % edge;
    var sum = 0.0;
    for (var step = 0u; step < params.steps; step++) {
        for (var chain = 0u; chain < CHAINS; chain++) {
            for (var k = 0u; k < edge; k++) {
                sum += f32(a[(chain * edge + row) * edge + k]) * f32(b[k * edge + column]);
            }
        }
    }
    y[at] = sum;
}
