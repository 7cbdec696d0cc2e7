// Keys and values in bf16, two to a word. Alternatives: kv_plain, kv_vectors, kv_int8.
@group(0) @binding(2) var<storage, read> k: array<u32>;
@group(0) @binding(3) var<storage, read> v: array<u32>;

fn k_at(row: u32, d: u32) -> f32 {
    let at = (row + params.k_first) * HEAD_DIM + d;
    return bf16_widened(k[at / 2u], at);
}

fn v_at(row: u32, d: u32) -> f32 {
    let at = (row + params.v_first) * VALUE_DIM + d;
    return bf16_widened(v[at / 2u], at);
}

// Four elements from dimension d, a multiple of four, on; zero past the end. So is v_four.
fn k_four(row: u32, d: u32) -> vec4<f32> {
    if HEAD_DIM % 4u == 0u {
        let at = ((row + params.k_first) * HEAD_DIM + d) / 2u;
        return bf16_four(k[at], k[at + 1u]);
    }
    var four = vec4<f32>();
    for (var i = 0u; i < min(4u, HEAD_DIM - d); i++) {
        four[i] = k_at(row, d + i);
    }
    return four;
}

fn v_four(row: u32, d: u32) -> vec4<f32> {
    if VALUE_DIM % 4u == 0u {
        let at = ((row + params.v_first) * VALUE_DIM + d) / 2u;
        return bf16_four(v[at], v[at + 1u]);
    }
    var four = vec4<f32>();
    for (var i = 0u; i < min(4u, VALUE_DIM - d); i++) {
        four[i] = v_at(row, d + i);
    }
    return four;
}
