// An output in bf16, two to a word. With an odd number of elements in a row some words belong to two rows, which other
// lanes or workgroups own: each half is cleared and set on its own, so that the order of its neighbours does not matter.
// Alternatives: o_plain, o_vectors, o_bf16.
@group(0) @binding(4) var<storage, read_write> o: array<atomic<u32>>;

fn o_store(row: u32, d: u32, values: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        if d + i < VALUE_DIM {
            let at = row * VALUE_DIM + d + i;
            let shift = at % 2u * 16u;
            atomicAnd(&o[at / 2u], 0xffff0000u >> shift);
            atomicOr(&o[at / 2u], bf16_rounded(values[i]) << shift);
        }
    }
}
