// Keys and values as signed levels, four to a word, times a scale for each row. Alternatives: kv_plain, kv_vectors, kv_bf16.
@group(0) @binding(2) var<storage, read> k: array<u32>;
@group(0) @binding(3) var<storage, read> v: array<u32>;
@group(0) @binding(19) var<storage, read> k_scales: array<f32>;
@group(0) @binding(20) var<storage, read> v_scales: array<f32>;

fn k_at(row: u32, d: u32) -> f32 {
    let own = row + params.k_first;
    let at = own * HEAD_DIM + d;
    return int8_level(k[at / 4u], at) * k_scales[own];
}

fn v_at(row: u32, d: u32) -> f32 {
    let own = row + params.v_first;
    let at = own * VALUE_DIM + d;
    return int8_level(v[at / 4u], at) * v_scales[own];
}

// Four elements from dimension d, a multiple of four, on; zero past the end. So is v_four.
fn k_four(row: u32, d: u32) -> vec4<f32> {
    if HEAD_DIM % 4u == 0u {
        let own = row + params.k_first;
        return int8_four(k[(own * HEAD_DIM + d) / 4u]) * k_scales[own];
    }
    var four = vec4<f32>();
    for (var i = 0u; i < min(4u, HEAD_DIM - d); i++) {
        four[i] = k_at(row, d + i);
    }
    return four;
}

fn v_four(row: u32, d: u32) -> vec4<f32> {
    if VALUE_DIM % 4u == 0u {
        let own = row + params.v_first;
        return int8_four(v[(own * VALUE_DIM + d) / 4u]) * v_scales[own];
    }
    var four = vec4<f32>();
    for (var i = 0u; i < min(4u, VALUE_DIM - d); i++) {
        four[i] = v_at(row, d + i);
    }
    return four;
}
