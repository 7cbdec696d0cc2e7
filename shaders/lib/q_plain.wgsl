// Queries of a type that WGSL has. Alternative: q_bf16.
alias QElem = f32; // host

@group(0) @binding(1) var<storage, read> q: array<QElem>;

fn q_at(row: u32, d: u32) -> f32 {
    return f32(q[row * HEAD_DIM + d]);
}
