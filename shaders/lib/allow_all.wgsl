// Every key takes part for every query. Alternatives: allow_band, allow_dense.
fn allowed(s: Sequence, head: u32, i: u32, j: u32) -> bool {
    return true;
}
