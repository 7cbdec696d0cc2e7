// The logarithm of a row's sum of exponentials is not kept. Alternative: lse_dense.
fn lse_store(at: u32, value: f32) {
}
