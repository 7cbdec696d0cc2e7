// What every technique of attention_fused and attention_split is told, and the rows of a tile of theirs: which head and query
// each is, where it lies among those of q and o, and which keys some of them may look at.

struct Params {
    batch: u32,
    heads: u32,
    kv_heads: u32,
    seq_q: u32,
    seq_kv: u32,
    scale: f32,
    fill: f32,
    excluded: f32,
    softcap: f32,
    q_batch: u32, // strides count rows
    q_head: u32,
    q_row: u32,
    kv_batch: u32,
    kv_head: u32,
    kv_row: u32,
    page_size: u32,
    per_sequence: u32,
    pages: u32,
    band_follows: u32,
    mask_keys: u32,
    bias_keys: u32,
    band_lower: i32,
    band_upper: i32,
    visit_lower: i32,
    visit_upper: i32,
    mask_batch: u32,
    mask_head: u32,
    mask_query: u32,
    mask_key: u32,
    bias_batch: u32,
    bias_head: u32,
    bias_query: u32,
    bias_key: u32,
    position: i32,
    slope_sequence: u32,
    sequences: u32,
    parts: u32, // of the rows of one batch element
    rows_per_head: u32, // of a tile with several heads
    o_batch: u32, // from head to head the output's rows lie as the queries' do
    o_row: u32,
    k_first: u32, // rows before the first of the keys, and of the values
    v_first: u32,
}

@group(0) @binding(0) var<uniform> params: Params;

struct Tile {
    s: Sequence,
    batch: u32,
    head: u32, // the first
    first_row: u32, // of the sequence
    rows: u32, // of the output that it writes, those without a query as zeros; none where there is no tile
    length: u32, // keys that exist
    q_start: u32, // row of the tile's first query
    o_start: u32, // row of its output
    kv_origin: u32, // first key of the sequence among those that a block table names
    kv_start: u32, // row of the first key and value
}

// Tile of the workgroup with this number.
fn tile_at(workgroup: u32) -> Tile {
    let groups = params.heads / HEADS_PER_TILE;
    let head = workgroup / params.parts % groups * HEADS_PER_TILE;
    let batch = workgroup / params.parts / groups;
    if batch >= params.batch {
        return Tile(no_sequence(0u), batch, head, 0u, 0u, 0u, 0u, 0u, 0u, 0u);
    }
    let mine = part(batch, workgroup % params.parts, QUERIES);
    let s = mine.s;
    // Without a query there is nothing to look at.
    let length = select(s.k_count, 0u, mine.first >= s.q_count);
    let q_start = batch * params.q_batch + head * params.q_head + (s.q_begin + mine.first) * params.q_row;
    let o_start = batch * params.o_batch + head * params.q_head + (s.q_begin + mine.first) * params.o_row;
    let kv_batch = key_batch(s.index);
    let kv_head = head / (params.heads / params.kv_heads);
    let rows = select(mine.rows, HEADS_PER_TILE * params.rows_per_head, HEADS_PER_TILE > 1u && mine.rows > 0u);
    return Tile(
        s, batch, head, mine.first, rows, length, q_start, o_start, kv_origin(kv_batch, s.k_begin),
        kv_start(kv_batch, kv_head, s.k_begin));
}

// Keys that some row of the tile may look at: the first, a multiple of KEYS, and the end.
fn keys_of(tile: Tile) -> vec2<u32> {
    let rows_of_a_head = select(QUERIES, params.rows_per_head, HEADS_PER_TILE > 1u);
    return keys_between(tile, tile.first_row, tile.first_row + rows_of_a_head);
}

// Keys that some of these queries of the tile may look at, likewise.
fn keys_between(tile: Tile, first_query: u32, end_query: u32) -> vec2<u32> {
    let shift = band_shift(tile.s);
    let last_query = i32(min(end_query, tile.s.q_count)) - 1;
    let begin = clamp(i32(first_query) + params.visit_lower + shift, 0, i32(tile.length));
    let end = clamp(last_query + params.visit_upper + shift + 1, 0, i32(tile.length));
    return vec2(u32(begin) / KEYS * KEYS, u32(end));
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

// Four elements of a query; zero for rows and dimensions past the end.
fn q_part(tile: Tile, row: u32, d: u32) -> vec4<f32> {
    if row >= tile.rows || query_of(tile, row) >= tile.s.q_count || d >= HEAD_DIM {
        return vec4<f32>();
    }
    return q_four(place_of(tile, row), d);
}

// Four elements of a key whose rows are staged; zero for keys and dimensions past the end.
fn k_part(tile: Tile, key: u32, d: u32) -> vec4<f32> {
    if key >= tile.length || d >= HEAD_DIM {
        return vec4<f32>();
    }
    return k_four(staged_row(tile.kv_origin, tile.kv_start, key), d);
}

// The same of a value.
fn v_part(tile: Tile, key: u32, d: u32) -> vec4<f32> {
    if key >= tile.length || d >= VALUE_DIM {
        return vec4<f32>();
    }
    return v_four(staged_row(tile.kv_origin, tile.kv_start, key), d);
}

fn finite(values: vec4<f32>) -> vec4<bool> {
    return vec4(is_finite(values.x), is_finite(values.y), is_finite(values.z), is_finite(values.w));
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
