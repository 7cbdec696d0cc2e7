// Every row is a query of its batch element. Alternatives: queries_lengths, queries_packed.
fn sequence_at(batch: u32, row: u32) -> Sequence {
    return sequence(batch, 0u, params.seq_q);
}
