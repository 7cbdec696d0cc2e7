// An input in bf16, two to a word. Alternative: x_plain.
@group(0) @binding(1) var<storage, read> x: array<u32>;

fn x_at(at: u32) -> f32 {
    return bf16_widened(x[at / 2u], at);
}
