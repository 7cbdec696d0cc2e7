// A score stays as it is. Alternative: bias_dense.
fn biased(score: f32, s: Sequence, head: u32, i: u32, j: u32) -> f32 {
    return score;
}
