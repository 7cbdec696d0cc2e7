// Queries in bf16, two to a word. Alternatives: q_plain, q_vectors.
@group(0) @binding(1) var<storage, read> q: array<u32>;

fn q_at(row: u32, d: u32) -> f32 {
    let at = row * HEAD_DIM + d;
    return bf16_widened(q[at / 2u], at);
}

// Four elements from dimension d, a multiple of four, on; zero past the end.
fn q_four(row: u32, d: u32) -> vec4<f32> {
    if HEAD_DIM % 4u == 0u {
        let at = (row * HEAD_DIM + d) / 2u;
        return bf16_four(q[at], q[at + 1u]);
    }
    var four = vec4<f32>();
    for (var i = 0u; i < min(4u, HEAD_DIM - d); i++) {
        four[i] = q_at(row, d + i);
    }
    return four;
}
