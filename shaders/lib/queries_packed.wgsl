// Sequences follow each other in one batch element; sequence s has the rows from start s up to start s + 1. Where starts decrease,
// rows that an earlier sequence has passed are not a later one's. Alternatives: queries_all, queries_lengths.
@group(0) @binding(15) var<storage, read> q_starts: array<u32>;

// The sequence between two starts, of which `end` is the later.
fn packed_sequence(index: u32, end: u32) -> Sequence {
    let begin = min(q_starts[index], params.seq_q);
    return sequence(index, begin, end - begin);
}

fn sequence_at(batch: u32, row: u32) -> Sequence {
    for (var s = 0u; s <= params.sequences; s++) {
        let end = min(q_starts[s], params.seq_q);
        if row < end {
            if s == 0u {
                break;
            }
            return packed_sequence(s - 1u, end);
        }
    }
    return no_sequence(row);
}
