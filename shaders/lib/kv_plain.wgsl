// Keys and values of a type that WGSL has. Alternatives: kv_vectors, kv_bf16, kv_int8.
alias KvElem = f32; // host

@group(0) @binding(2) var<storage, read> k: array<KvElem>;
@group(0) @binding(3) var<storage, read> v: array<KvElem>;

fn k_at(row: u32, d: u32) -> f32 {
    return f32(k[(row + params.k_first) * HEAD_DIM + d]);
}

fn v_at(row: u32, d: u32) -> f32 {
    return f32(v[(row + params.v_first) * VALUE_DIM + d]);
}

// Four elements from dimension d, a multiple of four, on; zero past the end. So is v_four.
fn k_four(row: u32, d: u32) -> vec4<f32> {
    var four = vec4<f32>();
    for (var i = 0u; i < min(4u, HEAD_DIM - d); i++) {
        four[i] = k_at(row, d + i);
    }
    return four;
}

fn v_four(row: u32, d: u32) -> vec4<f32> {
    var four = vec4<f32>();
    for (var i = 0u; i < min(4u, VALUE_DIM - d); i++) {
        four[i] = v_at(row, d + i);
    }
    return four;
}
