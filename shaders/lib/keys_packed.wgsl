// Sequences follow each other in one batch element; sequence s has the keys from start s up to start s + 1.
// Alternatives: keys_all, keys_lengths.
@group(0) @binding(16) var<storage, read> kv_starts: array<u32>;

fn key_batch(index: u32) -> u32 {
    return 0u;
}

// Begin and count.
fn key_range(index: u32) -> vec2<u32> {
    let begin = min(kv_starts[index], params.seq_kv);
    let end = min(kv_starts[index + 1u], params.seq_kv);
    return vec2(begin, max(begin, end) - begin);
}
