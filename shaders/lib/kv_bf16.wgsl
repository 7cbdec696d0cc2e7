// Keys and values in bf16, two to a word. Alternatives: kv_plain, kv_int8.
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
