// What comes to every distance j - i of a band and of slopes where they count from the last query and the last key.
fn band_shift(s: Sequence) -> i32 {
    return select(0, i32(s.k_count) - i32(s.q_count), params.band_follows != 0u);
}
