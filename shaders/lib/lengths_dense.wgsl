// Only the first keys of a batch element exist, and the band may count from the last of them. Alternative: lengths_none.
@group(0) @binding(12) var<storage, read> lengths: array<u32>;

fn key_length(batch: u32) -> u32 {
    return min(lengths[batch], params.seq_kv);
}

fn band_shift(batch: u32) -> i32 {
    return select(0, i32(key_length(batch)) - i32(params.seq_kv), params.band_follows != 0u);
}
