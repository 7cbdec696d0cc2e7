// An output in bf16, two to a word, with an even number of elements in a row: no word belongs to two rows.
// Alternatives: o_plain, o_vectors, o_bf16_odd.
const_assert VALUE_DIM % 2u == 0u;

@group(0) @binding(4) var<storage, read_write> o: array<u32>;

fn o_store(row: u32, d: u32, values: vec4<f32>) {
    for (var i = 0u; i < 4u; i += 2u) {
        if d + i < VALUE_DIM {
            o[(row * VALUE_DIM + d + i) / 2u] = bf16_rounded(values[i]) | (bf16_rounded(values[i + 1u]) << 16u);
        }
    }
}
