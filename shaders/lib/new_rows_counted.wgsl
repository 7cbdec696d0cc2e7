// The first rows of a batch element are appended, so many as its count says; the others are padding.
// Alternative: new_rows_all.
@group(0) @binding(10) var<storage, read> new_lengths: array<u32>;

fn new_rows(batch: u32) -> u32 {
    return min(new_lengths[batch], params.seq_new);
}
