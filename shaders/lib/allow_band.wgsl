// Key j takes part for query i when band_lower <= j - i <= band_upper, the band shifted with lengths where it follows them:
// causality and windows. With band_shift.
// Alternatives: allow_all, allow_dense.
fn allowed(s: Sequence, head: u32, i: u32, j: u32) -> bool {
    let distance = i32(j) - i32(i) - band_shift(s);
    return distance >= params.band_lower && distance <= params.band_upper;
}
