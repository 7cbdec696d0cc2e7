// A sequence has the first keys of the batch element of its number. Alternatives: keys_all, keys_packed.
@group(0) @binding(12) var<storage, read> lengths: array<u32>;

fn key_batch(index: u32) -> u32 {
    return index;
}

// Begin and count.
fn key_range(index: u32) -> vec2<u32> {
    return vec2(0u, min(lengths[index], params.seq_kv));
}
