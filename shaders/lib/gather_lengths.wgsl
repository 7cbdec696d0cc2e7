// Only the first keys of a sequence exist. Alternative: gather_all.
@group(0) @binding(10) var<storage, read> key_counts: array<u32>;

fn key_count(batch: u32) -> u32 {
    return key_counts[batch];
}
