// Nothing is added to a candidate's recurrent part. Alternative: candidate_bias_dense.
fn candidate_bias(unit: u32) -> f32 {
    return 0.0;
}
