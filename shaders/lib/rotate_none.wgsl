// Nothing turns. Alternative: rotate_pairs.
fn rotated(start: u32, d: u32, factor: f32, angles: u32) -> f32 {
    return normed(start, d, factor);
}
