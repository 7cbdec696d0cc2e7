// Row of a cache [pages, page_size, kv_heads], whose pages a table [batch, per_sequence] names. Alternative: cache_dense.
@group(0) @binding(9) var<storage, read> block_table: array<u32>;

fn cache_row(batch: u32, head: u32, position: u32) -> u32 {
    let entry = block_table[batch * params.per_sequence + position / params.page_size];
    // A page that does not exist counts as the last, so that nothing outside is written.
    let page = min(entry, params.pages - 1u);
    return (page * params.page_size + position % params.page_size) * params.kv_heads + head;
}
