// ALiBi (arXiv:2108.12409): a score falls by a head's slope for each position between a query's own and the key.
// One slope for each head, or for each sequence and head. With band_shift. Alternative: slopes_none.
@group(0) @binding(13) var<storage, read> slopes: array<f32>;

fn sloped(score: f32, s: Sequence, head: u32, i: u32, j: u32) -> f32 {
    let distance = i32(j) - i32(i) - params.position - band_shift(s);
    return score - slopes[s.index * params.slope_sequence + head] * f32(abs(distance));
}
