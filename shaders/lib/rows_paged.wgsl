// Keys and values lie in pages [pages, page_size, kv_heads, head_dim] that a table names for each sequence
// (vLLM, arXiv:2309.06180). A page that does not exist counts as the last one. Alternative: rows_dense.
@group(0) @binding(18) var<storage, read> block_table: array<u32>;

var<workgroup> wg_kv_rows: array<u32, KEYS>; // of one key tile

// Number of a sequence's first key, which is key `begin` of the batch element, among the keys of the whole table.
fn kv_origin(batch: u32, begin: u32) -> u32 {
    return batch * params.per_sequence * params.page_size + begin;
}

// The row of a head's first key within a page.
fn kv_start(batch: u32, kv_head: u32, begin: u32) -> u32 {
    return kv_head * params.kv_head;
}

fn kv_row(origin: u32, start: u32, key: u32) -> u32 {
    let at = origin + key;
    let page = min(block_table[at / params.page_size], params.pages - 1u);
    return page * params.kv_batch + start + at % params.page_size * params.kv_row;
}

// Looks up a key tile's rows once, for staged_row to find after a barrier.
fn stage_rows(origin: u32, start: u32, first_key: u32, length: u32, lane: u32) {
    for (var i = lane; i < KEYS && first_key + i < length; i += LANES) {
        wg_kv_rows[i] = kv_row(origin, start, first_key + i);
    }
}

fn staged_row(origin: u32, start: u32, key: u32) -> u32 {
    return wg_kv_rows[key % KEYS];
}
