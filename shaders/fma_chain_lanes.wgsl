// fma_chain_lanes: y = x after `steps` times x = x · factor + addend.
//
//   x, y  count elements
//
// A lane owns twelve elements as three vectors, whose chains do not wait for each other, and 32 steps stand in the body of the loop,
// so that counting them costs little. Edges: what lies past the end is zero, and is not stored.

alias Elem = f32; // host

const LANES: u32 = 64u;

struct Params {
    count: u32,
    steps: u32,
    factor: f32,
    addend: f32,
}

struct Chains {
    a: vec4<Elem>,
    b: vec4<Elem>,
    c: vec4<Elem>,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<Elem>;
@group(0) @binding(2) var<storage, read_write> y: array<Elem>;

fn load(first: u32) -> vec4<Elem> {
    var values = vec4<Elem>();
    for (var part = 0u; part < 4u; part++) {
        if first + part < params.count {
            values[part] = x[first + part];
        }
    }
    return values;
}

fn store(first: u32, values: vec4<Elem>) {
    for (var part = 0u; part < 4u; part++) {
        if first + part < params.count {
            y[first + part] = values[part];
        }
    }
}

fn next(chains: Chains, factor: vec4<Elem>, addend: vec4<Elem>) -> Chains {
    return Chains(fma(chains.a, factor, addend), fma(chains.b, factor, addend), fma(chains.c, factor, addend));
}

fn eight(start: Chains, factor: vec4<Elem>, addend: vec4<Elem>) -> Chains {
    var chains = next(start, factor, addend);
    chains = next(chains, factor, addend);
    chains = next(chains, factor, addend);
    chains = next(chains, factor, addend);
    chains = next(chains, factor, addend);
    chains = next(chains, factor, addend);
    chains = next(chains, factor, addend);
    return next(chains, factor, addend);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) workgroups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let first = 12u * ((workgroup.x + workgroup.y * workgroups.x) * LANES + lane);
    let factor = vec4<Elem>(Elem(params.factor));
    let addend = vec4<Elem>(Elem(params.addend));
    var chains = Chains(load(first), load(first + 4u), load(first + 8u));
    for (var many = 0u; many < params.steps / 32u; many++) {
        chains = eight(chains, factor, addend);
        chains = eight(chains, factor, addend);
        chains = eight(chains, factor, addend);
        chains = eight(chains, factor, addend);
    }
    for (var one = 0u; one < params.steps % 32u; one++) {
        chains = next(chains, factor, addend);
    }
    store(first, chains.a);
    store(first + 4u, chains.b);
    store(first + 8u, chains.c);
}
