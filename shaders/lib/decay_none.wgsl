// The state of linear attention does not decay. Alternative: decay_dense.
fn decay_factor(row: u32, head: u32, d: u32) -> f32 {
    return 1.0;
}
