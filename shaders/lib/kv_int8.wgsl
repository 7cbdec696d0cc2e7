// Keys and values as signed levels, four to a word, times a scale for each row. Alternatives: kv_plain, kv_bf16.
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
