// Signed 8-bit levels, four to a word, the first in the lowest byte.

// The level with this index out of its word.
fn int8_level(word: u32, at: u32) -> f32 {
    return f32(extractBits(bitcast<i32>(word), at % 4u * 8u, 8u));
}

// The four levels of a word.
fn int8_four(word: u32) -> vec4<f32> {
    return vec4<f32>(vec4<i32>(vec4(word << 24u, word << 16u, word << 8u, word)) >> vec4(24u));
}
