// −inf by its bits: compilers may assume that comparisons never meet an infinity.
fn is_excluded(score: f32) -> bool {
    return bitcast<u32>(score) == 0xff800000u;
}

// NaN by its bits, likewise.
fn is_nan(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7fffffffu) > 0x7f800000u;
}

// Neither infinite nor NaN.
fn is_finite(value: f32) -> bool {
    return (bitcast<u32>(value) & 0x7f800000u) != 0x7f800000u;
}
