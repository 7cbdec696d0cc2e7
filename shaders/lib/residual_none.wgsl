// No step takes a residual. Alternative: residual_dense.
fn residual(at: u32) -> f32 {
    return 0.0;
}
