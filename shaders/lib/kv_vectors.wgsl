// Keys and values of a type that WGSL has, in rows of whole vectors. Alternatives: kv_plain, kv_bf16, kv_int8.
alias KvElem = f32; // host

const_assert HEAD_DIM % 4u == 0u && VALUE_DIM % 4u == 0u;

@group(0) @binding(2) var<storage, read> k: array<vec4<KvElem>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<KvElem>>;

fn k_at(row: u32, d: u32) -> f32 {
    return f32(k[((row + params.k_first) * HEAD_DIM + d) / 4u][d % 4u]);
}

fn v_at(row: u32, d: u32) -> f32 {
    return f32(v[((row + params.v_first) * VALUE_DIM + d) / 4u][d % 4u]);
}

// Four elements from dimension d, a multiple of four, on. So is v_four. Nothing that depends on the row is divided: compilers do
// not see that it is a multiple of four as well.
fn k_four(row: u32, d: u32) -> vec4<f32> {
    return vec4<f32>(k[(row + params.k_first) * (HEAD_DIM / 4u) + d / 4u]);
}

fn v_four(row: u32, d: u32) -> vec4<f32> {
    return vec4<f32>(v[(row + params.v_first) * (VALUE_DIM / 4u) + d / 4u]);
}
