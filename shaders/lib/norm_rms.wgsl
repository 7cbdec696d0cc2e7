// A row times 1 / √(mean of its squares + epsilon) and a weight (norm_weight_dense, norm_weight_none). Alternative: norm_none.
// Every invocation must call norm_factor.
fn norm_factor(lane: u32, start: u32, length: u32) -> f32 {
    var squares = 0.0;
    for (var d = lane; d < length; d += LANES) {
        let x = load(start + d);
        squares += x * x;
    }
    return inverseSqrt(reduce_sum(lane, squares) / f32(length) + params.epsilon);
}

fn normed(start: u32, d: u32, factor: f32) -> f32 {
    return load(start + d) * factor * norm_weight(d);
}
