// Queries of a type that WGSL has, in rows of whole vectors. Alternatives: q_plain, q_bf16.
alias QElem = f32; // host

const_assert HEAD_DIM % 4u == 0u;

@group(0) @binding(1) var<storage, read> q: array<vec4<QElem>>;

fn q_at(row: u32, d: u32) -> f32 {
    return f32(q[(row * HEAD_DIM + d) / 4u][d % 4u]);
}

// Four elements from dimension d, a multiple of four, on.
fn q_four(row: u32, d: u32) -> vec4<f32> {
    return vec4<f32>(q[(row * HEAD_DIM + d) / 4u]);
}
