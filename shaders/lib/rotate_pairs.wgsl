// The first rotary_dim elements of a row turn in pairs (a, b): a cos − b sin, b cos + a sin (Su et al., arXiv:2104.09864).
// Pair p is elements p and p + rotary_dim / 2, or, interleaved, 2p and 2p + 1. `angles` is where the row's angles start.
// Alternative: rotate_none.
alias Angle = f32; // host

@group(0) @binding(11) var<storage, read> cosines: array<Angle>;
@group(0) @binding(12) var<storage, read> sines: array<Angle>;

fn rotated(start: u32, d: u32, factor: f32, angles: u32) -> f32 {
    let own = normed(start, d, factor);
    if d >= params.rotary_dim {
        return own;
    }
    let half = params.rotary_dim / 2u;
    let interleaved = params.interleaved != 0u;
    let pair = select(d % half, d / 2u, interleaved);
    let is_first = select(d < half, d % 2u == 0u, interleaved);
    let apart = select(half, 1u, interleaved);
    let other = normed(start, select(d - apart, d + apart, is_first), factor);
    let cosine = f32(cosines[angles + pair]);
    let sine = f32(sines[angles + pair]);
    return select(own * cosine + other * sine, own * cosine - other * sine, is_first);
}
