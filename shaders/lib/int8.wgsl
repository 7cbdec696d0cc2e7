// Signed 8-bit levels, four to a word, the first in the lowest byte.

// The level with this index out of its word.
fn int8_level(word: u32, at: u32) -> f32 {
    return f32(extractBits(bitcast<i32>(word), at % 4u * 8u, 8u));
}
