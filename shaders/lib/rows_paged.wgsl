// Keys and values lie in pages [pages, page_size, kv_heads, head_dim] that a table names for each sequence
// (vLLM, arXiv:2309.06180). A page that does not exist counts as the last one. Alternative: rows_dense.
@group(0) @binding(18) var<storage, read> block_table: array<u32>;

var<workgroup> wg_kv_rows: array<u32, KEYS>; // of one key tile

// The row of a head's first key within a page.
fn kv_start(batch: u32, kv_head: u32) -> u32 {
    return kv_head * params.kv_head;
}

fn kv_row(batch: u32, start: u32, key: u32) -> u32 {
    let page = min(block_table[batch * params.per_sequence + key / params.page_size], params.pages - 1u);
    return page * params.kv_batch + start + key % params.page_size * params.kv_row;
}

// Looks up a key tile's rows once, for staged_row to find after a barrier.
fn stage_rows(batch: u32, start: u32, first_key: u32, length: u32, lane: u32) {
    if lane < KEYS && first_key + lane < length {
        wg_kv_rows[lane] = kv_row(batch, start, first_key + lane);
    }
}

fn staged_row(batch: u32, start: u32, key: u32) -> u32 {
    return wg_kv_rows[key % KEYS];
}
