// A weight for each element of a row. Alternative: norm_weight_none.
alias Weight = f32; // host

@group(0) @binding(13) var<storage, read> weight: array<Weight>;

fn norm_weight(d: u32) -> f32 {
    return f32(weight[d]);
}
