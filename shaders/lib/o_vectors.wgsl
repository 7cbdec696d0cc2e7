// An output of a type that WGSL has, in rows of whole vectors. Alternatives: o_plain, o_bf16, o_bf16_odd.
alias OElem = f32; // host

const_assert VALUE_DIM % 4u == 0u;

@group(0) @binding(4) var<storage, read_write> o: array<vec4<OElem>>;

fn o_store(row: u32, d: u32, values: vec4<f32>) {
    if d < VALUE_DIM {
        o[(row * VALUE_DIM + d) / 4u] = vec4<OElem>(values);
    }
}
