// Only the first rows of a batch element are queries. Alternatives: queries_all, queries_packed.
@group(0) @binding(14) var<storage, read> q_lengths: array<u32>;

fn sequence_at(batch: u32, row: u32) -> Sequence {
    return sequence(batch, 0u, min(q_lengths[batch], params.seq_q));
}
