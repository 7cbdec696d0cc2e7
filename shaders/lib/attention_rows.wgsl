// The rows of a tile of attention_fused: which head and query each is, and where it lies among those of q and o.

struct Tile {
    s: Sequence,
    batch: u32,
    head: u32, // the first
    first_row: u32, // of the sequence
    rows: u32, // of the output that it writes, those without a query as zeros
    length: u32, // keys that exist
    q_start: u32, // row of the tile's first query
    o_start: u32, // row of its output
    kv_origin: u32, // first key of the sequence among those that a block table names
    kv_start: u32, // row of the first key and value
}

// Head of a row of the tile.
fn head_of(tile: Tile, row: u32) -> u32 {
    return tile.head + select(0u, min(row / params.rows_per_head, HEADS_PER_TILE - 1u), HEADS_PER_TILE > 1u);
}

// Query of a row of the tile, counted in its sequence.
fn query_of(tile: Tile, row: u32) -> u32 {
    return tile.first_row + row - select(0u, (head_of(tile, row) - tile.head) * params.rows_per_head, HEADS_PER_TILE > 1u);
}

// Where a row of the tile lies among those of q.
fn place_of(tile: Tile, row: u32) -> u32 {
    return tile.q_start + (head_of(tile, row) - tile.head) * params.q_head + (query_of(tile, row) - tile.first_row) * params.q_row;
}

// Where it lies among those of o.
fn output_place_of(tile: Tile, row: u32) -> u32 {
    return tile.o_start + (head_of(tile, row) - tile.head) * params.q_head + (query_of(tile, row) - tile.first_row) * params.o_row;
}

fn store(tile: Tile, row: u32, d: u32, values: vec4<f32>) {
    if row < tile.rows {
        o_store(output_place_of(tile, row), d, values);
    }
}

// One lane of those that share a row keeps the logarithm of its sum.
fn store_sum(tile: Tile, row: u32, maximum: f32, total: f32) {
    if row < tile.rows {
        let i = query_of(tile, row);
        let at = (tile.batch * params.heads + head_of(tile, row)) * params.seq_q + tile.s.q_begin + i;
        lse_store(at, select(maximum + log(total), params.excluded, total == 0.0 || i >= tile.s.q_count));
    }
}
