// Keeps the logarithm of each row's sum of exponentials. Alternative: lse_none.
@group(0) @binding(21) var<storage, read_write> lse: array<f32>;

fn lse_store(at: u32, value: f32) {
    lse[at] = value;
}
