// bf16, the upper half of an f32, two to a word, the first in the lower half.

// The element with this index out of its word.
fn bf16_widened(word: u32, at: u32) -> f32 {
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, at % 2u == 1u));
}

// Rounded to nearest even, in the lower half of the word; NaN stays NaN.
fn bf16_rounded(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let rounded = (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
    return select(rounded, (bits >> 16u) | 0x40u, is_nan(value));
}

// The four elements of two words.
fn bf16_four(low: u32, high: u32) -> vec4<f32> {
    return bitcast<vec4<f32>>(vec4(low << 16u, low & 0xffff0000u, high << 16u, high & 0xffff0000u));
}
