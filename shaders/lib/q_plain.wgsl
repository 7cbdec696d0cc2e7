// Queries of a type that WGSL has. Alternatives: q_vectors, q_bf16.
alias QElem = f32; // host

@group(0) @binding(1) var<storage, read> q: array<QElem>;

fn q_at(row: u32, d: u32) -> f32 {
    return f32(q[row * HEAD_DIM + d]);
}

// Four elements from dimension d, a multiple of four, on; zero past the end.
fn q_four(row: u32, d: u32) -> vec4<f32> {
    var four = vec4<f32>();
    for (var i = 0u; i < min(4u, HEAD_DIM - d); i++) {
        four[i] = q_at(row, d + i);
    }
    return four;
}
