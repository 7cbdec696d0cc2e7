// Queries in bf16, two to a word. Alternative: q_plain.
@group(0) @binding(1) var<storage, read> q: array<u32>;

fn q_at(row: u32, d: u32) -> f32 {
    let at = row * HEAD_DIM + d;
    return bf16_widened(q[at / 2u], at);
}
