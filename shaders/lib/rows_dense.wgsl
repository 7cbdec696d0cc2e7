// Keys and values of one head lie at equal distances, whatever the layout. Alternative: rows_paged.

// The row of a head's first key.
fn kv_start(batch: u32, kv_head: u32) -> u32 {
    return batch * params.kv_batch + kv_head * params.kv_head;
}

fn kv_row(batch: u32, start: u32, key: u32) -> u32 {
    return start + key * params.kv_row;
}

fn stage_rows(batch: u32, start: u32, first_key: u32, length: u32, lane: u32) {
}

fn staged_row(batch: u32, start: u32, key: u32) -> u32 {
    return kv_row(batch, start, key);
}
