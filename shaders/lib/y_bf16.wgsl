// An output in bf16, two to a word; what follows an odd count in its word is left alone. Alternative: y_plain.
@group(0) @binding(2) var<storage, read_write> y: array<u32>;

// `at` is even.
fn y_store(at: u32, first: f32, second: f32) {
    var word = bf16_rounded(first) | (bf16_rounded(second) << 16u);
    if at + 1u == params.count {
        word = bf16_rounded(first) | (y[at / 2u] & 0xffff0000u);
    }
    y[at / 2u] = word;
}
