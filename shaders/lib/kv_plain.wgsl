// Keys and values of a type that WGSL has. Alternatives: kv_bf16, kv_int8.
alias KvElem = f32; // host

@group(0) @binding(2) var<storage, read> k: array<KvElem>;
@group(0) @binding(3) var<storage, read> v: array<KvElem>;

fn k_at(row: u32, d: u32) -> f32 {
    return f32(k[(row + params.k_first) * HEAD_DIM + d]);
}

fn v_at(row: u32, d: u32) -> f32 {
    return f32(v[(row + params.v_first) * VALUE_DIM + d]);
}
