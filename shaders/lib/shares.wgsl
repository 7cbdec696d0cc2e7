// Which keys a share has, and where its results are.

const UNIT: u32 = 64u; // what the keys of a share are a multiple of

// The first key of a share that some row of the tile may look at, a multiple of KEYS, and the end.
fn share_of(tile: Tile, share: u32, shares: u32) -> vec2<u32> {
    let keys = ((tile.s.k_count + shares - 1u) / shares + UNIT - 1u) / UNIT * UNIT;
    let span = keys_of(tile);
    return vec2(max(span.x, share * keys), min(span.y, share * keys + keys));
}

// Row of the share's results.
fn result_of(tile: Tile, share: u32, row: u32) -> u32 {
    let head = (share * params.batch + tile.batch) * params.heads + head_of(tile, row);
    return head * params.seq_q + tile.s.q_begin + query_of(tile, row);
}

// The logarithm of a row's sum over the share, −inf where it sees nothing or is no query.
fn store_share_sum(tile: Tile, share: u32, row: u32, maximum: f32, total: f32) {
    if row < tile.rows {
        let nothing = total == 0.0 || query_of(tile, row) >= tile.s.q_count;
        lse_store(result_of(tile, share, row), select(natural(maximum) + log(total), params.excluded, nothing));
    }
}
