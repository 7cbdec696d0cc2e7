// A norm without a weight. Alternative: norm_weight_dense.
fn norm_weight(d: u32) -> f32 {
    return 1.0;
}
