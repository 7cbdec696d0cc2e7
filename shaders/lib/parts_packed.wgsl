// Part `tile` of packed sequences in parts of `height` rows, where no part has rows of two sequences; without rows past the
// last of them. What lies before the first start and behind the last comes in parts of no sequence. With queries_packed.
// Alternative: parts_each.
fn part(batch: u32, tile: u32, height: u32) -> Part {
    var begin = 0u;
    var left = tile;
    for (var s = 0u; s <= params.sequences + 1u; s++) {
        var end = params.seq_q;
        if s <= params.sequences {
            end = max(begin, min(q_starts[s], params.seq_q));
        }
        let parts = (end - begin + height - 1u) / height;
        if left < parts {
            let first = begin + left * height;
            let rows = min(height, end - first);
            if s == 0u || s > params.sequences {
                return Part(no_sequence(first), 0u, rows);
            }
            let owner = packed_sequence(s - 1u, end);
            return Part(owner, first - owner.q_begin, rows);
        }
        left -= parts;
        begin = end;
    }
    return Part(no_sequence(0u), 0u, 0u);
}
