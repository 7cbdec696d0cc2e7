// The queries and keys that belong together: a batch element, or one of several packed sequences. Its rows begin at q_begin of
// the batch element that holds them, its keys at k_begin; i and j count from there. With queries_* and keys_*.
struct Sequence {
    index: u32,
    q_begin: u32,
    q_count: u32,
    k_begin: u32,
    k_count: u32,
}

// Rows that a workgroup writes: so many from row `first` of the sequence on. Those past its queries are rows without one.
struct Part {
    s: Sequence,
    first: u32,
    rows: u32,
}

// The sequence of this number with these rows.
fn sequence(index: u32, q_begin: u32, q_count: u32) -> Sequence {
    let keys = key_range(index);
    return Sequence(index, q_begin, q_count, keys.x, keys.y);
}

// Rows from here on that belong to no sequence.
fn no_sequence(q_begin: u32) -> Sequence {
    return Sequence(0u, q_begin, 0u, 0u, 0u);
}
