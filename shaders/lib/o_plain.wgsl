// An output of a type that WGSL has. Alternatives: o_vectors, o_bf16, o_bf16_odd.
alias OElem = f32; // host

@group(0) @binding(4) var<storage, read_write> o: array<OElem>;

fn o_store(row: u32, d: u32, values: vec4<f32>) {
    for (var i = 0u; i < 4u; i++) {
        if d + i < VALUE_DIM {
            o[row * VALUE_DIM + d + i] = OElem(values[i]);
        }
    }
}
