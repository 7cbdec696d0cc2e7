// A score stays as it is. Alternative: slopes_dense.
fn sloped(score: f32, s: Sequence, head: u32, i: u32, j: u32) -> f32 {
    return score;
}
