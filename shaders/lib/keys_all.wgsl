// A sequence has all keys of the batch element of its number. Alternatives: keys_lengths, keys_packed.
fn key_batch(index: u32) -> u32 {
    return index;
}

// Begin and count.
fn key_range(index: u32) -> vec2<u32> {
    return vec2(0u, params.seq_kv);
}
